"""The command line in a process of its own, as a person runs it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


def python(*args: str | bytes, env: dict[str, str] | None = None) -> Done:
    """Run Python with the checkout's packages; odd bytes come back as surrogates."""
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


def lookalike(*args: str | bytes, env: dict[str, str] | None = None, code: int = 0) -> Done:
    """Run a command and hold its exit code against ``code``."""
    done = python("-m", "flows.cli", *args, env=env)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def loaded(*args: str | bytes) -> set[str]:
    """Run a command and return the top-level modules that it has loaded at its end."""
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sorted({m.partition('.')[0] for m in sys.modules}),"
        " file=sys.stderr))\n"
        "from flows.cli import main; main()"
    )
    done = python("-c", program, *args)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())
