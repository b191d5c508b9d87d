"""The command on real photos with real weights, and on a thousand awkward files."""

import hashlib
import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image, ImageOps
from sqlalchemy import exists, func, select

from search.engine import Searcher
from storage.catalog import Catalog
from storage.home import Home
from storage.tables import Failure, File, Vector
from storage.tables import Image as ImageRow
from tests.flows.terminal import lookalike
from tests.reliability.test_kill import vectors_by_digest

pytestmark = pytest.mark.data

OUTCOMES = ("extracted", "touched", "moved", "copied", "reused", "failed", "busy", "pending")
"""What may become of a file that is read: one of these."""


@pytest.fixture
def corel(data_dir, tmp_path):
    """Copy the thousand photos, ten classes of a hundred, so that they can be changed."""
    shutil.copytree(data_dir / "photos" / "corel-1k", tmp_path / "corel")
    for folder in (tmp_path / "corel").rglob("*"):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    return tmp_path / "corel"


def test_a_thousand_photos_are_found_by_class_and_only_changes_are_extracted(
    corel, data_dir, tmp_path
):
    weights = str(data_dir / "weights" / "resnet18.pth")
    first = json.loads(
        lookalike("index", str(corel), "--model", "resnet18", "--weights", weights, "--json").stdout
    )
    assert (first["extracted"], first["failed"]) == (1000, 0)
    assert precision_at_10(tmp_path / "home", corel) >= 0.94

    second = json.loads(lookalike("index", "--json").stdout)
    assert (second["extracted"], second["scanned"]) == (0, 1000)

    time.sleep(2.6)  # nothing is too young to be trusted any more
    lookalike("index")
    change(corel, tmp_path / "aside")
    third = json.loads(lookalike("index", "--json").stdout)
    counts = {
        name: third[name]
        for name in ("extracted", "touched", "moved", "copied", "new", "missing", "failed")
    }
    assert counts == {
        "extracted": 5,
        "touched": 10,
        "moved": 7,
        "copied": 3,
        "new": 10,  # the places of the moved and the copied
        "missing": 11,  # the deleted, and where the moved were
        "failed": 0,
    }
    assert third["reasons"]["new"] == 10
    assert third["changed"] == 15
    # What was so young that it is read once more has the bytes that it had, and nothing else has.
    last = json.loads(lookalike("index", "--json").stdout)
    assert (last["scanned"], last["index"], last["exit_code"]) == (999, None, 0)
    assert set(last["reasons"]) <= {"racy"}
    assert {name: last[name] for name in OUTCOMES} == {
        **dict.fromkeys(OUTCOMES, 0),
        "touched": last["reasons"].get("racy", 0),
    }
    time.sleep(2.6)
    lookalike("index")
    assert lookalike("index").stdout.startswith("Nothing changed: 999 files scanned in ")


def change(corel, aside):
    """Touch 10 photos, edit 5, move 7, copy 3 and delete 4."""
    for n in range(10):
        os.utime(corel / "0" / f"{n}.jpg")
    for n in range(100, 105):
        path = corel / "1" / f"{n}.jpg"
        with Image.open(path) as photo:
            ImageOps.mirror(photo).save(path, quality=95)
    (corel / "moved").mkdir()
    for n in range(200, 207):
        (corel / "2" / f"{n}.jpg").rename(corel / "moved" / f"{n}.jpg")
    for n in range(300, 303):
        shutil.copy(corel / "3" / f"{n}.jpg", corel / "3" / f"copy-{n}.jpg")
    for n in range(400, 404):
        (corel / "4" / f"{n}.jpg").unlink()


def precision_at_10(home, corel):
    """Return the share of the ten nearest other photos that are of the query's class."""
    queries = sorted(os.fsencode(path) for path in corel.rglob("*.jpg"))
    with Searcher(Home(str(home))) as searcher:
        answers = searcher.search_paths(queries, k=10, no_self=True)
    right = [
        os.path.dirname(hit.path) == os.path.dirname(answer.query)
        for answer in answers
        for hit in answer.hits
    ]
    assert len(right) == 10_000
    return float(np.mean(right))


def test_awkward_files_are_indexed_or_say_why_and_shift_nobody(data_dir, tmp_path):
    folder = data_dir / "torture"
    lines = (folder / "MANIFEST.tsv").read_text().splitlines()[1:]
    torture = [folder / line.split("\t")[0] for line in lines]
    assert len(torture) == 1103
    photos = sorted((data_dir / "photos" / "imagenet-sample").glob("*.JPEG"))[:50]
    model = ("--model", "resnet18", "--weights", str(data_dir / "weights" / "resnet18.pth"))
    # The good photos lie between the awkward ones, so that they share batches.
    mixed = list(torture)
    for n, photo in enumerate(photos):
        mixed.insert(n * 22, photo)
    alone, beside = Home(str(tmp_path / "alone")), Home(str(tmp_path / "beside"))
    lookalike("--home", alone.path, "index", manifest(tmp_path / "alone.txt", photos), *model)
    done = lookalike(
        "--home",
        beside.path,
        "index",
        manifest(tmp_path / "all.txt", mixed),
        *model,
        "--json",
        code=3,
    )
    report = json.loads(done.stdout)
    assert report["scanned"] == 1153
    assert sum(report[name] for name in OUTCOMES) == 1153
    assert {name for name in OUTCOMES if report[name]} == {"extracted", "copied", "failed"}
    assert sum(report["failures"].values()) == report["failed"]
    kept, broken = images_with_and_without_a_vector(beside)
    assert kept | broken == {sha256_of(path) for path in mixed}
    assert not kept & broken
    assert report["extracted"] == len(kept)
    # A further file of an image is a copy where that has a vector, and a failure where it can't.
    assert report["failed"] == sum(sha256_of(path) in broken for path in mixed)
    assert report["copied"] == sum(sha256_of(path) in kept for path in mixed) - len(kept)
    assert set(report["failures"]) <= {
        "unsupported",
        "truncated",
        "corrupt",
        "too_large",
        "empty",
        "zero",
    }
    assert report["failures"]["unsupported"] > 100
    every_file_has_a_vector_or_a_reason(beside)
    ours, theirs = vectors_by_digest(alone), vectors_by_digest(beside)
    assert len(ours) == 50
    for digest, vector in ours.items():
        assert float(vector @ theirs[digest]) >= 0.999999
    again = json.loads(lookalike("--home", beside.path, "index", "--json").stdout)
    assert (again["extracted"], again["failed"]) == (0, 0)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).digest()


def images_with_and_without_a_vector(home):
    """Return the digests of the images that have a vector, and of those that have a failure."""
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        kept = select(ImageRow.digest).join(Vector, Vector.image_id == ImageRow.id)
        broken = select(Failure.digest)
        return set(conn.execute(kept).scalars()), set(conn.execute(broken).scalars())


def manifest(path, pictures):
    path.write_text("".join(f"{picture}\n" for picture in pictures))
    return str(path)


def every_file_has_a_vector_or_a_reason(home):
    with Catalog.open(home, write=False) as catalog, catalog.read() as conn:
        assert conn.execute(select(func.count()).select_from(File)).scalar() == 1153
        vector = exists().where(Vector.image_id == File.image_id)
        failed = exists().where(Failure.digest == ImageRow.digest, ImageRow.id == File.image_id)
        unread = exists().where(Failure.file_id == File.id)
        silent = select(File.display).where(~vector, ~failed, ~unread)
        assert conn.execute(silent).scalars().all() == []
