import os
import subprocess
import sys

import pytest
from sqlalchemy import func, insert, select, update

from storage.check import check
from storage.errors import LeaseHeld, PartError, RootError
from storage.files import scan_root
from storage.forget import forget
from storage.leases import finish_run, start_run
from storage.lookup import Lookup
from storage.publish import publish
from storage.reading import snapshot
from storage.roots import add_root
from storage.runs import claim
from storage.tables import Failure, File, Image, Vector
from tests.storage.filled import Filled, clustered
from tests.storage.job import put

D = 16


@pytest.fixture
def lease(catalog):
    return start_run(catalog, "forget")


@pytest.fixture
def filled(catalog, lease):
    filled = Filled(catalog, D)
    filled.add(clustered(20, D))
    filled.add(clustered(20, D, seed=1), folder="holiday/")
    publish(catalog, lease, filled.space)
    return filled


def path(filled, name):
    return os.fsencode(filled.catalog.home.path) + b"-root/" + name


def holds(folder, needle):
    """Return the files below a folder that contain some bytes."""
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(where, name), "rb") as file:
                if needle in file.read():
                    found.append(name)
    return found


def test_no_byte_of_a_forgotten_vector_or_digest_is_left(filled, lease):
    vector = filled.x[7].tobytes()
    with filled.catalog.read() as conn:
        digest = conn.execute(select(Image.digest).join(Vector).where(Vector.row == 7)).scalar()
    home = filled.catalog.home.path
    assert holds(home, vector)
    result = forget(filled.catalog, lease, [path(filled, b"0000007.jpg")])
    assert (result.images, result.files, result.vectors) == (1, 1, 1)
    filled.catalog.close()
    assert holds(home, vector) == []
    assert holds(home, digest) == []
    found = Lookup(filled.catalog, filled.space, exact_below=0).nearest(filled.x[7:8], 40)
    assert 7 not in [neighbour.row for neighbour in found.neighbours[0]]
    assert len(found.neighbours[0]) == 39


def test_a_folder_is_forgotten_whole_and_the_other_part_is_not_rewritten(filled, lease):
    first = snapshot(filled.catalog, filled.space).parts[0]
    result = forget(filled.catalog, lease, [path(filled, b"holiday")])
    assert (result.images, result.vectors) == (20, 20)
    view = snapshot(filled.catalog, filled.space)
    assert [part.name for part in view.parts] == [first.name]
    assert view.generation.n == 20


def test_copies_of_a_forgotten_image_lose_their_records_too(filled, lease):
    with filled.catalog.write() as conn:
        image = conn.execute(select(Vector.image_id).where(Vector.row == 3)).scalar()
        row = dict(
            conn.execute(select(File.__table__).where(File.image_id == image)).mappings().one()
        )
        del row["id"]
        conn.execute(insert(File).values({**row, "path": b"copy.jpg", "display": "copy"}))
        conn.execute(
            insert(Failure).values(
                stage="read", failure_class="io", message="", transient=True, file_id=1,
                first_at=0.0, last_at=0.0, run_id="run",
            )
        )  # fmt: skip
    assert forget(filled.catalog, lease, [path(filled, b"copy.jpg")]).files == 2
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(File)).scalar() == 39
        assert conn.execute(select(func.count()).select_from(Image)).scalar() == 39


@pytest.mark.parametrize("name", ["data/x.jpg", "data", "list.csv"])
def test_what_a_manifest_names_is_forgotten_by_where_it_lies(filled, lease, tmp_path, name):
    put(tmp_path / "data", {"x.jpg": b"x"})
    put(tmp_path / "data-2", {"y.jpg": b"y"})
    (tmp_path / "list.csv").write_text("id,path\nx,data/x.jpg\n")
    (tmp_path / "other.csv").write_text("id,path\ny,data-2/y.jpg\n")
    for manifest in ("list.csv", "other.csv"):
        root = add_root(filled.catalog, os.fsencode(tmp_path / manifest))
        scan_root(filled.catalog, root, confirm_missing=False, skip=None)
    with filled.catalog.write() as conn:
        of_line = (File.source.is_not(None), File.path == b"x")
        conn.execute(update(File).where(*of_line).values(image_id=filled.base + 3))
    result = forget(filled.catalog, lease, [os.fsencode(tmp_path / name)])
    assert (result.images, result.files, result.vectors) == (1, 2, 1)  # with the image's other file
    with filled.catalog.read() as conn:
        assert conn.execute(select(File.path).where(File.source.is_not(None))).scalars().all() == [
            b"y"
        ]


def test_forgetting_everything_leaves_an_empty_space(filled, lease):
    forget(filled.catalog, lease, [path(filled, b"")[:-1]])
    view = snapshot(filled.catalog, filled.space)
    assert (view.n, view.generation) == (0, None)
    assert Lookup(filled.catalog, filled.space).nearest(filled.x[:1], 5).neighbours == [[]]


def test_what_is_not_known_or_in_use_is_refused(filled, lease):
    with pytest.raises(RootError, match="nothing is known"):
        forget(filled.catalog, lease, [path(filled, b"nobody.jpg")])
    with pytest.raises(RootError, match="nothing is known at /elsewhere"):
        forget(filled.catalog, lease, [b"/elsewhere/x.jpg"])
    other = start_run(filled.catalog, "publish")
    claim(filled.catalog, other, "space", filled.space.id, filled.space.id)
    with pytest.raises(LeaseHeld):
        forget(filled.catalog, lease, [path(filled, b"0000001.jpg")])
    finish_run(filled.catalog, other, "done")
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 40


def break_part(filled, number):
    """Change a bit in a part's file; return its path."""
    view = snapshot(filled.catalog, filled.space)
    part = filled.store.path(view.parts[number].name)
    os.chmod(part, 0o600)
    with open(part, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    return part


def test_a_damaged_part_is_refused_while_nothing_is_removed_yet(filled, lease):
    part = break_part(filled, 0)
    before = snapshot(filled.catalog, filled.space)
    with pytest.raises(PartError, match=f"{part} .*check --deep --repair"):
        forget(filled.catalog, lease, [path(filled, b"0000007.jpg")])
    assert snapshot(filled.catalog, filled.space) == before
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 40
    assert forget(filled.catalog, lease, [path(filled, b"holiday")]).images == 20


DIE = """
import os, sys
import numpy as np
from storage import durable, home
from storage.catalog import Catalog
from storage.forget import forget
from storage.home import Home
from storage.leases import start_run
_, folder, url, path, least = sys.argv
catalog = Catalog.open(Home(folder, url or None), write=True)
lease = start_run(catalog, "forget")
def watch(event, args):
    if event == "os.rename" and len(args) and os.fsdecode(args[1]).endswith(least):
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
forget(catalog, lease, [os.fsencode(path)])
"""


@pytest.mark.parametrize("killed_at", [".ids.npy", ".faiss"])
def test_a_forget_that_was_killed_is_finished_by_the_next(filled, killed_at):
    home, vector = filled.catalog.home, filled.x[7].tobytes()
    name = path(filled, b"0000007.jpg")
    command = [sys.executable, "-c", DIE, home.path, home.catalog_url or ""]
    died = subprocess.run([*command, os.fsdecode(name), killed_at], timeout=120, check=False)
    assert died.returncode == -9
    assert holds(home.path, vector)
    lease = start_run(filled.catalog, "forget")
    if killed_at == ".ids.npy":  # between the records and the parts
        result = forget(filled.catalog, lease, [name])
        assert (result.images, result.files, result.vectors) == (0, 0, 1)
        assert snapshot(filled.catalog, filled.space).generation.n == 39
    with pytest.raises(RootError, match="nothing is known"):
        forget(filled.catalog, lease, [name])
    filled.catalog.close()
    assert holds(home.path, vector) == []
    assert check(filled.catalog, deep=True) == []


def test_a_mistyped_path_keeps_the_others_from_being_forgotten(filled, lease):
    with pytest.raises(RootError, match="nothing is known"):
        forget(filled.catalog, lease, [path(filled, b"holiday"), path(filled, b"hloiday")])
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 40


@pytest.mark.parametrize("kind", ["file", "image"])
def test_what_a_run_has_in_work_is_not_forgotten_before_it_is_done(filled, lease, kind):
    with filled.catalog.read() as conn:
        query = select(File.id, File.image_id).where(File.path == b"0000007.jpg")
        file_id, image_id = conn.execute(query).one()
    run = start_run(filled.catalog, "index")
    subject = file_id if kind == "file" else image_id
    claim(filled.catalog, run, kind, subject, filled.space.id)
    with pytest.raises(LeaseHeld, match=f"run {run.run_id} has some of these images in work"):
        forget(filled.catalog, lease, [path(filled, b"0000007.jpg")])
    assert forget(filled.catalog, lease, [path(filled, b"0000008.jpg")]).images == 1
    finish_run(filled.catalog, run, "done")
    assert forget(filled.catalog, lease, [path(filled, b"0000007.jpg")]).images == 1


def test_dead_rows_make_no_mistyped_path_known(filled, lease):
    filled.add(clustered(3, D, seed=2), folder="late/", duplicates=(1,))
    result = forget(filled.catalog, lease, [path(filled, b"hloiday")])
    assert (result.images, result.vectors, result.unknown) == (0, 1, path(filled, b"hloiday"))
    filled.add(clustered(3, D, seed=3), folder="later/", duplicates=(1,))
    with pytest.raises(RootError, match=r"nothing is known at .*/hloiday"):
        forget(filled.catalog, lease, [path(filled, b"holiday"), path(filled, b"hloiday")])
    with filled.catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(Vector)).scalar() == 44
