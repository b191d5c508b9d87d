"""What each command may import of the packages that take long or much memory.

A command that is missing here fails, and so does one that imports what its row does not name: then
either the import moves into the function that needs it, or the row says that it is meant.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flows.cli import COMMANDS
from flows.samples import draw_families
from tests.extractor.detectors import ASKED, CLASSES, write_weights
from tests.flows.prefect_site import environment, until
from tests.flows.terminal import CHECKOUT

HEAVY = frozenset(
    (
        "alembic",
        "dask",
        "distributed",
        "faiss",
        "fastapi",
        "httpx",
        "matplotlib",
        "numpy",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "open_clip",
        "pandas",
        "PIL",
        "pillow_heif",
        "polars",
        "prefect",
        "prefect_dask",
        "psycopg",
        "pyarrow",
        "pydantic",
        "rich",
        "safetensors",
        "scipy",
        "sqlalchemy",
        "starlette",
        "timm",
        "torch",
        "torchvision",
        "uvicorn",
        "yaml",
    )
)
STORE = {"pydantic", "sqlalchemy"}
"""Settings and catalog: whatever looks into a home."""
VECTORS = STORE | {"numpy"}
INDEX = VECTORS | {"faiss"}
NETWORK = {"PIL", "numpy", "torch", "torchvision"}
SERVER = {"fastapi", "starlette", "uvicorn"}
PREFECT = SERVER | STORE | {"alembic", "httpx", "numpy", "prefect", "psycopg", "rich", "yaml"}
OTHERS_WILL = {"pandas"}
"""What pyarrow imports where it is installed, which nobody needs."""

NEW = STORE | INDEX | NETWORK | {"alembic"}
"""A first run: the catalog is made, a network runs, an index is built."""

MAY = {
    "index {pictures}": VECTORS | {"PIL"},
    "index {more} --no-prefect": NEW - {"alembic"},
    "backfill": VECTORS | {"PIL"},
    "extract {pictures} {new}.tsv --model shufflenet_v2_x0_5 --weights random:0": VECTORS | NETWORK,
    "regions {pictures} {new} --config-file {detector}": VECTORS | NETWORK | {"yaml"},
    "search {pictures}/family-000/plain.jpg": INDEX,
    "search {pictures}/family-000/plain.jpg --plus {pictures}/family-001/plain.jpg --distinct 0.9"
    " --export {new}.csv": INDEX,
    "search {pictures}/family-000/plain.jpg --sheet {new}.png --html {new}.html": INDEX | {"PIL"},
    "search {unknown}": INDEX | NETWORK,
    "duplicates": VECTORS | {"PIL"},
    "duplicates --exact --script {new}.sh": VECTORS,
    "duplicates --report {new}.html": VECTORS | {"PIL"},
    "status": VECTORS,
    "failures": STORE,
    "retry": STORE,
    "check": VECTORS,
    "check --deep": INDEX | NETWORK,
    "backup {new}": VECTORS,
    "--home {new} restore {backup}": VECTORS | {"alembic"},
    "compact": VECTORS,
    "maintain": INDEX,
    "forget {pictures}/family-001/blur.jpg": INDEX,
    "roots": VECTORS,
    "export {new}.tsv": VECTORS,
    "export {new}.parquet": VECTORS | {"pyarrow"} | OTHERS_WILL,
    "spaces": VECTORS,
    "whiten --dim 4": INDEX | {"PIL"},
    "sample {list} {new}.txt --n 3": VECTORS,
    "models": NETWORK | {"timm", "safetensors", "yaml"},
}
"""What a command may import for its ordinary work, as it is typed."""

SERVICES = {
    "serve": (INDEX | SERVER | {"PIL"}, "http://127.0.0.1:"),
    "nightly": (PREFECT, "Prefect's page"),
}
"""Commands that stay until they are ended: what they may import, and what they say once ready."""

ASIDE = {"up": PREFECT, "down": STORE | {"httpx", "yaml"}}
"""Those that start and stop another process."""

DETECTOR = {
    "model": ASKED["model"],
    "weights": "seeing.pth",
    "num_classes": CLASSES,
    "num_boxes": ASKED["num_boxes"],
    **ASKED["options"],
}
MAIN = (
    "import atexit, sys\n"
    "atexit.register(lambda: print('LOADED', *{m.partition('.')[0] for m in sys.modules},"
    " file=sys.stderr, flush=True))\n"
    "from flows.cli import main; main()"
)


def heavy(stderr: str) -> set[str]:
    """Return what a command had imported of `HEAVY` when it ended."""
    (said,) = [line for line in stderr.splitlines() if line.startswith("LOADED ")]
    return set(said.split()) & HEAVY


def imported(words: list[str], env: dict[str, str] | None = None) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words],
        cwd=CHECKOUT,
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return heavy(done.stderr)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures, a store of them, and what the commands are given besides."""
    base = tmp_path_factory.mktemp("made")
    draw_families(str(base / "pictures"), 2)
    draw_families(str(base / "more"), 1, seed=1)
    seen = base / "pictures" / "family-000" / "plain.jpg"
    with Image.open(seen) as image:
        image.rotate(20).save(base / "unknown.jpg")
    (base / "list.txt").write_text("".join(f"{p}\n" for p in (base / "pictures").rglob("*.*")))
    write_weights(base / "seeing.pth")
    (base / "detector.yaml").write_text(json.dumps(DETECTOR))
    tiny = ["--model", "shufflenet_v2_x0_5", "--weights", "random:0", "--no-prefect"]
    home = ["--home", str(base / "home")]
    assert imported([*home, "index", str(base / "pictures"), *tiny]) <= NEW
    imported([*home, "backup", str(base / "backup")])
    return base


@pytest.fixture
def own(made: Path, tmp_path: Path) -> dict[str, str]:
    """Return what words in braces stand for; the store is the test's own."""
    shutil.copytree(made / "home", tmp_path / "home")  # where LOOKALIKE_HOME says
    names = {name: str(made / name) for name in ("pictures", "more", "backup")}
    files = {"unknown": "unknown.jpg", "list": "list.txt", "detector": "detector.yaml"}
    return {
        **names,
        **{name: str(made / file) for name, file in files.items()},
        "new": str(tmp_path / "new"),
    }


def test_every_command_has_its_row() -> None:
    named = {word for typed in MAY for word in typed.split() if word in COMMANDS}
    assert named | set(SERVICES) | set(ASIDE) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_page_imports_nothing_heavy(command: str) -> None:
    assert imported([command, "--help"]) == set()


@pytest.mark.parametrize("typed", MAY)
def test_a_command_imports_what_its_row_names(typed: str, own: dict[str, str]) -> None:
    words = [word.format(**own) for word in typed.split()]
    assert imported(words) - MAY[typed] == set()


@pytest.mark.parametrize("package", ["faiss", "PIL"])
def test_an_import_that_no_row_names_is_seen(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}\n{MAIN}", "status"],
        cwd=CHECKOUT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert package in heavy(done.stderr) - MAY["status"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=pytest.mark.prefect if name == "nightly" else ())
        for name in SERVICES
    ],
)
def test_a_command_that_stays_imports_what_its_row_names(
    command: str, own: dict[str, str], tmp_path: Path
) -> None:
    may, ready = SERVICES[command]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, command, *(("--port", "0") if command == "serve" else ())],
            cwd=CHECKOUT,
            env=environment(tmp_path / "client", LOOKALIKE_HOME=str(tmp_path / "home")),
            stdout=file,
            stderr=file,
        )
        try:
            until(lambda: ready in log.read_text() or process.poll() is not None)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    assert ready in log.read_text()
    assert heavy(log.read_text()) - may == set()


@pytest.mark.prefect
def test_the_commands_of_the_server_import_what_their_rows_name(tmp_path: Path) -> None:
    env = environment(tmp_path / "client", LOOKALIKE_HOME=str(tmp_path / "home"))
    try:
        assert imported(["up"], env) - ASIDE["up"] == set()
    finally:
        loaded = imported(["down"], env)
    assert loaded - ASIDE["down"] == set()
