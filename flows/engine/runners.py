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

from flows.engine.crew import NEVER, is_tame
from flows.engine.tasks import PrefectSteps
from flows.errors import FlowError, SettingsError
from flows.job.engines import cores
from flows.job.steps import MOST_SLOTS
from flows.server.process import Say, nobody

if TYPE_CHECKING:
    from flows.job.loop import IndexOptions

LOCAL = "distributed.LocalCluster"
LOCAL_NAMES = ("distributed.LocalCluster", "dask.distributed.LocalCluster")
LEAST_WORKERS = 2
"""Local workers where their number is not said and there are no GPUs to count."""
ANSWER_S = 10
KEYS = ("address", "cluster_class", "cluster_kwargs", "adapt_kwargs", "client_kwargs")
"""What a cluster's file may say: arguments of ``DaskTaskRunner``."""


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
    """
    if options.runner != "dask":
        return ThreadPoolTaskRunner(max_workers=MOST_SLOTS)
    try:
        import prefect_dask  # noqa: F401
    except ImportError as error:
        raise FlowError(
            "--runner dask needs prefect-dask: pip install 'lookalike[dask]'"
        ) from error
    cluster = options.cluster
    if cluster is None or cluster.isdecimal():
        return _made(options, _local(options.device, int(cluster or 0)), "--cluster")
    if "://" in cluster:
        return _made(options, {"address": cluster}, "--cluster")
    return _made(options, _from_file(cluster), cluster)


def _local(device: str, workers: int) -> dict[str, Any]:
    """Return a cluster of worker processes on this machine."""
    if not workers:
        from extractor.device import devices

        found = devices(device)
        workers = len(found) if found[0].startswith("cuda") else max(LEAST_WORKERS, len(found))
    environment = {"OMP_NUM_THREADS": max(1, cores() // workers)}
    if is_tame():
        environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = NEVER
    return {
        "cluster_class": LOCAL,
        "cluster_kwargs": {
            "n_workers": workers,
            "threads_per_worker": 1,
            "memory_limit": 0,
            "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            "silence_logs": NEVER,
            "env": environment,
        },
    }


def _from_file(path: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        with open(path, encoding="utf-8") as file:
            said = yaml.safe_load(file)
    except OSError as error:
        raise SettingsError(
            f"--cluster {path}: neither an address (tcp://HOST:8786), a number of local workers, "
            f"nor a YAML file that can be read ({error.strerror})"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict) or not said:
        raise SettingsError(f"{path}: names no cluster; it takes {', '.join(KEYS)}")
    unknown = [str(key) for key in said if key not in KEYS]
    if unknown:
        raise SettingsError(f"{path}: unknown {', '.join(unknown)}; it takes {', '.join(KEYS)}")
    return said


def _made(options: "IndexOptions", spec: dict[str, Any], origin: str) -> TaskRunner[Any]:
    """Return the runner for the arguments, once it is known that it can work."""
    from prefect_dask.task_runners import DaskTaskRunner

    address = spec.get("address")
    if address is not None:
        _check_scheduler(str(address))
    if _elsewhere(spec):
        _check_catalog(options)
        _check_api()
    if address is not None:
        client = {"timeout": ANSWER_S, **(spec.get("client_kwargs") or {})}
        spec = {**spec, "client_kwargs": client}
    try:
        return DaskTaskRunner(**spec)
    except Exception as error:
        raise SettingsError(f"{origin}: {' '.join(str(error).split())}") from error


def _elsewhere(spec: dict[str, Any]) -> bool:
    """Return whether a cluster's workers may be on other machines."""
    address = spec.get("address")
    if address is None:
        return spec.get("cluster_class") not in (None, *LOCAL_NAMES)
    host = urlparse(str(address)).hostname or ""
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
