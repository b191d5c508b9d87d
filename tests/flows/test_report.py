import json
import re
from typing import Any

import pytest

from flows.job.report import Report, dump
from flows.job.troubles import EXIT_ORDER
from flows.job.wording import STAGES, TOO_SHORT, WHY
from storage.changes import Reason

KEYS = [
    *("run_id", "space", "scanned", "unchanged", "new", "changed", "moved", "touched"),
    *("missing", "extracted", "reused", "failed", "duration_s", "images_per_s", "stages", "index"),
]


SECONDS = {"wait": 1.0, "forward": 4.0, "commit": 0.5, "decode": 9.0, "total": 5.5}


def scan(**values: Any) -> dict[str, Any]:
    base = {"root": "/p", "scanned": 0, "unchanged": 0, "reasons": {}, "future": 0}
    return {**base, "unreadable": [], "unreadable_count": 0, "duration_s": 0.1, **values}


def chunk(**values: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"outcomes": {}, "failures": {}, "seconds": {}}
    return {**base, "engines": {}, "warnings": [], **values}


@pytest.fixture
def report() -> Report:
    made = Report(run_id="r1", space="resnet18-avgpool")
    made.add_scan(
        scan(
            scanned=30,
            unchanged=10,
            reasons={
                "new": 5,
                "size": 4,
                "mtime": 3,
                "ctime": 2,
                "inode": 1,
                "missing": 6,
                "back": 1,
            },
        )
    )
    made.add_scan(scan(root="/q", scanned=12, unchanged=9, reasons={"new": 2, "excluded": 1}))
    outcomes = {"extracted": 8, "moved": 2, "touched": 3, "copied": 1, "reused": 1, "failed": 2}
    engines = {"torch 2.15": 3, "onnxruntime 1.32": 5}
    made.add_chunk(
        chunk(outcomes=outcomes, failures={"truncated": 2}, seconds=SECONDS, engines=engines)
    )
    last = {"seconds": {"forward": 1.0}, "engines": {"onnxruntime 1.32": 2}}
    made.add_chunk(chunk(outcomes={"extracted": 2, "busy": 1}, **last))
    made.index = {"space": "resnet18-avgpool", "factory": "Flat", "n": 10, "row_end": 10}
    made.finish(5.0)
    return made


def test_counts_follow_scans_and_chunks(report: Report) -> None:
    values = report.to_json()
    assert list(values)[: len(KEYS)] == KEYS
    assert (values["scanned"], values["unchanged"], values["new"]) == (42, 19, 7)
    assert values["changed"] == 4 + 3 + 2 + 1
    assert (values["missing"], values["back"], values["excluded"]) == (6, 1, 1)
    assert (values["extracted"], values["moved"], values["touched"]) == (10, 2, 3)
    assert (values["copied"], values["reused"], values["failed"], values["busy"]) == (1, 1, 2, 1)
    assert values["stages"] == {**SECONDS, "forward": 5.0}
    assert values["engines"] == {"torch 2.15": 3, "onnxruntime 1.32": 7}
    assert values["images_per_s"] == 2.0
    assert [root["root"] for root in values["roots"]] == ["/p", "/q"]
    assert values["limits"] == STAGES["forward"]


def test_what_several_workers_say_of_an_engine_is_told_once(report: Report) -> None:
    for warnings in (["onnx does not take it"], ["onnx does not take it", "other"], []):
        report.add_chunk(chunk(warnings=warnings))
    assert report.warnings == ["onnx does not take it", "other"]


def test_every_reason_of_a_scan_has_words() -> None:
    assert set(WHY) == {reason.value for reason in Reason}


def test_paths_that_are_not_utf8_survive_json() -> None:
    text = dump(["/p/\udce9.jpg"])
    assert text.isascii()
    assert "\\udce9" in text
    assert json.loads(text) == ["/p/\udce9.jpg"]


def test_the_gravest_trouble_gives_the_exit_code() -> None:
    report = Report()
    assert report.exit_code() == 0
    codes = []
    report.failed = 1
    codes.append(report.exit_code())
    report.add_held("/p", "held by run x")
    codes.append(report.exit_code())
    report.add_unavailable("/q", "gone")
    codes.append(report.exit_code())
    report.extracted = 1
    report.finish(1.0, max_failures=0.4)
    codes.append(report.exit_code())
    report.trouble(5, "the index could not be written")
    codes.append(report.exit_code())
    report.interrupted = True
    codes.append(report.exit_code())
    assert tuple(reversed(codes)) == EXIT_ORDER
    assert report.trouble_lines() == [
        "the index could not be written",
        "50% of the images failed, --max-failures allows 40%",
        "gone",
        "held by run x",
    ]


@pytest.mark.parametrize(("allowed", "code"), [(None, 3), (0.5, 3), (0.49, 7), (1.0, 3), (0.0, 7)])
def test_the_share_of_failures_has_a_limit(allowed: float | None, code: int) -> None:
    report = Report(extracted=2, failed=2)
    report.finish(1.0, allowed)
    assert report.exit_code() == code


def test_no_images_no_share() -> None:
    report = Report()
    report.finish(0.0, 0.0)
    assert (report.exit_code(), report.images_per_s, report.limits) == (0, 0.0, "")


def test_nothing_changed_is_one_line() -> None:
    report = Report(space="s")
    report.add_scan(scan(scanned=10_000, unchanged=10_000))
    report.finish(1.23)
    assert report.to_text() == "Nothing changed: 10,000 files scanned in 1.2 s."


def test_the_text_says_why_and_stays_short(report: Report) -> None:
    text = report.to_text()
    assert len(text.splitlines()) <= 11
    assert text.startswith("Done: 10 images extracted into space resnet18-avgpool in 5.0 s, 2.0 im")
    for said in (
        "42 files, 19 unchanged",
        "7 new",
        "engine     torch 2.15 for 3 images, onnxruntime 1.32 for 7 images",
        "4 size differs",
        "3 modification time differs",
        "6 gone",
        "2 moved",
        "1 copied",
        "3 touched: same bytes",
        "2 truncated",
        "seconds    wait 1.0, forward 5.0, commit 0.5",
        "in threads decode 9.0",
        "Flat, 10 vectors",
        STAGES["forward"],
    ):
        assert said in text


def test_an_interrupted_run_says_so_and_what_is_left(report: Report) -> None:
    report.interrupted = True
    assert headline(report).startswith("Interrupted: 10 images")
    assert "left" not in headline(report)
    report.pending = 1200
    assert headline(report).endswith(" in 5.0 s, 2.0 images/s, 1,200 files left")
    early = Report(interrupted=True)
    early.finish(0.4)
    assert headline(early) == "Interrupted: 0 images extracted in 0.4 s"


def headline(report: Report) -> str:
    return report.to_text().splitlines()[0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (4, "Done, but a root is unavailable: 10 images"),
        (5, "Done, but the store is in trouble: 10 images"),
        (6, "Done, but another run holds a root: 10 images"),
        (7, "Done, but too many images failed: 10 images"),
    ],
)
def test_a_run_with_a_trouble_is_not_simply_done(report: Report, code: int, said: str) -> None:
    report.trouble(code, "x")
    assert report.exit_code() == code
    assert headline(report).startswith(said)
    report.interrupted = True
    assert headline(report).startswith("Interrupted: ")


def test_a_run_with_a_trouble_alone_is_not_called_unchanged() -> None:
    report = Report()
    report.add_unavailable("/q", "gone")
    report.finish(0.5)
    assert headline(report) == "Done, but a root is unavailable: 0 images extracted in 0.5 s"


def test_a_run_that_has_only_published_says_so() -> None:
    report = Report(space="a, b")
    report.add_scan(scan(scanned=3, unchanged=3))
    report.index = {"space": "b", "factory": "Flat", "n": 1234, "row_end": 1234}
    report.finish(0.5)
    assert headline(report) == "Done: 0 images extracted into space a, b in 0.5 s"
    assert "  index      Flat, 1,234 vectors of space b" in report.to_text()


def test_the_recall_of_a_published_index_is_told() -> None:
    report = Report(space="s")
    report.add_scan(scan(scanned=3, reasons={"new": 3}))
    report.add_chunk(chunk(outcomes={"extracted": 2, "copied": 1, "failed": 1}))
    index = {"space": "s", "factory": "SQ8", "n": 324, "row_end": 324, "fallen": None}
    report.index = {**index, "recall": 0.98765}
    report.finish(0.5)
    assert "  index      SQ8, 324 vectors, recall@10 0.988" in report.to_text().splitlines()
    assert "index      SQ8, 324 vectors, recall@10 0.988" in report.to_markdown()
    assert report.to_json()["index"]["recall"] == 0.98765
    assert report.to_line() == (
        "Done: 2 images extracted into space s in 0.5 s, 4.0 images/s; "
        "1 copied, 1 failed; index SQ8, 324 vectors, recall@10 0.988"
    )
    report.index = {**index, "recall": None}
    assert "recall" not in report.to_text()


def test_warnings_end_the_text_and_make_a_run_tell_itself_in_full() -> None:
    report = Report(space="s")
    report.add_scan(scan(scanned=3, unchanged=3))
    report.finish(0.5)
    assert report.to_text().startswith("Nothing changed")
    report.warnings.append("the index of space s (SQ8) finds 50.0 % of the 10 nearest; ...")
    assert report.to_text().startswith("Done: 0 images extracted")
    assert report.to_text().splitlines()[-1] == report.warnings[0]
    assert f"- {report.warnings[0]}" in report.to_markdown()
    assert report.exit_code() == 0


def test_a_backfill_speaks_of_itself() -> None:
    report = Report(space="s", kind="backfill")
    report.add_looked("/p")
    report.finish(0.2)
    assert report.to_text() == "Nothing is pending there: looked for 0.2 s."
    assert report.to_line() == report.to_text()
    assert report.to_markdown() == "# Nothing is pending there: looked for 0.2 s.\n"
    assert report.to_json()["roots"] == [{"root": "/p"}]
    report.add_chunk(chunk(outcomes={"extracted": 2}))
    report.finish(0.5)
    assert (
        headline(report) == "Back-fill done: 2 images extracted into space s in 0.5 s, 4.0 images/s"
    )
    assert "scanned" not in report.to_text() + report.to_markdown()
    report.add_unavailable("/q", "gone")
    assert headline(report).startswith("Back-fill done, but a root is unavailable: 2 images")
    report.interrupted = True
    assert headline(report).startswith("Back-fill interrupted: 2 images")


def test_numbers_are_written_alike_everywhere() -> None:
    report = Report(space="s")
    report.add_scan(scan(scanned=9000, unchanged=4000, reasons={"new": 3000, "line": 2000}))
    done = {"extracted": 1500, "failed": 1500}
    report.add_chunk(chunk(outcomes=done, failures={"empty": 1500}, seconds={"scan": 1500.0}))
    report.finish(1500.0)
    for text in (report.to_text(), report.to_markdown()):
        assert re.findall(r"\d{4,}", text) == []
        for said in ("9,000", "4,000", "3,000", "2,000", "1,500", "1,500.0"):
            assert said in text


def test_unreadable_and_future_files_are_warned_of() -> None:
    report = Report()
    report.add_scan(scan(unreadable=[("/p/x", "permission")], unreadable_count=1, future=2))
    assert report.warnings == [
        "1 folder or file could not be read and kept their state: /p/x: permission",
        "2 files dated in the future: read again on every run until then",
    ]
    assert all(line in report.to_text() for line in report.warnings)


@pytest.mark.parametrize("stage", STAGES)
def test_one_sentence_says_what_limits(stage: str) -> None:
    other = "plan" if stage == "scan" else "scan"
    report = Report(stages={other: 1.0, stage: 2.0, "decode": 50.0, "total": 9.0})
    report.finish(3.0)
    assert report.limits == STAGES[stage]
    report.finish(0.5)
    assert report.limits == TOO_SHORT


def test_markdown_has_a_table_of_each_group(report: Report) -> None:
    report.trouble(4, "gone")
    text = report.to_markdown()
    assert text.startswith("# Done, but a root is unavailable: 10 images extracted")
    for row in (
        "| scanned | 42 |",
        "| size differs | 4 |",
        "| truncated | 2 |",
        "| forward | 5.0 |",
    ):
        assert row in text
    assert "- gone" in text
    assert "| busy: changed while read, next run reads them | 1 |" in text


def test_markdown_of_an_idle_run_has_counts_alone() -> None:
    report = Report()
    report.add_scan(scan(scanned=3, unchanged=3))
    assert report.to_markdown().count("|---|") == 1
    assert report.to_markdown().startswith("# Nothing changed: 3 files scanned in 0.0 s.\n")
