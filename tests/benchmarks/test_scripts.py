"""Every script runs: small, and without a word about speed."""

import json
import math
import os
import subprocess
import sys

import pytest
from run import SCRIPTS

from tests.benchmarks.conftest import BENCHMARKS
from tests.flows.terminal import CHECKOUT


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(script.name, marks=pytest.mark.prefect)
        if script.name == "orchestration"
        else script.name
        for script in SCRIPTS
    ],
)
def test_a_script_runs_and_leaves_figures(name, tmp_path):
    out = tmp_path / "out.json"
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOOKALIKE_")}
    env |= {key: os.environ[key] for key in ("LOOKALIKE_DATA",) if key in os.environ}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", out],
        cwd=CHECKOUT,
        env={**env, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["script"] == name
    if skipped := report["figures"].get("skipped"):
        assert skipped in done.stdout
        pytest.skip(skipped)
    assert report["figures"]
    names = [goal["name"] for goal in report["goals"]]
    assert len(set(names)) == len(names)
    for goal in report["goals"]:
        assert math.isfinite(goal["measured"]), goal
        assert goal["name"] in done.stdout
