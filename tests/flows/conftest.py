"""Fixtures of the flows' tests: a home of their own, and the real command line."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
Run = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep a developer's settings out, and the store in the test's own folder."""
    for name in list(os.environ):
        if name.startswith("LOOKALIKE_") and name != "LOOKALIKE_DATA":
            monkeypatch.delenv(name)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("LOOKALIKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def lookalike() -> Callable[..., Run]:
    """Run the command line in a process of its own, as a person does."""

    def run(*args: str | bytes, env: dict[str, str] | None = None, code: int | None = 0) -> Run:
        done = python("-c", "from flows.cli import main; main()", *args, env=env)
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    return run


def python(*args: str | bytes, env: dict[str, str] | None = None) -> Run:
    """Run Python with the checkout's packages."""
    command: Sequence[str | bytes] = (sys.executable, *args)
    return subprocess.run(
        command,
        cwd=CHECKOUT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=300,
        check=False,
    )
