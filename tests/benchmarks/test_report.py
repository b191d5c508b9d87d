import json

import pytest
from report import Goal, as_json, finish, from_json, in_turns, machine, median_ratio, table

FAST = Goal("fast", "at least twice as fast", 3.0, 2.0, True, "some note")
SMALL = Goal("small", "at most 300 MB", 330.0, 300.0, False)


def test_a_goal_says_how_far_within_its_limit_it_is():
    assert (FAST.ratio, FAST.passed, FAST.said) == (1.5, True, "pass")
    assert SMALL.ratio == pytest.approx(300 / 330)
    assert (SMALL.passed, SMALL.said) == (False, "misses by 10.0%")


@pytest.mark.parametrize("more_is_better", [True, False])
def test_a_goal_that_is_just_met_passes(more_is_better):
    goal = Goal("even", "even", 2.0, 2.0, more_is_better)
    assert (goal.ratio, goal.passed, goal.said) == (1.0, True, "pass")


def test_a_near_miss_is_no_pass_and_not_rounded_to_nothing():
    goal = Goal("cosine", "at least 0.9999", 0.99989, 0.9999, True)
    assert not goal.passed
    assert goal.said == "misses by 1e-05"


def test_a_limit_of_nothing_can_be_kept_and_missed():
    kept, missed = (Goal("lost", "none", lost, 0.0, False) for lost in (0.0, 3.0))
    assert kept.passed
    assert (missed.passed, missed.ratio, missed.said) == (False, 0.0, "misses by 3")


def test_the_table_has_a_line_for_each_goal_and_one_for_its_note():
    lines = table([("scan", FAST), ("store", SMALL)]).splitlines()
    assert len(lines) == 4
    assert " ".join(lines[1].split()) == "scan fast: at least twice as fast 3 >= 2 1.50 pass"
    assert lines[2].strip() == "some note"
    assert lines[3].endswith("0.91  misses by 10.0%")


def test_a_script_leaves_its_goals_and_figures_as_json(tmp_path, capsys):
    out = tmp_path / "out.json"
    finish("made", [FAST, SMALL], {"rate_per_s": 7.5}, out)
    report = json.loads(out.read_text())
    assert report["script"] == "made"
    assert report["machine"]["cores"] >= 1
    assert report["figures"] == {"rate_per_s": 7.5}
    assert [from_json(goal) for goal in report["goals"]] == [FAST, SMALL]
    assert [goal["passed"] for goal in report["goals"]] == [True, False]
    assert "misses by 10.0%" in capsys.readouterr().out


def test_the_machine_is_described_without_its_name():
    import platform

    described = machine()
    assert described["python"] == platform.python_version()
    assert "torch" in described
    assert platform.node() not in json.dumps(described).split()


def test_all_take_turns_and_each_goes_first_once():
    called = []

    def way(name):
        called.append(name)
        return float(len(called))

    found = in_turns({name: lambda name=name: way(name) for name in "abc"}, 3, say=False)
    assert "".join(called) == "abcbcacab"
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_a_ratio_compares_what_was_measured_in_the_same_round():
    assert median_ratio([10, 1, 30], [5, 1, 10]) == 2


def test_what_is_written_can_be_read_back():
    assert from_json(json.loads(json.dumps(as_json(SMALL)))) == SMALL
