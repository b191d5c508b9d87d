"""The process in which a suspect picture is decoded: one after the other, within bounds.

It reads frames from its standard input and answers each on its standard output: a JSON head and a
body, both with their length before them.  An empty head says that it is ready.
"""

import json
import mmap
import os
import signal
import struct
import sys
from contextlib import suppress
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from extractor import decode
from extractor.preprocess import Preprocess, pixels
from extractor.settling import settled
from extractor.thumbnail import Small, thumbnail

_LENGTHS = struct.Struct("<IQ")


def send(file: IO[bytes], head: dict[str, Any], body: bytes | memoryview = b"") -> None:
    """Write one frame."""
    text = json.dumps(head).encode("ascii")
    file.write(_LENGTHS.pack(len(text), len(body)))
    file.write(text)
    file.write(body)
    file.flush()


def receive(file: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Return the head and body of the next frame; None where the other side is gone."""
    lengths = file.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    n_head, n_body = _LENGTHS.unpack(lengths)
    head, body = file.read(n_head), file.read(n_body)
    if len(head) < n_head or len(body) < n_body:
        return None
    return json.loads(head), body


def main(memory_bytes: int, time_s: float) -> None:
    """Answer until the other side closes, or a picture ends this process.

    The other side ends it when a picture takes too long; a little later it ends itself, in case
    that one was killed.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints is no answer
    bounds = _Bounds(memory_bytes)
    send(answers, {})
    while frame := receive(sys.stdin.buffer):
        head, data = frame
        _end_in(time_s)
        got = settled(partial(_pixels, data, _wanted(head)))
        _end_in(0)
        if got.pixels is not None:
            send(answers, {"shape": got.pixels.shape}, got.pixels.data.cast("B"))
        elif got.failure is not None:
            failure = got.failure
            head = {"class": failure.failure_class, "message": failure.message}
            ours = failure.failure_class == "memory" and bounds.are_the_reason()
            if ours:
                head["message"] = f"needs more than {memory_bytes / 2**30:,.1f} GiB of memory"
            send(answers, {**head, "transient": failure.transient and not ours})


def _end_in(seconds: float) -> None:
    """Have the system end this process then, whatever it does; never for 0."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _wanted(head: dict[str, Any]) -> Preprocess | Small | None:
    if "longest" in head:
        return Small(**head)
    return Preprocess.from_json(head) if head else None


def _pixels(data: bytes, preprocess: Preprocess | Small | None) -> tuple[NDArray[np.uint8], float]:
    if isinstance(preprocess, Small):
        made = thumbnail(data, preprocess.longest).to_bytes()
        return np.frombuffer(made, np.uint8), 0.0
    if preprocess is None:
        return np.array(decode.decode(data)), 0.0
    image = decode.open_header(data, target=preprocess.target)
    return pixels(decode.render(image), preprocess), 0.0


class _Bounds:
    """What this process may take, where the system has such bounds."""

    def __init__(self, memory_bytes: int) -> None:
        self._most = memory_bytes
        self._set = False
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out this process goes first
        with suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            self._limit(memory_bytes)
            self._set = True

    def are_the_reason(self) -> bool:
        """Tell whether the machine gives as much memory as this process may not have."""
        if not self._set:
            return False
        try:
            import resource

            self._limit(resource.getrlimit(resource.RLIMIT_AS)[1])
            mmap.mmap(-1, self._most).close()
        except (OSError, ValueError, MemoryError):
            return False
        finally:
            self._limit(self._most)
        return True

    def _limit(self, size: int) -> None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
