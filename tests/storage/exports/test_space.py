import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sqlalchemy import delete, insert, select, update

from storage.errors import ExportError, PartError, RootError
from storage.exports import space as module
from storage.exports.space import Wish, export_space
from storage.spaces import get_space
from storage.tables import File, Root, Vector
from tests.storage.exports.made import same_bits
from tests.storage.filled import Filled, clustered, local_catalog, root_of

D = 12


@pytest.fixture
def filled(catalog):
    """Return 60 rows in three parts under one root, row 7 dead from birth; on each database."""
    return with_parts(catalog)


@pytest.fixture
def local(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        yield with_parts(catalog)


def with_parts(catalog, dtype="float32"):
    space = Filled(catalog, D, dtype)
    space.add(clustered(20, D, seed=1), duplicates=(7,), folder="b/")
    space.add(clustered(20, D, seed=2), folder="a/deep/")
    space.add(clustered(20, D, seed=3))
    return space


def exported(filled, tmp_path, name="out.parquet", **wish):
    space = get_space(filled.catalog, filled.space.name)
    return export_space(filled.catalog, space, str(tmp_path / name), Wish(**wish))


def oracle(filled, under=b"", root=None):
    """Return (id, path, label, row) of each live file with a vector, by plain loops."""
    with filled.catalog.read() as conn:
        files = conn.execute(select(File).where(File.state == "live")).all()
        rows = dict(
            conn.execute(
                select(Vector.image_id, Vector.row).where(Vector.space_id == filled.space.id)
            ).all()
        )
        roots = {root.id: root for root in conn.execute(select(Root))}
    found = []
    for file in files:
        if file.image_id not in rows or not file.path.startswith(under):
            continue
        if root is not None and file.root_id != root:
            continue
        place = roots[file.root_id]
        path = file.source or place.path + b"/" + file.path
        label = file.label
        if place.kind == "directory" and b"/" in file.path:
            label = file.path.split(b"/")[0].decode()
        found.append(((place.path, file.path), file.path, path, label, rows[file.image_id]))
    return [rest for _, *rest in sorted(found)]


def hold_against(frame: pl.DataFrame, due, x) -> None:
    assert frame["id"].to_list() == [id.decode("utf-8", "backslashreplace") for id, *_ in due]
    assert frame["path"].to_list() == [
        path.decode("utf-8", "backslashreplace") for _, path, *_ in due
    ]
    assert frame["label"].to_list() == [label for *_, label, _ in due]
    same_bits(frame["vector"].to_numpy(), x[[row for *_, row in due]])


def test_every_live_file_in_the_order_of_paths(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * D * 7)
    done = exported(filled, tmp_path)
    due = oracle(filled)
    assert (done.images, done.without) == (59, 0) == (len(due), 0)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    hold_against(frame, due, filled.x)
    assert frame["id"].to_list() == sorted(frame["id"].to_list())
    assert done.size_bytes == os.path.getsize(tmp_path / "out.parquet")


def test_pages_join_without_a_seam(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "pages", lambda *args: real(*args, size=7))
    exported(filled, tmp_path)
    hold_against(pl.read_parquet(tmp_path / "out.parquet"), oracle(filled), filled.x)


real = module.pages


def test_missing_and_excluded_files_are_not_exported(filled, tmp_path):
    filled.set_state([3, 25], "missing")
    filled.set_state([45], "excluded")
    assert exported(filled, tmp_path).images == 56
    hold_against(pl.read_parquet(tmp_path / "out.parquet"), oracle(filled), filled.x)


def test_files_without_a_vector_are_counted(filled, tmp_path):
    with filled.catalog.write() as conn:
        conn.execute(delete(Vector).where(Vector.row.in_([0, 1, 2])))
        conn.execute(update(File).where(File.image_id == 1003).values(image_id=None))
    done = exported(filled, tmp_path)
    assert (done.images, done.without) == (55, 4)


def test_copies_are_a_record_each(filled, tmp_path):
    with filled.catalog.write() as conn:
        conn.execute(update(File).where(File.image_id == 1004).values(image_id=1003))
    exported(filled, tmp_path)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    hold_against(frame, oracle(filled), filled.x)
    assert len(frame) == 59


def add_root(catalog, path: bytes, kind: str, files) -> int:
    """Add a root with files, each (path, source, label, image id)."""
    with catalog.write() as conn:
        values = {"path": path, "display": path.decode(), "kind": kind}
        root = conn.execute(
            insert(Root).values(**values, excludes={"globs": []}, added_at=0.0).returning(Root.id)
        ).scalar_one()
        stat = dict.fromkeys(("seen_size_bytes", "seen_mtime_ns", "seen_ctime_ns", "seen_inode"), 1)
        conn.execute(
            insert(File),
            [
                {
                    "root_id": root,
                    "path": name,
                    "display": "x",
                    "source": source,
                    "label": label,
                    "state": "live",
                    "first_seen_at": 0.0,
                    "image_id": image,
                    "trusted": True,
                    **stat,
                }
                for name, source, label, image in files
            ],
        )
    return root


def test_a_manifest_gives_ids_and_labels(filled, tmp_path):
    files = [
        (b"id-2", b"/photos/two.jpg", "cat", 1002),
        (b"id-1", b"/photos/one \xe9.jpg", None, 1001),
        (b"id \xff", b"/photos/three.jpg", 'dog, "big"', 1000),
    ]
    root = add_root(filled.catalog, b"/lists/all.tsv", "manifest", files)
    exported(filled, tmp_path)
    due = oracle(filled)
    assert len(due) == 62
    hold_against(pl.read_parquet(tmp_path / "out.parquet"), due, filled.x)
    exported(filled, tmp_path, "only.parquet", root=b"/lists/all.tsv")
    hold_against(pl.read_parquet(tmp_path / "only.parquet"), oracle(filled, root=root), filled.x)
    exported(filled, tmp_path, "only.tsv", root=b"/lists/all.tsv")
    lines = (tmp_path / "only.tsv").read_bytes().splitlines()
    assert [line.split(b"\t")[0] for line in lines] == [b"id \xff", b"id-1", b"id-2"]


def test_a_folder_of_a_root(filled, tmp_path):
    done = exported(filled, tmp_path, root=root_of(filled) + b"/b")
    assert done.images == 19
    hold_against(pl.read_parquet(tmp_path / "out.parquet"), oracle(filled, b"b/"), filled.x)
    with pytest.raises(RootError, match="is not in any root"):
        exported(filled, tmp_path, "x.csv", root=b"/nowhere")
    with pytest.raises(ExportError, match=r"there are no files below .*/nothing"):
        exported(filled, tmp_path, "x.csv", root=root_of(filled) + b"/nothing")


def test_one_id_in_two_roots(filled, tmp_path):
    add_root(filled.catalog, b"/second", "directory", [(b"b/0000003.jpg", None, None, 1003)])
    with pytest.raises(
        ExportError, match=r"b/0000003.jpg is in /second and in .*-root, .* use --absolute"
    ) as caught:
        exported(filled, tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out.parquet").exists()
    assert exported(filled, tmp_path, absolute=True).images == 60
    ids = pl.read_parquet(tmp_path / "out.parquet")["id"].to_list()
    assert ids == [os.fsdecode(path) for _, path, *_ in oracle(filled)]
    assert exported(filled, tmp_path, "second.csv", root=b"/second").images == 1
    with filled.catalog.write() as conn:
        conn.execute(update(File).where(File.image_id == 1003).values(state="missing"))
    assert exported(filled, tmp_path, overwrite=True).images == 58


def test_two_spaces_do_not_mix(filled, tmp_path):
    other = Filled(filled.catalog, 5, folder="-other")
    other.space = get_space(filled.catalog, other.space.name)
    other.add(clustered(9, 5, seed=5), folder="c/")
    space = get_space(filled.catalog, other.space.name)
    done = export_space(filled.catalog, space, str(tmp_path / "5.npy"), Wish())
    assert (done.images, done.without) == (9, 59)
    np.testing.assert_array_equal(np.load(tmp_path / "5_data.npy"), other.x)


def test_float16_spaces_are_exported_as_float32(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = with_parts(catalog, "float16")
        for name in ("out.npy", "out.parquet"):
            exported(filled, tmp_path, name)
        x = filled.x.astype(np.float16).astype(np.float32)
        due = oracle(filled)
        same_bits(np.load(tmp_path / "out_data.npy"), x[[row for *_, row in due]])
        hold_against(pl.read_parquet(tmp_path / "out.parquet"), due, x)


def test_parts_with_rows_left_out(local, tmp_path):
    local.x = np.concatenate([local.x, np.zeros((1, D), np.float32)])  # row 60 is left out
    x = clustered(3, D, seed=9)
    local.add(x, offsets=np.array([1, 2, 5]))
    exported(local, tmp_path)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    vectors = dict(zip(frame["id"].to_list(), frame["vector"].to_numpy(), strict=True))
    for row, vector in zip([61, 62, 65], x, strict=True):
        same_bits(vectors[f"{row:07}.jpg"], vector)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_part_is_one_line_and_leaves_nothing(local, tmp_path, damage):
    part = sorted(Path(local.store.folder).glob("*[0-9a-f].npy"))[1]
    data = bytearray(part.read_bytes())
    if damage == "gone":
        part.unlink()
    else:
        data[-5] ^= 1
        part.write_bytes(data if damage == "flip" else data[:-8])
    with pytest.raises(PartError, match=r"lookalike check (--deep )?--repair") as caught:
        exported(local, tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_only_the_parts_that_are_needed_are_read(local, tmp_path):
    for part in Path(local.store.folder).glob("*.npy"):
        if not part.name.endswith(".ids.npy") and not np.array_equal(np.load(part)[0], local.x[0]):
            part.write_bytes(b"")
    assert exported(local, tmp_path, root=root_of(local) + b"/b").images == 19
    with pytest.raises(PartError):
        exported(local, tmp_path, "all.csv")


def test_nothing_to_export(local, tmp_path):
    local.set_state(range(60), "missing")
    with pytest.raises(ExportError, match=r"there are no files below .*run `lookalike index"):
        exported(local, tmp_path)
    local.set_state(range(60), "live")
    with local.catalog.write() as conn:
        conn.execute(delete(Vector))
    with pytest.raises(ExportError, match=r"none of the 59 files .* has a vector in space tiny"):
        exported(local, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_progress_is_told(local, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * D * 25)
    told = []
    space = get_space(local.catalog)
    out = str(tmp_path / "x.csv")
    export_space(local.catalog, space, out, Wish(), lambda *of: told.append(of))
    assert told == [(25, 59), (50, 59), (59, 59)]


def test_what_is_committed_meanwhile_is_left_out(local, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 4 * D * 25)
    monkeypatch.setattr(module, "pages", lambda *args: real(*args, size=25))
    before = oracle(local)
    space = get_space(local.catalog)

    def commit(done, total):
        if done == 25:
            local.add(clustered(5, D, seed=8), folder="z/")

    done = export_space(local.catalog, space, str(tmp_path / "out.parquet"), Wish(), commit)
    assert done.images == 59
    assert len(oracle(local)) == 64
    hold_against(pl.read_parquet(tmp_path / "out.parquet"), before, local.x)
