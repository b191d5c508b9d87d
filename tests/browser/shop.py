"""Collections that are indexed, and ``lookalike serve`` over them in a process of its own."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows.samples import draw_families
from tests.flows.terminal import CHECKOUT, lookalike

FAMILIES = 14
"""Of nine pictures each: more than a page of hits holds."""
TINY = ("--model", "shufflenet_v2_x0_5", "--weights", "random:0")
TOKEN = "a secret of some length"


@dataclass(frozen=True)
class Shop:
    """A server, and what it serves."""

    url: str
    pictures: Path
    home: Path


def settings(home: Path) -> dict[str, str]:
    """Return the environment of a command that knows this home and no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOOKALIKE_")}
    cache = str(home.parent / "cache")
    return {**kept, "LOOKALIKE_HOME": str(home), "XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}


def draw_collection(folder: Path) -> Path:
    """Draw pictures in families; one of them lies there twice, and one is broken."""
    pictures = folder / "pictures"
    draw_families(str(pictures), FAMILIES, seed=3)
    again = pictures / "again"
    again.mkdir()
    shutil.copy(pictures / "family-000" / "plain.jpg", again / "copy of a plain one.jpg")
    whole = (pictures / "family-001" / "plain.jpg").read_bytes()
    (pictures / "family-001" / "cut short.jpg").write_bytes(whole[: len(whole) // 2])
    return pictures


def index(home: Path, pictures: Path, *words: str, code: int = 0) -> None:
    """Index pictures; the exit code is 3 where one is broken."""
    told = ("--quiet", "--no-prefect")
    lookalike("index", str(pictures), *words, *told, env=settings(home), code=code)


@contextlib.contextmanager
def serving(home: Path, token: str = "") -> Iterator[str]:
    """Run the server; yield its URL.  It must say nothing on stderr."""
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0"]
    env = settings(home) | ({"LOOKALIKE_TOKEN": token} if token else {})
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=env, text=True, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, _said(said)
            yield url
            process.terminate()
            code = process.wait(30)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert (code, _said(said)) == (0, ""), (code, _said(said))


def _said(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
