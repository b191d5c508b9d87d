"""The README's session is run, and prints what the page says but for numbers, times and places."""

import ast
import os
import re
import shlex
import subprocess
import sys
import time

import pytest

from flows.samples import draw_families
from tests.flows.terminal import CHECKOUT

README = (CHECKOUT / "README.md").read_text()
HOME = "/home/you"


def session():
    """Yield the README's commands, each with the lines that it prints."""
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *printed = part.splitlines()
            yield command, printed


def masked(line, place=HOME):
    """Return a line without what differs from run to run; counts stay as they are."""
    line = line.replace(place, HOME)
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", line)
    line = re.sub(r"\b\d\.\d{4}\b|(?<=\"score\": )\d\.\d+", lambda m: f"{float(m[0]):.3f}", line)
    line = re.sub(r"\d[\d,]*(\.\d)?(?= (images/s|s\b|[kMGT]?B\b))", "N", line)
    if line.startswith(("  seconds", "  in threads")):
        line = re.sub(r"\d+\.\d", "N", line)
    line = re.sub(r"^  engine .*", "  engine NAME", line)  # by the speed of the machine
    line = re.sub(r"(\"(?:image_id|row)\": )\d+", r"\1N", line)
    line = re.sub(r"\bin \d+ parts?\b", "in N parts", line)  # a part is some seconds of work
    return re.sub(r"\s+", " ", line).strip()


def test_what_is_masked_is_what_differs():
    done = "Done: 1,324 images extracted into space resnet18-avgpool in 14.1 s, 23.0 images/s"
    assert masked(done).startswith(
        "Done: 1,324 images extracted into space resnet18-avgpool in N s,"
    )
    assert masked("  seconds    scan 0.0, wait 12.5") == "seconds scan N, wait N"
    assert masked("   2  0.99987  /p/8.jpg") != masked("   2  0.9999  /p/8.jpg")
    assert (
        masked("   2  0.9999  /p/8.jpg") == masked("   2  1.0000  /p/8.jpg") == "2 1.000 /p/8.jpg"
    )
    assert masked('"score": 0.999987,') == '"score": 1.000,'
    assert (
        masked("at most 4 files to read, 0.1 MB of disk") == "at most 4 files to read, N MB of disk"
    )
    for counts in ("outcome 1 moved, 2 copied, 1 failed", "index SQ8, 324 vectors"):
        assert masked(counts) == counts


def test_the_session_prints_what_the_readme_says(tmp_path):
    draw_families(str(tmp_path / "demo" / "pictures"), 36)
    time.sleep(2.6)  # as old as pictures are that a person has
    scripts = tmp_path / "bin"
    scripts.mkdir()
    command = scripts / "lookalike"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m flows.cli "$@"\n')
    command.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "COLUMNS": "200",
    }
    commands = list(session())
    assert len(commands) >= 10
    for line, printed in commands:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode in (0, 3), (line, done.stderr)
        ours = [masked(said, str(tmp_path)) for said in done.stdout.splitlines()]
        assert ours == [masked(said) for said in printed], line


def test_the_python_example_runs(tmp_path):
    draw_families(str(tmp_path / "demo" / "pictures"), 1)
    picture = tmp_path / "demo" / "pictures" / "copied.jpg"
    os.rename(tmp_path / "demo" / "pictures" / "family-000" / "dark.jpg", picture)
    index = [sys.executable, "-m", "flows.cli", "--home", str(tmp_path / "store"), "index"]
    model = ["--model", "squeezenet1_1", "--weights", "random:0", "--no-prefect"]
    folder = str(tmp_path / "demo" / "pictures")
    subprocess.run([*index, folder, *model], cwd=CHECKOUT, check=True, capture_output=True)
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    example = example.replace(f"{HOME}/.local/share/lookalike", str(tmp_path / "store"))
    done = subprocess.run(
        [sys.executable, "-c", example.replace(HOME, str(tmp_path))],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    score, paths = done.stdout.splitlines()[0].split(" ", 1)
    assert len(done.stdout.splitlines()) == 5
    assert float(score) == pytest.approx(1)
    assert ast.literal_eval(paths) == (os.fsencode(picture),)


def test_every_setting_and_exit_code_is_named():
    from flows.settings import Settings

    for name in Settings.model_fields:
        assert f"`{name}`" in README
    for code in (0, 2, 3, 4, 5, 6, 7, 130):
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE)


def test_every_command_and_every_page_is_named():
    from flows.cli import COMMANDS

    table = README[README.index("## Commands") : README.index("| exit code |")]
    for name in COMMANDS:
        assert re.search(rf"^\|.*`{name}\b.*\|.*\|$", table, re.MULTILINE), name
    for page in (CHECKOUT / "docs").glob("*.md"):
        assert page.name in README
