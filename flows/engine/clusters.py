"""What ``--cluster`` says: a scheduler's address, a number of local workers, or a YAML file.

It is read to the arguments of prefect-dask's ``DaskTaskRunner``, and what can't be right in them is
refused here, where it can still be said in one line.
"""

import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlparse

from flows.engine.crew import NEVER, is_tame
from flows.errors import SettingsError
from flows.job.engines import cores

LOCAL = "distributed.LocalCluster"
LEAST_WORKERS = 2
"""Local workers where their number is not said and there are no GPUs to count."""
KEYS = ("address", "cluster_class", "cluster_kwargs", "adapt_kwargs", "client_kwargs")
"""What a cluster's file may say: arguments of ``DaskTaskRunner``."""
SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "ucxx")
"""How a scheduler's address may begin."""


def cluster_of(cluster: str | None, device: str) -> tuple[dict[str, Any], str]:
    """Return the arguments of the runner, and where they come from in a message.

    Parameters
    ----------
    cluster
        What was said; None for workers on this machine.
    device
        Where the forward passes are to run.  Imports torch for workers on this machine.

    Raises
    ------
    SettingsError
        It is neither an address, a number of workers, nor a usable file.
    DeviceError
        The workers are on this machine, and a device is not.
    """
    if cluster is None or cluster.isdecimal():
        if cluster is not None and not int(cluster):
            raise SettingsError(
                f"--cluster {cluster}: no worker would work; give a number from 1 on, or leave it"
                " out for one worker a GPU"
            )
        return _local(device, int(cluster or 0)), "--cluster"
    if "://" in cluster:
        return {"address": _address(cluster, "--cluster")}, "--cluster"
    return _from_file(cluster), cluster


def check_keywords(made: Any, keywords: Mapping[str, Any], origin: str) -> None:
    """Refuse a keyword that a cluster on this machine does not take: its workers would, too late.

    Raises ``SettingsError``.
    """
    from distributed import Nanny, Worker

    if "worker_class" in keywords:
        return
    known = {
        name
        for kind in (made, Nanny, Worker)
        for base in kind.__mro__[:-1]
        for name, said in inspect.signature(base).parameters.items()
        if said.kind is not said.VAR_KEYWORD
    }
    for name in keywords:
        if name not in known:
            close = get_close_matches(str(name), known, 1)
            meant = f": did you mean {close[0]}?" if close else ""
            raise SettingsError(f"{origin}: {made.__name__} takes no {name}{meant}")


def _local(device: str, workers: int) -> dict[str, Any]:
    """Return a cluster of worker processes on this machine."""
    from extractor.device import devices

    found = devices(device)
    if not workers:
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


def _address(address: str, origin: str) -> str:
    """Return a scheduler's address, or refuse what can't be one."""
    parts = urlparse(address)
    try:
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        usable = False
    if usable:
        return address
    place = address.rpartition("/")[2] if "://" in address else address
    meant = (
        f"tcp://{place}"
        if _is_place(place) and not parts.scheme.startswith("http")
        else "tcp://HOST:8786"
    )
    raise SettingsError(
        f"{origin}: {address} is no address of a Dask scheduler; it looks like {meant}"
    )


def _is_place(text: str) -> bool:
    """Say whether a text is a host and a port."""
    return re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", text) is not None


def _from_file(path: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        with open(path, encoding="utf-8") as file:
            said = yaml.safe_load(file)
    except OSError as error:
        if _is_place(path):
            _address(path, "--cluster")
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
    _check_values(said, path)
    return said


def _check_values(said: Mapping[str, Any], path: str) -> None:
    """Refuse values that are of the wrong kind: text for the first two keys, else mappings."""
    for key, value in said.items():
        wanted, kind = (str, "text") if key in KEYS[:2] else (dict, "a mapping, name: value")
        if value is not None and not isinstance(value, wanted):
            raise SettingsError(f"{path}: {key} has to be {kind}, not {value!r}")
    if said.get("address") is not None:
        _address(said["address"], path)
