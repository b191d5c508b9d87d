"""Progress on stderr: bars on a terminal, a line every 10 s elsewhere, nothing where asked."""

import sys
import threading
import time
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

LINE_EVERY_S = 10.0
"""Least time before the first plain line and between two: a log file stays readable."""

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

    def scanning(self, root: str, n: int) -> None:
        """Say that ``n`` files of a root were seen so far."""
        with self._lock:
            if self._bars is not None:
                self._update(self._bars, f"scan {root}", None, n)
            else:
                self._line(f"scanning {root}: {n} files")

    def pending(self, total: int) -> None:
        """Say how many images are to be read in all; the rate counts from the first call."""
        with self._lock:
            self.total = total
            self._started = self._started or time.monotonic()
            if self._bars is not None:
                self._update(self._bars, "images", total, self.done)

    def advance(self, n: int = 1, failed: int = 0) -> None:
        """Count ``n`` more images as done, ``failed`` of them without a vector."""
        with self._lock:
            self.done += n
            self.failed += failed
            if self._bars is not None:
                self._update(self._bars, "images", self.total, self.done)
            else:
                self._line(self._state())

    def publishing(self, text: str) -> None:
        """Say that an index is being built."""
        self.note(f"building the index: {text}" if text else "building the index")

    def note(self, line: str) -> None:
        """Write one line above the bars; silent kinds keep it to themselves."""
        with self._lock:
            if self.kind == "bars":
                self.console.print(line, markup=False, highlight=False)
            elif self.kind == "lines":
                self._write(line)

    def _state(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / elapsed if self._started else 0.0
        left = max(self.total - self.done, 0)
        line = f"{self.done} of {self.total} images, {rate:.1f}/s"
        if rate and left:
            line += f", {duration(left / rate)} left"
        return line + (f", {self.failed} failed" if self.failed else "")

    def _update(self, bars: "Bars", name: str, total: int | None, done: int) -> None:
        from rich.progress import TaskID

        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, failed="")
        failed = f"{self.failed} failed" if self.failed and total is not None else ""
        bars.update(TaskID(self._tasks[name]), total=total, completed=done, failed=failed)

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


def _bars(console: "Console") -> "Bars":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f}/s" if speed else "")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}", markup=False),
        console=console,
        transient=True,
    )
