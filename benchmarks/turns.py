"""Two sides to take turns: this program's extraction in this process, a peer's in its own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from extractor.engine import Engine
from extractor.extract import extract
from extractor.loader import Source, load
from extractor.models import ModelRequest, open_model
from flows.job.extraction import default_workers

Vectors = NDArray[np.float32]
MUCH = 1e9
"""Images to come, for an engine that is to be chosen as for a large archive."""
PEERS = Path(__file__).parent / "peers"


class Ours:
    """The extraction of the photos of a folder, as this program does it.

    Attributes
    ----------
    made_s
        Seconds until the engine that is measured was ready, with what ``auto`` tried on the way.
    vectors
        What the last call of ``end_to_end`` made, in the order of the files.
    """

    def __init__(
        self, folder: Path, network: str, weights: Path, engine: str = "auto", device: str = "auto"
    ) -> None:
        self.folder = folder
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.sources = [Source(n, os.fsencode(path)) for n, path in enumerate(files)]
        self.model = open_model(ModelRequest(network, weights=str(weights)))
        started = time.perf_counter()
        self.engine = Engine(self.model, device=device, engine=engine)
        loaded = load(self.sources, wants=lambda _: True, preprocess=self.model.preprocess)
        pixels = [one.pixels for one in loaded if one.pixels is not None]
        if len(pixels) < len(files):
            sys.exit(f"{len(files) - len(pixels)} of {len(files)} photos can't be read")
        self.pixels = np.stack(pixels)
        self.engine.expect(lambda: MUCH)
        for _ in range(4):  # so many batches, and `auto` has chosen
            self.engine.forward(self.pixels[: self.engine.batch_size])
        self.engine.expect(lambda: MUCH)  # its facts now name what runs from here on
        self.made_s = time.perf_counter() - started
        self.vectors: Vectors = np.empty((0, 0), np.float32)

    def forward(self) -> float:
        """Return images/s of the forward pass, on pixels that are in memory."""
        started = time.perf_counter()
        self.engine.forward(self.pixels)
        return len(self.pixels) / (time.perf_counter() - started)

    def end_to_end(self) -> float:
        """Return images/s from files to vectors."""
        started = time.perf_counter()
        done = extract(
            self.sources,
            wants=lambda _: True,
            preprocess=self.model.preprocess,
            engine=lambda: self.engine,
            workers=default_workers(),
            stop=threading.Event(),
            progress=lambda _done, _failed: None,
        )
        rate = len(done.digests) / (time.perf_counter() - started)
        rows = {digest: row for row, digest in enumerate(done.digests)}
        digests = {read.key: read.digest for read in done.reads}
        self.vectors = done.vectors[[rows[digests[source.key]] for source in self.sources]]
        return rate


class Peer:
    """A script of ``peers`` in a process of its own, which makes a round when it is asked.

    Parameters
    ----------
    script
        Its name, without its suffix.
    folder
        The photos.
    options
        Further options of the script, such as ``network`` and ``batch``.
    python
        The Python that runs it, where that is not this one.
    """

    def __init__(
        self,
        script: str,
        folder: Path,
        options: Mapping[str, object],
        python: Path | None = None,
    ) -> None:
        self.script = script
        words = [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            [
                python or sys.executable,
                PEERS / f"{script}.py",
                f"--photos={folder}",
                "--turns",
                *words,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def rate(self) -> float:
        """Return images/s of one round over all photos."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            sys.exit(f"peers/{self.script}.py ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        return float(answer["images"] / answer["seconds"])

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        if error is not None:
            self._process.kill()
        self._process.communicate()


def cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each row of one to the same row of the other, shape (N,)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray(np.einsum("nd,nd->n", x, y) / lengths)
