import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from extractor.engine import Engine
from extractor.extract import Extracted, extract
from extractor.loader import Source, load
from tests.extractor.small import DIM, PREPROCESS, picture, small_engine, small_model

Files = Callable[..., list[Source]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Return a function that writes contents and returns their sources, keys from 10."""

    def write(*contents: bytes | None) -> list[Source]:
        sources = []
        for number, content in enumerate(contents):
            path = tmp_path / f"{number}.png"
            if content is not None:
                path.write_bytes(content)
            sources.append(Source(10 + number, os.fsencode(path)))
        return sources

    return write


class Run:
    """One call of ``extract`` and what it told its caller."""

    def __init__(self, batch_size: int = 3, module: nn.Module | None = None) -> None:
        self.stop = threading.Event()
        self.steps: list[tuple[int, int]] = []
        self.asked: list[bytes] = []
        self.engines = 0
        self.known: set[bytes] = set()
        self.batch_size = batch_size
        self.module = module
        self.after: Callable[[], None] = lambda: None

    def engine(self) -> Engine:
        self.engines += 1
        return small_engine(self.module, self.batch_size)

    def wants(self, digest: bytes) -> bool:
        self.asked.append(digest)
        return digest not in self.known

    def progress(self, done: int, failed: int) -> None:
        self.steps.append((done, failed))
        self.after()

    def __call__(self, sources: list[Source] | Iterator[Source], workers: int = 2) -> Extracted:
        return extract(
            sources,
            wants=self.wants,
            preprocess=PREPROCESS,
            engine=self.engine,
            workers=workers,
            stop=self.stop,
            progress=self.progress,
        )

    @property
    def total(self) -> tuple[int, int]:
        return sum(s[0] for s in self.steps), sum(s[1] for s in self.steps)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def alone(source: Source) -> NDArray[np.float32]:
    """Return the vector of one file on its own."""
    (loaded,) = load([source], wants=lambda _: True, preprocess=PREPROCESS, workers=1)
    assert loaded.pixels is not None
    return small_engine().forward(loaded.pixels[None])[0]


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
def test_each_picture_gets_the_vector_it_has_alone(files: Files, batch_size: int) -> None:
    contents = [picture(i) for i in range(8)]
    sources = files(*contents)
    run = Run(batch_size)
    done = run(sources)
    assert done.digests == [sha(c) for c in contents]
    np.testing.assert_allclose(done.vectors, [alone(s) for s in sources], atol=1e-6)
    assert [r.key for r in done.reads] == [s.key for s in sources]
    for read, source, content in zip(done.reads, sources, contents, strict=True):
        stat = os.stat(source.path)
        assert read.digest == sha(content)
        assert read.sig == (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        assert read.read_at_ns >= stat.st_ctime_ns - 10_000_000_000
    assert done.failures == []
    assert run.total == (8, 0)
    assert run.engines == 1
    assert set(done.seconds) == {"read", "hash", "decode", "wait", "model", "forward", "total"}
    assert all(s > 0 for s in done.seconds.values())
    assert done.seconds["forward"] + done.seconds["wait"] <= done.seconds["total"]


def test_what_is_known_needs_no_engine(files: Files) -> None:
    contents = [picture(i) for i in range(3)]
    run = Run()
    run.known = {sha(c) for c in contents}
    done = run(files(*contents))
    assert [r.digest for r in done.reads] == [sha(c) for c in contents]
    assert done.digests == []
    assert done.vectors.shape == (0, 0)
    assert (run.engines, run.total) == (0, (3, 0))


def test_no_sources() -> None:
    run = Run()
    done = run(iter([]))
    assert (done.reads, done.failures, done.digests, run.engines) == ([], [], [], 0)


def test_equal_content_goes_forward_once(files: Files) -> None:
    contents = [picture(i) for i in (0, 1, 0, 0, 2, 1)]
    run = Run(batch_size=2)
    done = run(files(*contents), workers=4)
    assert sorted(done.digests) == sorted({sha(c) for c in contents})
    assert len(done.reads) == 6
    assert len(run.asked) == 3
    assert run.total == (6, 0)


def test_a_bad_file_shifts_nobody_s_vector(files: Files) -> None:
    good = [picture(i) for i in range(6)]
    contents = [good[0], b"no picture", good[1], None, good[2], good[3][:200], *good[4:]]
    sources = files(*contents)
    run = Run(batch_size=2)
    done = run(sources)
    found = dict(zip(done.digests, done.vectors, strict=True))
    for source, content in zip(sources, contents, strict=True):
        if content in good:
            assert content is not None
            np.testing.assert_allclose(found.pop(sha(content)), alone(source), atol=1e-6)
    assert found == {}
    failures = {f.key: f for f in done.failures}
    assert set(failures) == {11, 13, 15}
    assert failures[11].failure.stage == failures[15].failure.stage == "decode"
    assert failures[11].digest == sha(b"no picture")
    assert failures[11].sig == next(r.sig for r in done.reads if r.key == 11)
    assert failures[13].failure.stage == "read"
    assert failures[13].digest is None
    assert {r.key for r in done.reads} == {s.key for s in sources} - {13}
    assert run.total == (8, 3)


class Refuses(nn.Module):
    """The small network, which cannot bear white pictures and sees nothing in black ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_model().module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(1, 2, 3))
        if (means > 2.3).any():
            raise ValueError("too bright")
        out: torch.Tensor = self.inner(x)
        return torch.where((means < -1.9)[:, None], torch.zeros_like(out), out)


def flat(level: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (30, 30), (level,) * 3).save(out, "PNG")
    return out.getvalue()


def test_forward_failures_belong_to_their_picture(files: Files) -> None:
    contents = [picture(0), flat(255), picture(1), flat(0), picture(2)]
    run = Run(batch_size=5, module=Refuses())
    done = run(files(*contents))
    assert done.digests == [sha(contents[i]) for i in (0, 2, 4)]
    assert done.vectors.shape == (3, DIM)
    np.testing.assert_allclose(np.linalg.norm(done.vectors, axis=1), 1, atol=1e-6)
    classes = {f.key: (f.failure.stage, f.failure.failure_class) for f in done.failures}
    assert classes == {11: ("forward", "error"), 13: ("forward", "zero")}
    assert {f.digest for f in done.failures} == {sha(flat(255)), sha(flat(0))}
    assert len(done.reads) == 5
    assert run.total == (5, 2)


@pytest.mark.usefixtures("no_thread_left")
def test_a_stop_keeps_what_is_finished_and_gives_back_the_rest(files: Files) -> None:
    contents = [picture(i) for i in range(20)]
    sources = files(*contents, contents[19], contents[0])
    run = Run(batch_size=4)
    run.after = run.stop.set  # after the first batch, or the second that ran meanwhile
    done = run(sources)
    n = len(done.digests)
    assert n in (4, 8)
    assert done.digests == [sha(c) for c in contents[:n]]
    np.testing.assert_allclose(done.vectors, [alone(s) for s in sources[:n]], atol=1e-6)
    assert [r.key for r in done.reads] == [s.key for s in sources[:n]]
    assert run.total[0] == n


def test_a_stop_from_the_start_reads_nothing(files: Files) -> None:
    run = Run()
    run.stop.set()
    done = run(files(picture(0)))
    assert (done.reads, done.digests, run.engines) == ([], [], 0)


def test_a_stop_keeps_files_whose_image_is_settled(files: Files) -> None:
    known = picture(7)
    contents = [known, b"broken", picture(0), picture(1), known, *(picture(i) for i in range(2, 9))]
    run = Run(batch_size=4)
    run.known = {sha(known)}
    seen: list[int] = []

    def stop_at_the_third() -> None:
        seen.append(1)
        if len(seen) == 3:  # both known files and the broken one; a batch is half full
            run.stop.set()

    run.after = stop_at_the_third
    done = run(files(*contents))
    assert [r.key for r in done.reads] == [10, 11, 14]
    assert [f.key for f in done.failures] == [11]
    assert done.digests == []


@pytest.mark.usefixtures("no_thread_left")
def test_trouble_of_the_caller_s_comes_out(files: Files) -> None:
    sources = files(*(picture(i) for i in range(9)))

    def broken() -> Engine:
        raise RuntimeError("no weights")

    def fails(_digest: bytes) -> bool:
        raise LookupError("no catalog")

    run = Run()
    run.engine = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no weights"):
        run(sources)
    run = Run()
    run.wants = fails  # type: ignore[method-assign]
    with pytest.raises(LookupError, match="no catalog"):
        run(sources)


def test_decoding_goes_on_while_a_batch_runs(files: Files) -> None:
    """The forward pass of the first batch waits until the pictures behind it are decoded."""
    contents = [picture(i) for i in range(12)]
    run = Run(batch_size=2)
    waited: list[bool] = []

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_model().module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(200):
                if len(run.asked) == len(contents):
                    break
                threading.Event().wait(0.05)
            waited.append(len(run.asked) == len(contents))
            out: torch.Tensor = self.inner(x)
            return out

    run.module = Waits()
    run(files(*contents))
    assert waited == [True] * 6


def test_the_module_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, extractor.extract; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
