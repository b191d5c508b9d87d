"""What a night costs in which nothing has changed, beside a bare walk of the same folders.

A tree of hard links to a few tiny files is made, 1,000 to a folder.  Every way goes over it in a
process of its own, the bare walk (``scandir`` and ``lstat``, nothing else) and the re-scan in
turns.  The re-scan is all that ``lookalike index`` does where it finds nothing to do: look at the
root, walk, compare, count what is pending, see whether an index is due, record the run.  Times are
CPU times, of user and system, after the imports.  For Postgres they are those of this side; those
of the server stand beside them.

    python benchmarks/scan.py [--files 10000,100000,1000000] [--database both] [--tree DIR]
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from report import Goal, finish, in_turns, median_ratio, parser

sys.path.insert(0, str(Path(__file__).parents[1]))

A_FOLDER = 1000
LINKS = 50_000
"""Names of one tiny file; ext4 allows 65,000."""
WITHIN = {"re-scan": 3.0, "first time": 10.0}
"""How many times the CPU time of the bare walk."""
MEMORY_MB = 300.0
LINEAR = 1.2
"""The CPU time a file of the largest size over that of the one before, at most."""

Measured = dict[str, float]


def main() -> None:
    """Measure one size after the other on each database."""
    args = _arguments()
    goals: list[Goal] = []
    figures: dict[str, Any] = {"sizes": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.database:
            try:
                with database(name) as url:
                    rows = [_size(name, url, files, args.tree, folder) for files in args.files]
            except NoDatabase as error:
                print(error)
                continue
            goals += _goals(name, rows)
            figures["sizes"] += rows
    finish("scan", goals, figures, args.json)


def _size(database: str, url: str | None, files: int, tree: str | None, folder: str) -> Measured:
    """Catalog a tree for the first time, then again and again where nothing has changed."""
    root = tree or os.path.join(folder, f"tree-{files}")
    if not os.path.exists(root):
        plant(root, files)
    home = os.path.join(folder, f"{database}-{files}")
    files = int(_child("bare", root)["files"])  # and the kernel has met every name once
    print(f"{files:,} files, {database}", flush=True)
    first = _child("first", root, home, url)
    _child("settle", home, url)
    again: list[Measured] = []

    def rescan() -> float:
        again.append(_child("again", root, home, url))
        return again[-1]["cpu_s"]

    ways: dict[str, Callable[[], float]] = {"bare": lambda: _child("bare", root)["cpu_s"]}
    taken = in_turns(ways | {"re-scan": rescan}, 3)
    _child("drop", home, url)
    shutil.rmtree(home)
    if tree is None and database == "postgres":
        shutil.rmtree(root)
    return {
        "database": database,
        "files": files,
        "bare cpu_s": statistics.median(taken["bare"]),
        "re-scan / bare": median_ratio(taken["re-scan"], taken["bare"]),
        "first time / bare": first["cpu_s"] / statistics.median(taken["bare"]),
        **{f"re-scan {key}": statistics.median(r[key] for r in again) for key in again[0]},
        **{f"first time {key}": value for key, value in first.items()},
    }


def _goals(database: str, rows: Sequence[Measured]) -> Iterator[Goal]:
    most = rows[-1]
    where = f"{database}, {most['files']:,} files"
    for what, limit in WITHIN.items():
        asked = f"CPU time within {limit:.0f} times a bare walk's"
        yield Goal(f"{what}, {where}", asked, most[f"{what} / bare"], limit, False)
    for what in WITHIN:
        asked = f"at most {MEMORY_MB:.0f} MB resident"
        peak = most[f"{what} peak_mb"]
        yield Goal(f"memory of {what}, {where}", asked, peak, MEMORY_MB, False)
    if len(rows) > 1:
        each = [row["re-scan cpu_s"] / row["files"] for row in rows]
        asked = f"CPU time a file at most {LINEAR} times that of {rows[-2]['files']:,} files"
        yield Goal(f"linear re-scan, {where}", asked, each[-1] / each[-2], LINEAR, False)


class NoDatabase(Exception):
    """There is no Postgres to measure with; the message says why."""


@contextlib.contextmanager
def database(name: str) -> Iterator[str | None]:
    """Yield the URL of an empty database of Postgres, None for SQLite.

    Raises
    ------
    NoDatabase
        There is no Postgres.
    """
    if name == "sqlite":
        yield None
        return
    from tests.postgres import NoServer, durable_database

    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(durable_database())
        except NoServer as error:
            raise NoDatabase(f"{name}: no server to measure with, {error}") from error
        yield url


def plant(root: str, files: int) -> None:
    """Make a tree of hard links, ten times a hundred folders of 1,000 and so on."""
    for n in range(0, files, A_FOLDER):
        folder = os.path.join(root, f"{n // (100 * A_FOLDER):03}", f"{n:08}")
        os.makedirs(folder)
        if n % LINKS == 0:
            one = os.path.join(root, f".{n}")
            Path(one).write_bytes(b"tiny")
        for i in range(n, min(n + A_FOLDER, files)):
            os.link(one, os.path.join(folder, f"IMG_{i:08}.jpg"))


# What runs in a process of its own


def _bare(root: str) -> Measured:
    before = _spent()
    stack, files = [root], 0
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    files += entry.name[0] != "."
    return _since(before) | {"files": files}


def _first(root: str, home: str, url: str | None = None) -> Measured:
    from storage.catalog import Catalog
    from storage.files import scan_root
    from storage.home import Home
    from storage.leases import finish_run, start_run
    from storage.roots import add_root
    from storage.runs import Heartbeat

    with Catalog.open(Home(home, url), write=True) as catalog:
        server, before = _server_cpu_s(url), _spent()
        lease = start_run(catalog, "index")
        with Heartbeat(catalog, lease):
            added = add_root(catalog, os.fsencode(root))
            found = scan_root(
                catalog, added, confirm_missing=False, skip=os.fsencode(home), lease=lease
            )
        finish_run(catalog, lease, "done")
        taken = _since(before)
    if found.reasons != {"new": found.scanned}:
        raise SystemExit(f"a first scan found {found.reasons} of {found.scanned}")
    return taken | _server_share(url, server)


def _again(root: str, home: str, url: str | None = None) -> Measured:
    from flows.job.loop import IndexOptions, run_index
    from flows.job.progress import Progress
    from flows.job.steps import PlainSteps

    server, before = _server_cpu_s(url), _spent()
    with Progress("silent") as progress, PlainSteps() as steps:
        options = IndexOptions(home, url, roots=(root,))
        report = run_index(options, steps=steps, progress=progress)
    taken = _since(before)
    changed = report.reasons or report.extracted or report.index or report.troubles
    if changed or not 0 < report.scanned == report.unchanged:
        raise SystemExit(f"something had changed: {report.to_json()}")
    stages = {f"{stage}_s": seconds for stage, seconds in report.stages.items()}
    return taken | stages | _server_share(url, server)


def _settle(home: str, url: str | None = None) -> Measured:
    """Give every file an image and every image a vector, as if all had been extracted."""
    from sqlalchemy import text

    from storage.catalog import Catalog
    from storage.home import Home
    from storage.spaces import ensure_space

    with Catalog.open(Home(home, url), write=True) as catalog:
        space = ensure_space(
            catalog,
            name="space",
            spec={"dim": 2048, "dtype": "float32", "decode_version": 1, "architecture": "none"},
            request={"model": "none", "layer": None, "weights": "none"},
            key="synthetic",
        )
        digest = "randomblob(32)" if catalog.dialect == "sqlite" else "sha256(int8send(id))"
        with catalog.write() as conn:
            for statement in SETTLE:
                conn.execute(text(statement.format(digest=digest)), {"space": space.id})
        if catalog.dialect == "postgresql":  # as its own housekeeping would in time
            with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.exec_driver_sql("VACUUM ANALYZE")
    return {}


SETTLE = (
    "INSERT INTO images (id, digest, size_bytes, first_seen_at)"
    " SELECT id, {digest}, seen_size_bytes, 0 FROM files",
    "UPDATE files SET image_id = id, trusted = true, digest_size_bytes = seen_size_bytes,"
    " digest_mtime_ns = seen_mtime_ns, digest_ctime_ns = seen_ctime_ns,"
    " digest_inode = seen_inode",
    "INSERT INTO vectors (space_id, image_id, row) SELECT :space, id, id - 1 FROM files",
    "UPDATE spaces SET current = true, next_row = (SELECT count(*) FROM files)",
    "INSERT INTO generations (space_id, name, state, row_end, n, factory, parameters, size_bytes,"
    " checksum, rowmap_checksum, created_at) SELECT id, 'none', 'live', next_row, next_row,"
    " 'Flat', '{{}}', 0, '', '', 0 FROM spaces",
)


def _drop(home: str, url: str | None = None) -> Measured:
    """Leave an empty database for the next size."""
    if url is not None:
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    return {}


def _spent() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def _since(before: tuple[float, float]) -> Measured:
    cpu_s, wall_s = _spent()
    return {"cpu_s": cpu_s - before[0], "wall_s": wall_s - before[1], "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    """Return the most memory that this process had; ``getrusage`` counts its parent's as well."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise SystemExit("/proc does not say how much memory a process had")


def _server_share(url: str | None, before: float) -> Measured:
    return {} if url is None else {"server_cpu_s": _server_cpu_s(url) - before}


def _server_cpu_s(url: str | None) -> float:
    """Return what a local Postgres has used since it was started, 0 where that can't be seen."""
    if url is None:
        return 0.0
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    with contextlib.suppress(OSError):
        parent = Path(str(row and row[0]), "postmaster.pid").read_text().split()[0]
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return sum(map(_ticks, [parent, *children])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _ticks(pid: str) -> int:
    """Return the CPU time of a process and of those of its children that have ended."""
    try:
        return sum(
            map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
        )
    except OSError:
        return 0


CHILDREN: dict[str, Callable[..., Measured]] = {
    "bare": _bare,
    "first": _first,
    "settle": _settle,
    "again": _again,
    "drop": _drop,
}


def _child(what: str, *words: str | None) -> Measured:
    """Run one of `CHILDREN` in a process of its own and return what it measured."""
    given = [sys.executable, __file__, "--child", what, *(word for word in words if word)]
    done = subprocess.run(given, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: exit {done.returncode}, {done.stdout}")
    return dict(json.loads(done.stdout))


def _arguments() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--files", help="sizes, the smallest first: 10000,100000,1000000")
    made.add_argument("--database", choices=("both", "sqlite", "postgres"), default="both")
    made.add_argument("--tree", metavar="DIR", help="a tree that is there, in place of one made")
    args = made.parse_args()
    sizes = args.files or ("2000,10000" if args.quick else "10000,100000,1000000")
    args.files = [0] if args.tree else [int(size) for size in sizes.split(",")]
    args.database = ("sqlite", "postgres") if args.database == "both" else (args.database,)
    return args


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
