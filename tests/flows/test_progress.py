import io
import re
import threading

import pytest

import flows.progress
from flows.progress import Progress, duration


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
    progress.pending(10)
    progress.advance(1)
    progress.advance(2, failed=1)
    progress.publishing("")
    progress.note("[bold]not markup[/bold]")


def test_plain_lines_come_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), [1000.0]
    monkeypatch.setattr(flows.progress.time, "monotonic", lambda: clock[0])
    progress = Progress("lines", stream)
    progress.scanning("/p", 4)
    clock[0] += 10.0
    progress.scanning("/p", 5)
    progress.scanning("/p", 6)
    progress.pending(100)
    for _ in range(40):
        clock[0] += 1.0
        progress.advance(2, failed=1)
    progress.publishing("Flat")
    assert stream.getvalue().splitlines() == [
        "scanning /p: 5 files",
        "20 of 100 images, 2.0/s, 40 s left, 10 failed",
        "40 of 100 images, 2.0/s, 30 s left, 20 failed",
        "60 of 100 images, 2.0/s, 20 s left, 30 failed",
        "80 of 100 images, 2.0/s, 10 s left, 40 failed",
        "building the index: Flat",
    ]


def test_a_line_without_a_total_or_failures_has_no_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flows.progress, "LINE_EVERY_S", 0.0)
    stream = io.StringIO()
    Progress("lines", stream).advance(3)
    assert stream.getvalue() == "3 of 0 images, 0.0/s\n"


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
    assert "3/10" in text
    assert "/s" in text
    assert "1 failed" in text
    assert "[bold]not markup[/bold]" in text
    assert "building the index" in text
    before = stream.getvalue()
    progress.advance(1)
    assert stream.getvalue() == before


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
