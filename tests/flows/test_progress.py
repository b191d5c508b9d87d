import io
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import flows.job.progress
from flows.job.progress import Progress, counted, duration
from tests.flows.terminal import CHECKOUT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_looks_at_the_stream() -> None:
    assert Progress(stream=Terminal()).kind == "bars"
    assert Progress(stream=io.StringIO()).kind == "lines"
    assert Progress(stream=io.StringIO()).console.file is not None


def test_the_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.note("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_silent_says_nothing() -> None:
    stream = io.StringIO()
    with Progress("silent", stream) as progress:
        use(progress)
    assert stream.getvalue() == ""
    assert (progress.done, progress.total, progress.failed) == (3, 10, 1)


def use(progress: Progress) -> None:
    progress.scanning("/p", 5)
    progress.scanned("/p", 1234)
    progress.pending(10)
    progress.advance(1)
    progress.advance(2, failed=1)
    progress.publishing("s", "first")
    progress.note("[bold]not markup[/bold]")


def test_plain_lines_come_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), [1000.0]
    monkeypatch.setattr(flows.job.progress.time, "monotonic", lambda: clock[0])
    progress = Progress("lines", stream)
    progress.scanning("/p", 1)
    clock[0] += 10.0
    progress.scanning("/p", 5)
    progress.scanning("/p", 6)
    progress.pending(100)
    for _ in range(40):
        clock[0] += 1.0
        progress.advance(2, failed=1)
    progress.publishing("s", "tail")
    assert stream.getvalue().splitlines() == [
        "scanning /p: 5 files",
        "20 of 100 images, 2.0/s, 40 s left, 10 failed",
        "40 of 100 images, 2.0/s, 30 s left, 20 failed",
        "60 of 100 images, 2.0/s, 20 s left, 30 failed",
        "80 of 100 images, 2.0/s, 10 s left, 40 failed",
        "building the index of 's': many vectors are newer than it",
    ]


def test_a_line_without_a_total_or_failures_has_no_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows.job.progress, "LINE_EVERY_S", 0.0)
    stream = io.StringIO()
    Progress("lines", stream).advance(3)
    assert stream.getvalue() == "3 of 0 images, 0.0/s\n"


def test_a_second_round_goes_on_counting() -> None:
    with Progress("silent", io.StringIO()) as progress:
        progress.pending(200)
        progress.advance(200)
        progress.pending(50)
        assert (progress.done, progress.total) == (200, 250)
        progress.advance(50)
    assert (progress.done, progress.total) == (250, 250)


def test_a_download_names_its_file_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), [1000.0]
    monkeypatch.setattr(flows.job.progress.time, "monotonic", lambda: clock[0])
    progress = Progress("lines", stream)
    progress.downloading("net.pth", 0, 44_000_000)
    clock[0] += 10.0
    progress.downloading("net.pth", 1_500_000, 44_000_000)
    progress.downloading("other.pth", 0, None)
    clock[0] += 10.0
    progress.downloading("other.pth", 2_000_000, None)
    assert stream.getvalue().splitlines() == [
        "downloading net.pth (44.0 MB)",
        "downloading net.pth: 1.5 MB of 44.0 MB",
        "downloading other.pth (of unknown size)",
        "downloading other.pth: 2.0 MB",
    ]


def test_bars_show_counts_rate_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        use(progress)
        assert progress.console is progress.console
        assert progress._bars is not None
        progress._bars.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "scan /p" in text
    assert "1,234 files" in text
    assert "3 of 10, " in text
    assert "/s, " in text
    assert " left, 1 failed" in text
    assert "[bold]not markup[/bold]" in text
    assert "building the index of 's': it has none yet" in text
    before = stream.getvalue()
    progress.advance(1)
    assert stream.getvalue() == before


def test_a_bar_shows_the_rate_since_the_start_and_not_a_burst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock = [1000.0]
    monkeypatch.setattr(flows.job.progress.time, "monotonic", lambda: clock[0])
    with Progress(stream=Terminal()) as progress:
        progress.pending(64)
        clock[0] += 16.0
        for _ in range(32):
            progress.advance(1)
        assert progress._bars is not None
        (task,) = progress._bars.tasks
        assert task.fields["said"] == "32 of 64, 2.0/s, 16 s left"


def test_the_bar_of_a_scan_is_full_at_its_end_and_gone_where_it_failed() -> None:
    with Progress(stream=Terminal()) as progress:
        for root in ("/p", "/q"):
            progress.scanning(root, 0)
        assert progress._bars is not None
        p, q = progress._bars.tasks
        assert not p.finished
        progress.scanned("/p", 7)
        progress.scanned("/q", None)
        assert (p.finished, p.visible, p.completed, p.total) == (True, True, 7, 7)
        assert (q.finished, q.visible) == (True, False)


TWICE = """
import os, signal, sys, threading
from flows.job.loop import IndexOptions
from flows.job.progress import Progress
from flows.job.signals import stop_on_signals
with Progress() as progress, stop_on_signals(IndexOptions(home=sys.argv[1]), progress):
    progress.pending(5)
    assert progress.kind == "bars"
    os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=progress._lock.acquire).start()  # the worst moment
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_leaving_at_once_gives_the_terminal_its_cursor_back(tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", TWICE, str(tmp_path / "home")]
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(program, cwd=CHECKOUT, env=env, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal's other end is closed
            while some := os.read(ours, 4096):
                shown += some
        os.close(ours)
        assert process.wait(timeout=60) == 130
    assert b"\x1b[?25l" in shown
    assert shown.rstrip().endswith(b"\x1b[?25h")


def test_threads_may_advance_at_once() -> None:
    progress = Progress("silent", io.StringIO())
    progress.pending(8000)

    def work() -> None:
        for _ in range(1000):
            progress.advance(1, failed=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (progress.done, progress.failed) == (8000, 8000)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_things_are_counted_for_people() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 1200)] == [
        "0 files",
        "1 file",
        "2 files",
        "1,200 files",
    ]
    assert counted(2, "folder or file", "folders or files") == "2 folders or files"
