"""What the catalog takes for each image, in bytes and in seconds.

Files that exist only in the catalog are recorded as a scan would, then claimed and committed as a
run would: no picture is read and no vector is written.  What a night costs in which nothing has
changed is measured by ``scan.py``.

    python benchmarks/catalog.py [--files 1000000] [--database both] [--json OUT]
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import finish, parser
from scan import NoDatabase, database
from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).parents[1]))

from storage.catalog import Catalog
from storage.changes import Change, Reason
from storage.chunks import claim_chunk
from storage.commit import FileRead, PartWritten, commit_chunk
from storage.file_rows import apply_changes
from storage.home import Home
from storage.leases import Lease, finish_run, start_run
from storage.roots import add_root
from storage.runs import Heartbeat
from storage.scan import FileStat, Signature
from storage.spaces import SpaceInfo, ensure_space

OLD_NS = 1_700_000_000 * 10**9
CHUNK = 4096


def main() -> None:
    """Measure one database after the other."""
    args = _arguments()
    print(f"{args.files:,} files")
    figures: dict[str, Any] = {"files": args.files}
    for name in ("sqlite", "postgres") if args.database == "both" else (args.database,):
        try:
            with tempfile.TemporaryDirectory() as folder, database(name) as url:
                home = Home(os.path.join(folder, "home"), url)
                with Catalog.open(home, write=True) as catalog:
                    found = figures[name] = measured(catalog, folder, args.files)
        except NoDatabase as error:
            print(error)
            continue
        print(f"{name}: " + ", ".join(f"{what} {value:,.1f}" for what, value in found.items()))
    finish("catalog", [], figures, args.json)


def measured(catalog: Catalog, folder: str, files: int) -> dict[str, float]:
    """Return bytes a file, and files a second of each stage."""
    lease = start_run(catalog, "benchmark")
    root = add_root(catalog, os.fsencode(folder))
    with Heartbeat(catalog, lease):
        began = time.perf_counter()
        news = (Change(seen.path, Reason.NEW, None, seen) for seen in walked(files))
        apply_changes(catalog, root, news, lease=lease)
        recorded_s = time.perf_counter() - began
        seen_bytes = _bytes(catalog)
        space = _space(catalog)
        began = time.perf_counter()
        commits = _commit_all(catalog, lease, space)
        committed_s = time.perf_counter() - began
    finish_run(catalog, lease, "done")
    return {
        "bytes a file seen": seen_bytes / files,
        "bytes a file with vector": _bytes(catalog) / files,
        "recorded/s": files / recorded_s,
        "claimed and committed/s": files / committed_s,
        "commits": commits,
    }


def walked(files: int) -> Iterator[FileStat]:
    """Yield files as a walk would, 1,000 to a folder, in the order of their paths."""
    for n in range(files):
        path = b"2019/%06d/IMG_%08d.jpg" % (n // 1000, n)
        yield FileStat(path, Signature(2_500_000 + n, OLD_NS + n, OLD_NS + n, 10_000_000 + n))


def _commit_all(catalog: Catalog, lease: Lease, space: SpaceInfo) -> int:
    number, after = 0, 0
    while chunk := claim_chunk(
        catalog, lease, space, number=number + 1, limit=CHUNK, after_file_id=after
    ):
        number, after = chunk.number, chunk.work[-1].file_id
        digests = tuple(hashlib.sha256(work.path).digest() for work in chunk.work)
        part = PartWritten(uuid.uuid4().hex, len(digests), digests, 100, "c" * 32, "d" * 32, {})
        reads = [
            FileRead(work.file_id, digest, _signature(work.path), trusted=True)
            for work, digest in zip(chunk.work, digests, strict=True)
        ]
        commit_chunk(catalog, lease, space, chunk, reads=reads, failures=[], part=part)
    return number


def _signature(path: bytes) -> Signature:
    n = int(path[-12:-4])
    return Signature(2_500_000 + n, OLD_NS + n, OLD_NS + n, 10_000_000 + n)


def _space(catalog: Catalog) -> SpaceInfo:
    return ensure_space(
        catalog,
        name="space",
        spec={"dim": 2048, "dtype": "float32", "decode_version": 1, "architecture": "none"},
        request={"model": "none", "layer": None, "weights": "none"},
        key="synthetic",
    )


def _bytes(catalog: Catalog) -> int:
    with catalog.read() as conn:
        if catalog.dialect == "sqlite":
            pages, size = (
                conn.exec_driver_sql(f"PRAGMA page_{it}").scalar_one() for it in ("count", "size")
            )
            return int(pages * size)
        size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
        ours = " AND relnamespace = 'public'::regnamespace"
        return int(conn.execute(text(size + ours)).scalar_one())


def _arguments() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--files", type=int)
    made.add_argument("--database", choices=("both", "sqlite", "postgres"), default="both")
    args = made.parse_args()
    args.files = args.files or (5_000 if args.quick else 1_000_000)
    return args


if __name__ == "__main__":
    main()
