"""From what was asked to what carries a run's tasks out, and what is refused in one line."""

import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from extractor.device import choose_device, devices
from extractor.errors import DeviceError
from flows.engine.runners import task_runner
from flows.errors import FlowError, SettingsError
from flows.job.loop import IndexOptions
from flows.job.steps import MOST_SLOTS, PlainSteps

pytest.importorskip("prefect_dask")
POSTGRES = "postgresql://dbhost/lookalike"


def on_dask(cluster: str | Path | None = None, **changes: Any) -> IndexOptions:
    cluster = str(cluster) if cluster is not None else None
    made = IndexOptions(home="/h", catalog_url=POSTGRES, runner="dask", cluster=cluster)
    return replace(made, **changes)


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


@contextmanager
def listening() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


def test_devices_by_name() -> None:
    assert devices("cpu") == ["cpu"]
    assert devices("cpu, cpu") == ["cpu", "cpu"]
    if not torch.cuda.is_available():
        assert devices("auto") == [str(choose_device("auto"))]
    assert choose_device("cpu,cuda:99") == torch.device("cpu")
    for wrong in ("cpu,gpu", "cpu,", "cuda:99"):
        with pytest.raises(DeviceError, match="device"):
            devices(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_every_gpu_is_worked_on() -> None:
    assert devices("auto") == [f"cuda:{n}" for n in range(torch.cuda.device_count())]


def test_threads_have_a_slot_for_each_device() -> None:
    runner = task_runner(IndexOptions(home="/h"))
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner.duplicate() == ThreadPoolTaskRunner(max_workers=MOST_SLOTS)
    with PlainSteps() as steps:
        assert (steps.slots("cpu"), steps.slots("cpu,cpu,cpu")) == (1, 3)
        assert steps.neighbours("cpu,cpu") == 2


def test_a_number_is_that_many_processes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
    runner: Any = task_runner(on_dask("3"))
    assert runner.cluster_class == "distributed.LocalCluster"
    said = runner.cluster_kwargs
    assert (said["n_workers"], said["threads_per_worker"], said["memory_limit"]) == (3, 1, 0)
    assert said["env"]["OMP_NUM_THREADS"] >= 1
    assert "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL" in said["env"]
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    runner = task_runner(on_dask(device="cpu,cpu,cpu,cpu"))
    assert runner.cluster_kwargs["n_workers"] == 4
    assert "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL" not in runner.cluster_kwargs["env"]
    runner = task_runner(on_dask(device="cpu"))
    assert runner.cluster_kwargs["n_workers"] == 2


def test_a_file_is_what_prefect_dask_takes(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "cluster_class: distributed.LocalCluster\n"
        "cluster_kwargs: {n_workers: 1}\nadapt_kwargs: {maximum: 3}\n",
    )
    runner: Any = task_runner(on_dask(path))
    runner.cluster_kwargs.pop("silence_logs", None)  # there if this process once ran a command
    assert runner.cluster_kwargs == {"n_workers": 1}
    assert runner.adapt_kwargs == {"maximum": 3}
    slurm = written(
        tmp_path,
        "cluster_class: dask_jobqueue.SLURMCluster\n"
        "cluster_kwargs: {cores: 1, memory: 32GB, n_workers: 8}\n",
    )
    with temporary_settings({PREFECT_API_URL: "http://login1:4200/api"}):
        runner = task_runner(on_dask(slurm))
    assert runner.cluster_class == "dask_jobqueue.SLURMCluster"
    assert runner.cluster_kwargs["n_workers"] == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no cluster; it takes address, cluster_class"),
        ("- a\n", "names no cluster"),
        ("cluster: [1", "no YAML"),
        ("n_workers: 3\n", "unknown n_workers; it takes address"),
        ("cluster_class: distributed.NoSuchCluster\n", "NoSuchCluster"),
        ("cluster_class: no_such_module.Cluster\n", "no_such_module"),
        ("cluster_class: distributed\n", "distributed is no class"),
        ("cluster_class: 3\n", "cluster_class has to be text"),
        ("cluster_kwargs: 3\n", "cluster_kwargs has to be a mapping"),
        ("cluster_kwargs: {nworkers: 2}\n", "takes no nworkers: did you mean n_workers?"),
        (
            "cluster_class: distributed.LocalCluster\ncluster_kwargs: {colour: red}\n",
            "LocalCluster takes no colour",
        ),
        ("address: 'tcp://127.0.0.1:1'\n", "127.0.0.1:1"),
        ("address: 'tcp://h:1'\ncluster_class: distributed.LocalCluster\n", "Cannot specify"),
        ("address: 'node7:8786'\n", "node7:8786 is no address .* looks like tcp://node7:8786"),
        ("address: node7\n", "node7 is no address .* looks like tcp://HOST:8786"),
        ("client_kwargs: {asynchronous: true}\n", "asynchronous"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://login1:4200/api"}),
        pytest.raises(FlowError, match=said) as caught,
    ):
        # What is wrong in itself is said before what does not go with this catalog.
        task_runner(on_dask(written(tmp_path, text), catalog_url=None))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("0", "--cluster 0: no worker would work; give a number from 1 on"),
        ("http://node7:8787", "http://node7:8787 is no address .* looks like tcp://HOST:8786"),
        ("tpc://node7:8786", "tpc://node7:8786 is no address .* looks like tcp://node7:8786"),
        ("node7:8786", "node7:8786 is no address .* looks like tcp://node7:8786"),
        ("tcp://:8786", "tcp://:8786 is no address"),
        ("tcp://node7:port", "tcp://node7:port is no address"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_said(cluster: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        task_runner(on_dask(cluster, catalog_url=None))
    assert "\n" not in str(caught.value)


def test_what_workers_of_this_machine_take_is_let_through(tmp_path: Path) -> None:
    takes = "n_workers: 1, threads_per_worker: 1, memory_limit: 0, resources: {GPU: 1}"
    for name in ("distributed.LocalCluster", "distributed.deploy.local.LocalCluster"):
        path = written(tmp_path, f"cluster_class: {name}\ncluster_kwargs: {{{takes}}}\n")
        runner: Any = task_runner(on_dask(path, catalog_url=None))  # is known to be here
        assert runner.cluster_kwargs["resources"] == {"GPU": 1}


def test_a_device_that_is_not_here_is_refused_before_workers_start() -> None:
    for cluster in (None, "2"):
        with pytest.raises(DeviceError, match="no device 'cuda:99'"):
            task_runner(on_dask(cluster, device="cuda:99"))


def test_what_is_no_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="number of local workers"):
        task_runner(on_dask(tmp_path / "missing.yaml"))
    with listening() as port:
        free = port
    with pytest.raises(FlowError, match="no Dask scheduler answers at tcp"):
        task_runner(on_dask(f"tcp://127.0.0.1:{free}"))


def test_workers_elsewhere_need_an_api_that_they_reach(tmp_path: Path) -> None:
    slurm = written(tmp_path, "cluster_class: dask_jobqueue.SLURMCluster\n")
    for url in ("http://127.0.0.1:4200/api", "http://localhost:4200/api", None):
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(FlowError, match=r"--host 0\.0\.0\.0"),
        ):
            task_runner(on_dask(slurm))
    with listening() as port, temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        here: Any = task_runner(on_dask(f"tcp://127.0.0.1:{port}"))  # on this machine
        assert here.address == f"tcp://127.0.0.1:{port}"
        assert here.client_kwargs["timeout"] == 10


def test_workers_elsewhere_need_a_catalog_that_they_reach(tmp_path: Path) -> None:
    slurm = written(tmp_path, "cluster_class: dask_jobqueue.SLURMCluster\n")
    with (
        temporary_settings({PREFECT_API_URL: "http://login1:4200/api"}),
        pytest.raises(FlowError, match="LOOKALIKE_CATALOG_URL") as caught,
    ):
        task_runner(on_dask(slurm, catalog_url=None))
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (2, 0)
    runner: Any = task_runner(on_dask("2", catalog_url=None))  # on this machine
    assert runner.cluster_kwargs["n_workers"] == 2


def test_without_prefect_dask_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(FlowError, match=r"pip install 'lookalike\[dask\]'"):
        task_runner(on_dask("2"))
