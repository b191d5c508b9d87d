"""What carries a flow's tasks out: threads of this process, or the workers of a Dask cluster.

Inside a flow ``steps_of(options)`` yields the steps: on the flow's own task runner or, where that
has only threads and a cluster is asked for, on that of ``task_runner(options)``.
"""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.engine.clusters import check_keywords, cluster_of
from flows.engine.crew import NEVER, is_tame
from flows.engine.tasks import PrefectSteps
from flows.errors import FlowError, SettingsError
from flows.job.steps import MOST_SLOTS
from flows.server.process import Say, nobody

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner

    from flows.job.loop import IndexOptions

ANSWER_S = 10


@contextmanager
def steps_of(options: "IndexOptions", say: Say = nobody) -> Iterator[PrefectSteps]:
    """Yield the steps of a run inside a flow; ``say`` is told what they have to wait for.

    Raises
    ------
    FlowError
        The cluster can't be started, reached or used.
    """
    context = FlowRunContext.get()
    own = context.task_runner if context else None
    if own is None or (options.runner == "dask" and isinstance(own, ThreadPoolTaskRunner)):
        with task_runner(options) as runner, _here() as here:
            yield PrefectSteps(runner, here, say)
    else:
        with _here() as here:
            yield PrefectSteps(own, here, say)


def _here() -> ThreadPoolTaskRunner[Any]:
    """Return threads for what is carried out once, in this process, wherever the chunks are."""
    return ThreadPoolTaskRunner(max_workers=1)


def task_runner(options: "IndexOptions") -> TaskRunner[Any]:
    """Return Prefect's task runner for ``runner`` and ``cluster`` of a run.

    To be called where Prefect's settings name the API that the run goes through.

    Raises
    ------
    FlowError
        prefect-dask is not installed, the scheduler does not answer, or its workers could not reach
        Prefect's API or the catalog.
    SettingsError
        ``cluster`` is neither an address, a number of workers, nor a usable file.
    DeviceError
        The workers are on this machine, and a device is not.
    """
    if options.runner != "dask":
        return ThreadPoolTaskRunner(max_workers=MOST_SLOTS)
    try:
        import prefect_dask  # noqa: F401
    except ImportError as error:
        raise FlowError(
            "--runner dask needs prefect-dask: pip install 'lookalike[dask]'"
        ) from error
    return _made(options, *cluster_of(options.cluster, options.device))


def _made(options: "IndexOptions", spec: dict[str, Any], origin: str) -> TaskRunner[Any]:
    """Return the runner for the arguments, once it is known that it can work."""
    runner = _runner(spec, origin)
    if runner.address is not None:
        _check_scheduler(runner.address)
        runner.client_kwargs.setdefault("timeout", ANSWER_S)
    if _elsewhere(runner):
        _check_catalog(options)
        _check_api()
    return runner


def _runner(spec: dict[str, Any], origin: str) -> "DaskTaskRunner":
    from distributed import LocalCluster
    from prefect_dask.task_runners import DaskTaskRunner

    try:
        runner = DaskTaskRunner(**spec)
    except Exception as error:
        raise SettingsError(f"{origin}: {' '.join(str(error).split())}") from error
    made = runner.resolved_cluster_class
    if made is not None and not callable(made):
        raise SettingsError(f"{origin}: cluster_class {spec['cluster_class']} is no class")
    if runner.address is None and _is_local(made):
        check_keywords(made or LocalCluster, runner.cluster_kwargs, origin)
        if is_tame():
            runner.cluster_kwargs.setdefault("silence_logs", NEVER)
    return runner


def _is_local(made: Any) -> bool:
    """Return whether a cluster of this class has its workers on this machine."""
    from distributed import LocalCluster

    return made is None or (isinstance(made, type) and issubclass(made, LocalCluster))


def _elsewhere(runner: "DaskTaskRunner") -> bool:
    """Return whether a cluster's workers may be on other machines."""
    if runner.address is None:
        return not _is_local(runner.resolved_cluster_class)
    host = urlparse(runner.address).hostname or ""
    with suppress(OSError):
        for family, kind, *_, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with suppress(OSError), closing(socket.socket(family, kind)) as probe:
                probe.bind(place)  # only an address of this machine can be
                return False
    return True


def _check_scheduler(address: str) -> None:
    """Refuse a scheduler that does not answer."""
    parts = urlparse(address)
    if parts.scheme not in ("tcp", "tls"):
        return
    try:
        port = parts.port or 8786
        with socket.create_connection((parts.hostname or "", port), timeout=ANSWER_S):
            return
    except (OSError, ValueError) as error:
        raise FlowError(
            f"no Dask scheduler answers at {address} ({error}): start `dask scheduler` there, or "
            "mend --cluster"
        ) from error


def _check_catalog(options: "IndexOptions") -> None:
    """Refuse a catalog that is a file of one machine."""
    if options.catalog_url is None:
        raise FlowError(
            "several hosts can't share a catalog in SQLite: give the run a Postgres one, "
            "LOOKALIKE_CATALOG_URL=postgresql://..., or work on this machine, --cluster NUMBER"
        )


def _check_api() -> None:
    """Refuse an API that only this machine reaches."""
    url = str(PREFECT_API_URL.value() or "")
    host = urlparse(url).hostname or "localhost"
    if host == "localhost" or host == "::1" or host.startswith("127."):
        raise FlowError(
            f"the cluster's workers can't reach Prefect's API at {url or 'a temporary server'}: run"
            " `prefect server start --host 0.0.0.0` and set PREFECT_API_URL to this machine's name"
        )
