"""Decode suspect pictures in a process beside this one, which may crash, hang or want all memory.

A picture is suspect when a run died with it in work, or when its decoding has not ended in time.
It is decoded alone, in a child with bounds on memory and time.  Where the child ends, the picture
is tried once more, in a new child that has decoded nothing else; if that ends too, the picture is
the reason.  What somebody else ended (a person, the system for want of memory) blames no picture.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from extractor.guarded_child import receive, send
from extractor.preprocess import Preprocess
from extractor.reading import Failure
from extractor.threads import Stopped
from extractor.thumbnail import Small

_POLL_S: Final = 0.1
_GRACE_S: Final = 5.0  # after which the process ends itself: this one is no more
_START: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from extractor.guarded_child import main
main(int(sys.argv[2]), float(sys.argv[3]))
"""
_FROM_OUTSIDE: Final = tuple(
    getattr(signal, name)
    for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the decoding of one picture may take.

    ``time_s`` holds for a thread too; an honest picture of the largest size needs a tenth of it.
    """

    time_s: float = 120.0
    memory_bytes: int = 4 * 2**30


BOUNDS: Final = Bounds()


class _Ended(Exception):
    """The child ended over a picture; ``blames`` says whether the picture can be the reason."""

    def __init__(self, failure_class: str, message: str, *, blames: bool = True) -> None:
        super().__init__(message)
        self.blames = blames
        self.failure = Failure("decode", failure_class, message, transient=not blames)


class Guarded:
    """A decoder in a process of its own, for one picture at a time; any thread may ask.

    The process is started with the first picture; ``close`` ends it.
    """

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        self._turn = threading.Lock()
        self._child: _Child | None = None

    def decode(
        self, data: bytes, preprocess: Preprocess | Small | None, stopped: Callable[[], bool]
    ) -> NDArray[np.uint8] | Failure:
        """Return the pixels of an image file's bytes, or why there are none.

        Parameters
        ----------
        data
            The whole file.
        preprocess
            How the picture becomes pixels, or a thumbnail; None leaves it as it is.
        stopped
            Asked meanwhile whether the result is not wanted any more.

        Returns
        -------
        ndarray or Failure
            Shape ``(3, H, W)``, uint8; ``(H, W, 3)`` of a picture as it is; ``(n,)``, the bytes of
            ``Thumbnail.from_bytes``, of a thumbnail.  Beside the failures of ``extractor.decode``:
            ``crashed``, ``timeout`` and ``memory``, for good, and ``killed``, which blames no
            picture.

        Raises
        ------
        Stopped
            The result is not wanted any more.
        """
        with self._taking_turns(stopped):
            try:
                return self._tried(data, preprocess, stopped)
            except _Ended as first:
                if not first.blames:
                    return first.failure
            try:
                return self._tried(data, preprocess, stopped)
            except _Ended as alone:
                return alone.failure

    def close(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _tried(
        self, data: bytes, preprocess: Preprocess | Small | None, stopped: Callable[[], bool]
    ) -> NDArray[np.uint8] | Failure:
        try:
            if self._child is not None and self._child.is_gone():  # somebody ended it meanwhile
                self.close()
            self._child = self._child or _Child(self._bounds)
            return self._child.ask(data, preprocess, stopped)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _taking_turns(self, stopped: Callable[[], bool]) -> Iterator[None]:
        while not self._turn.acquire(timeout=_POLL_S):
            if stopped():
                raise Stopped
        try:
            yield
        finally:
            self._turn.release()


class _Child:
    """The process."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        most = (str(bounds.memory_bytes), str(bounds.time_s + _GRACE_S))
        words = [sys.executable, "-c", _START, json.dumps(sys.path), *most]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **one_thread},
                start_new_session=True,  # Ctrl-C is for the run, which then ends this
            )
        except OSError as error:
            message = f"no process can be started to decode it in: {error.strerror}"
            raise _Ended("killed", message, blames=False) from error
        self._ready = False

    def ask(
        self, data: bytes, preprocess: Preprocess | Small | None, stopped: Callable[[], bool]
    ) -> NDArray[np.uint8] | Failure:
        """Return what the child makes of a picture; raise ``_Ended`` or ``Stopped``."""
        reader, writer = _pipes(self._process)
        if not self._ready:
            with self._watched(stopped) as why:
                self._ready = receive(reader) is not None
        frame = None
        if self._ready:
            with self._watched(stopped) as why, suppress(OSError):
                send(writer, preprocess.to_json() if preprocess else {}, data)
                frame = receive(reader)
        if frame is None:
            raise self._ended(why)
        head, body = frame
        if "shape" in head:
            return np.frombuffer(bytearray(body), np.uint8).reshape(head["shape"])
        return Failure("decode", head["class"], head["message"], head["transient"])

    def is_gone(self) -> bool:
        """Return whether it has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for file in _pipes(self._process):
            with suppress(OSError):
                file.close()

    @contextmanager
    def _watched(self, stopped: Callable[[], bool]) -> Iterator[list[str]]:
        """Kill the process when its time is over or nobody wants the result; tell which."""
        why: list[str] = []
        over = threading.Event()
        deadline = time.monotonic() + self._bounds.time_s

        def watch() -> None:
            while not over.wait(_POLL_S):
                if stopped() or time.monotonic() > deadline:
                    why.append("stopped" if stopped() else "timeout")
                    self._process.kill()
                    return

        thread = threading.Thread(target=watch, name="guard", daemon=True)
        thread.start()
        try:
            yield why
        finally:
            over.set()
            thread.join()

    def _ended(self, why: list[str]) -> BaseException:
        """Return what it means that the process ended, or closed its pipe."""
        if "stopped" in why:
            return Stopped()
        if not self._ready:
            message = "the process to decode it in did not start"
            return _Ended("killed", message, blames=False)
        if "timeout" in why:
            return _Ended("timeout", f"not decoded in {self._bounds.time_s:g} s, tried alone")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._bounds.time_s)
        code = self._process.returncode
        if code is not None and -code in _FROM_OUTSIDE:
            name = signal.Signals(-code).name
            message = f"its decoder was ended from outside ({name}): short of memory, or a person"
            return _Ended("killed", message, blames=False)
        how = _told(code)
        return _Ended("crashed", f"the decoder crashed on it ({how}), tried alone")


def _told(code: int | None) -> str:
    if code is None:
        return "no answer"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = process.stdout, process.stdin
    if reader is None or writer is None:
        raise ValueError("the process has no pipes")
    return reader, writer
