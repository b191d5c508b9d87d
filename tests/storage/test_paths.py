import os
from pathlib import Path

import pytest
from sqlalchemy import select

from storage.catalog import Catalog
from storage.files import scan_root
from storage.paths import files_at
from storage.roots import add_root
from storage.tables import File, Root
from tests.storage.job import put

NAMES = ["a.jpg", "a/1.jpg", "a/b/2.jpg", "a-b/3.jpg", "a b.jpg"]
FOLDERS = ["photos", "more", "elsewhere"]
EVERY = [f"{folder}/{name}" for folder in FOLDERS for name in NAMES]


@pytest.fixture
def top(catalog: Catalog, tmp_path: Path) -> Path:
    """Return a folder with the roots ``photos`` and ``more``, and a manifest of ``elsewhere``."""
    top = tmp_path / "top"
    for folder in FOLDERS:
        put(top / folder, {name: f"{folder}/{name}".encode() for name in NAMES})
    lines = "".join(f"{number},elsewhere/{name}\n" for number, name in enumerate(NAMES))
    (top / "list.csv").write_text(f"id,path\n{lines}")
    (top / "link").symlink_to(top / "photos" / "a")
    for root in ("photos", "more", "list.csv"):
        made = add_root(catalog, os.fsencode(top / root))
        scan_root(catalog, made, confirm_missing=False, skip=None)
    return top


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("photos", [f"photos/{name}" for name in NAMES]),
        ("photos/a", ["photos/a/1.jpg", "photos/a/b/2.jpg"]),
        ("photos/a/1.jpg", ["photos/a/1.jpg"]),
        ("photos/nowhere", []),
        ("link", ["photos/a/1.jpg", "photos/a/b/2.jpg"]),
        ("photos/../more/a.jpg", ["more/a.jpg"]),
        ("elsewhere", [f"elsewhere/{name}" for name in NAMES]),
        ("elsewhere/a", ["elsewhere/a/1.jpg", "elsewhere/a/b/2.jpg"]),
        ("elsewhere/a.jpg", ["elsewhere/a.jpg"]),
        ("list.csv", [f"elsewhere/{name}" for name in NAMES]),
        ("list", []),
        (".", EVERY),
        ("..", EVERY),
        ("/", EVERY),
    ],
)
def test_files_at_or_below_a_path(catalog: Catalog, top: Path, path: str, found: list[str]) -> None:
    with catalog.read() as conn:
        query = select(Root.path, File.path, File.source).join(Root, Root.id == File.root_id)
        rows = conn.execute(query.where(files_at(conn, os.fsencode(top / path)))).all()
    paths = [source or os.path.join(root, name) for root, name, source in rows]
    assert sorted(paths) == sorted(os.fsencode(top / name) for name in found)


def test_nothing_is_known_of_a_path_without_any_root(catalog: Catalog) -> None:
    with catalog.read() as conn:
        assert conn.execute(select(File.id).where(files_at(conn, b"/"))).all() == []
