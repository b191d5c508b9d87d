import json
import sys

import pytest
import run
from report import Goal, as_json, machine
from run import Script, against, slug, summary, write

GOOD = """\
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--json")
parser.add_argument("--quick", action="store_true")
parser.add_argument("--store")
args = parser.parse_args()
with open(args.json, "w") as file:
    json.dump({"goals": [], "figures": {"quick": args.quick, "store": args.store}}, file)
"""


def report(measured, rate=10.0, more_is_better=True):
    goal = Goal("speed", "fast", measured, 2.0, more_is_better)
    return {"goals": [as_json(goal)], "figures": {"deep": {"rate_per_s": rate, "took_s": 4.0}}}


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Put made scripts in the place of the real ones."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text("import sys; sys.exit(3)")
    (folder / "mute.py").write_text("")
    (folder / "slow.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(run, "HERE", folder)
    monkeypatch.setattr(
        run, "SCRIPTS", tuple(Script(name) for name in ("good", "bad", "mute", "gone"))
    )
    return folder


def called(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    return run.main()


def test_a_script_that_fails_is_missing_or_writes_nothing_is_said(scripts, monkeypatch, capsys):
    assert called(monkeypatch) == 1
    said = capsys.readouterr().out
    assert "bad: failed with exit code 3" in said
    assert "mute: left no figures" in said
    assert "gone: the script is missing" in said
    assert "0 of 0 goals met, 3 scripts with a problem" in said


def test_what_is_wanted_is_run_and_the_rest_keeps_its_figures(scripts, monkeypatch, capsys):
    out = scripts / "results" / f"{slug(machine())}.json"
    assert called(monkeypatch, "--only", "good,mute") == 1
    assert called(monkeypatch, "--only", "good") == 0
    written = json.loads(out.read_text())
    assert list(written["scripts"]) == ["good", "mute"]
    assert "problem" in written["scripts"]["mute"]
    assert written["scripts"]["good"]["figures"] == {"quick": False, "store": None}
    assert written["scripts"]["good"]["taken"].startswith("20")
    assert "== good" in capsys.readouterr().out


def test_a_quick_run_replaces_no_figures(scripts, monkeypatch, tmp_path):
    assert called(monkeypatch, "--only", "good", "--quick") == 0
    assert not (scripts / "results").exists()
    out = tmp_path / "elsewhere.json"
    assert called(monkeypatch, "--only", "good", "--quick", "--out", str(out)) == 0
    assert json.loads(out.read_text())["scripts"]["good"]["figures"]["quick"] is True


def test_scripts_that_share_a_store_are_given_the_same_one(scripts, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "SCRIPTS", (Script("good", store=True), Script("mute", store=True)))
    (scripts / "mute.py").write_text(GOOD)
    out = tmp_path / "out.json"
    assert called(monkeypatch, "--out", str(out)) == 0
    written = json.loads(out.read_text())["scripts"]
    assert written["good"]["figures"]["store"] == written["mute"]["figures"]["store"] is not None


def test_a_script_that_does_not_end_is_ended(scripts, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "LONGEST_S", 0.5)
    assert run._run(Script("slow"), True, tmp_path) == {"problem": "not done after 0 s"}


def test_a_name_that_no_script_has_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        called(monkeypatch, "--only", "pipelin")
    assert "pipelin: not one of pipeline, big" in capsys.readouterr().err


def test_the_summary_counts_goals_and_says_why_there_are_none():
    text = summary(
        {
            "met": report(3.0),
            "missed": report(1.0),
            "gpu": {"goals": [], "figures": {"skipped": "no CUDA device"}},
            "plain": {"goals": [], "figures": {"rate_per_s": 2}},
        }
    )
    assert "misses by 50.0%" in text
    assert "gpu: skipped: no CUDA device" in text
    assert "plain: figures only" in text
    assert text.endswith("1 of 2 goals met, 0 scripts with a problem")


@pytest.mark.parametrize(
    ("before", "now", "more_is_better", "said"),
    [
        (2.0, 1.9, True, []),
        (2.0, 1.5, True, ["x: speed: worse by 33% (2, now 1.5)"]),
        (2.0, 3.0, True, []),
        (2.0, 2.1, False, []),
        (2.0, 2.5, False, ["x: speed: worse by 25% (2, now 2.5)"]),
        (2.0, 1.0, False, []),
    ],
)
def test_a_goal_is_compared_in_the_direction_in_which_it_counts(before, now, more_is_better, said):
    former = {
        "machine": machine(),
        "scripts": {"x": report(before, more_is_better=more_is_better)},
    }
    lines = against(former, {"x": report(now, more_is_better=more_is_better)})
    assert lines == [*said, f"3 figures compared, {len(said)} worse"]


def test_rates_and_times_among_the_figures_are_compared_too():
    former = {"machine": machine(), "scripts": {"x": report(2.0, rate=20.0)}}
    slower = report(2.0, rate=10.0)
    slower["figures"]["deep"]["took_s"] = 8.0
    slower["figures"]["new_s"] = 1.0
    assert against(former, {"x": slower, "y": report(1.0)}) == [
        "x: deep/rate_per_s: worse by 100% (20, now 10)",
        "x: deep/took_s: worse by 100% (4, now 8)",
        "3 figures compared, 2 worse",
    ]


def test_figures_of_another_machine_are_said_to_be_so():
    former = {"machine": {"cpu": "Abacus 7", "cores": 1}, "scripts": {}}
    assert against(former, {}) == [
        "the former run was on another machine: abacus-7-1-cores",
        "0 figures compared, 0 worse",
    ]


def test_a_graphics_card_names_the_machine():
    described = {"cpu": "AMD EPYC", "cores": 16, "gpu": "NVIDIA H100 80GB HBM3"}
    assert slug(described) == "nvidia-h100-80gb-hbm3-amd-epyc-16-cores"


def test_figures_are_in_the_order_of_the_scripts_whenever_they_were_taken(tmp_path):
    out = tmp_path / "results" / "x.json"
    write(out, {"scan": report(1.0)})
    write(out, {"pipeline": report(1.0), "scan": report(2.0)})
    written = json.loads(out.read_text())["scripts"]
    assert list(written) == ["pipeline", "scan"]
    assert written["scan"]["goals"][0]["measured"] == 2.0
    table = out.with_suffix(".txt").read_text()
    assert table.index("pipeline ") < table.index("scan ")
    assert "1 of 2 goals met" in table
