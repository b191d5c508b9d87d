"""Progress on stderr: bars on a terminal, a line every 10 s elsewhere, nothing where asked."""

import os
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Self

from flows.commands.show import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

LINE_EVERY_S = 10.0
"""Least time before the first plain line and between two: a log file stays readable."""
SHOW_CURSOR = b"\x1b[?25h\n"
BECAUSE = {
    "first": "it has none yet",
    "tail": "many vectors are newer than it",
    "dead": "many of its vectors are dead",
    "outgrown": "it is of a kind for another number of vectors",
    "end": "at the end of a back-fill",
    "requested": "as requested",
}
"""What each reason for publishing an index means, in a few words."""

Kind = Literal["auto", "bars", "lines", "silent"]


class Progress:
    """Shows files seen by a scan, then images done with rate and time left.

    Any thread may call; use as a context manager.

    Parameters
    ----------
    kind
        ``bars``, ``lines``, ``silent``, or ``auto``: bars where the stream is a terminal.
    stream
        Where to write; None is standard error.
    """

    def __init__(self, kind: Kind = "auto", stream: IO[str] | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        if kind == "auto":
            kind = "bars" if self.stream.isatty() else "lines"
        self.kind: Kind = kind
        self.total = self.done = self.failed = 0
        self._lock = threading.RLock()
        self._console: Console | None = None
        self._bars: Bars | None = None
        self._tasks: dict[str, int] = {}
        self._started = 0.0
        self._last_line = time.monotonic()  # a run of a few seconds needs no lines

    @property
    def console(self) -> "Console":
        """Rich's console on the stream; log handlers that share it do not garble the bars."""
        with self._lock:
            if self._console is None:
                from rich.console import Console

                self._console = Console(file=self.stream, soft_wrap=True)
            return self._console

    def __enter__(self) -> Self:
        if self.kind == "bars":
            self._bars = _bars(self.console)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None

    def abandon(self) -> None:
        """Give the terminal its cursor back, for a process that ends at once: takes no lock."""
        if self._bars is not None:
            with suppress(OSError, ValueError):
                os.write(self.stream.fileno(), SHOW_CURSOR)

    def scanning(self, root: str, n: int) -> None:
        """Say that ``n`` files of a root were seen so far."""
        said = counted(n, "file")
        self._show(f"scan {root}", n, None, said, f"scanning {root}: {said}")

    def scanned(self, root: str, n: int | None) -> None:
        """Say that a scan has ended, with ``n`` files; None where it says nothing of the root."""
        root = printable(root)
        with self._lock:
            if self._bars is not None:
                self._update(self._bars, f"scan {root}", n or 0, n or 0, counted(n or 0, "file"))
                if n is None:
                    self._hide(self._bars, f"scan {root}")

    def downloading(self, name: str, done: int, size: int | None) -> None:
        """Say how many bytes of a file of weights have come; ``size`` is None where unknown."""
        whole = f"{size / 1e6:,.1f} MB" if size else "of unknown size"
        if not done:
            self.note(f"downloading {name} ({whole})")
        said = f"{done / 1e6:,.1f} MB of {whole}" if size else f"{done / 1e6:,.1f} MB"
        self._show(f"download {name}", done, size, said, f"downloading {name}: {said}")

    def pending(self, more: int) -> None:
        """Say that ``more`` images are to be read now; the rate counts from the first call."""
        with self._lock:
            self.total = self.done + more
            self._started = self._started or time.monotonic()
            if self._bars is not None:
                self._update(self._bars, "images", self.done, self.total, self._state())

    def advance(self, n: int = 1, failed: int = 0) -> None:
        """Count ``n`` more images as done, ``failed`` of them without a vector."""
        with self._lock:
            self.done += n
            self.failed += failed
            self._show("images", self.done, self.total, self._state(), self._state("images"))

    def writing(self, out: str, n: int, total: int) -> None:
        """Say that ``n`` images of an output are written so far."""
        said = f"{n:,} of {total:,}"
        self._show(f"write {out}", n, total, said, f"writing {out}: {said}")

    def learning(self, n: int, total: int) -> None:
        """Say that ``n`` vectors were learnt from so far."""
        said = f"{n:,} of {total:,}"
        self._show("learn from vectors", n, total, said, f"learning from vectors: {said}")

    def publishing(self, space: str, reason: str) -> None:
        """Say that the index of a space is being built, and why."""
        self.note(f"building the index of '{space}': {BECAUSE.get(reason, reason)}")

    def note(self, line: str) -> None:
        """Write one line above the bars; silent kinds keep it to themselves."""
        line = printable(line)
        with self._lock:
            if self.kind == "bars":
                self.console.print(line, markup=False, highlight=False)
            elif self.kind == "lines":
                self._write(line)

    def _state(self, what: str = "") -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed if self._started else 0.0
        left = max(self.total - self.done, 0)
        of = f"{self.done:,} of {self.total:,} {what}".rstrip()
        said = [of, f"{rate:,.1f}/s"]
        if rate and left:
            said.append(f"{duration(left / rate)} left")
        if self.failed:
            said.append(f"{self.failed:,} failed")
        return ", ".join(said)

    def _show(self, name: str, done: int, total: int | None, said: str, line: str) -> None:
        """Move a bar, or write a line where one is due."""
        name, line = printable(name), printable(line)
        with self._lock:
            if self._bars is not None:
                self._update(self._bars, name, done, total, said)
            else:
                self._line(line)

    def _update(self, bars: "Bars", name: str, done: int, total: int | None, said: str) -> None:
        from rich.progress import TaskID

        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, said="")
        bars.update(TaskID(self._tasks[name]), total=total, completed=done, said=said)

    def _hide(self, bars: "Bars", name: str) -> None:
        from rich.progress import TaskID

        bars.update(TaskID(self._tasks[name]), visible=False)

    def _line(self, line: str) -> None:
        now = time.monotonic()
        if self.kind == "lines" and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._write(line)

    def _write(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Return a time for people: ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def counted(n: int, one: str, many: str = "") -> str:
    """Return a number of things for people: ``1 file``, ``1,200 files``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _bars(console: "Console") -> "Bars":
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        console=console,
        transient=True,
    )
