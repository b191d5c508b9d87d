"""What the deep check finds beyond checksums: the index against the vectors, and pictures anew."""

import numpy as np
import pytest
from sqlalchemy import select, update

from storage.build import build
from storage.check import Depth, check
from storage.check_again import SAMPLE, Made
from storage.compact import compact
from storage.forget import forget
from storage.generation import write_generation
from storage.kinds import spec_of
from storage.leases import start_run
from storage.publish import publish
from storage.reading import Rows, open_store, snapshot
from storage.tables import File, Generation, Image, Vector
from tests.storage.filled import Filled, clustered, local_catalog, root_of

D = 16


@pytest.fixture
def filled(sqlite_template, tmp_path):
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        for seed in range(3):
            filled.add(clustered(200, D, seed=seed))
        yield filled


@pytest.fixture
def lease(filled):
    return start_run(filled.catalog, "check")


def errors(found):
    return [finding.what for finding in found if finding.severity == "error"]


def put_in(filled, lease, x, rowmap, factory="Flat"):
    """Publish an index of x as that of some rows, with right sizes and checksums."""
    made = publish(filled.catalog, lease, filled.space, factory)

    class Given:
        d = D

        def blocks(self, rows=None):
            yield np.arange(len(x)), x

        def gather(self, rows):
            return x[np.asarray(rows)]

    index = build(Given(), np.arange(len(x)), spec_of(factory))
    folder = filled.catalog.home.index_dir(filled.space.fingerprint)
    written = write_generation(folder, "wrong-index", index, np.asarray(rowmap))
    values = {"name": "wrong-index", "n": len(rowmap), "checksum": written.checksum}
    values |= {"size_bytes": written.size_bytes, "rowmap_checksum": written.rowmap_checksum}
    with filled.catalog.write() as conn:
        conn.execute(update(Generation).where(Generation.id == made.id).values(values))


class TestIndex:
    @pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW16", "SQ8", "auto"])
    def test_of_every_kind_it_is_sound_as_published(self, filled, lease, factory):
        publish(filled.catalog, lease, filled.space, factory)
        assert check(filled.catalog, deep=True) == []

    @pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
    def test_one_of_the_wrong_vectors_is_found_and_built_anew(self, filled, lease, factory):
        put_in(filled, lease, filled.x[::-1].copy(), np.arange(600), factory)
        assert check(filled.catalog) == []
        [found] = errors(check(filled.catalog, deep=True))
        assert "of 100 of its own vectors" in found
        mended = check(filled.catalog, deep=True, repair=True, lease=lease)
        assert all(finding.repaired for finding in mended)
        assert check(filled.catalog, deep=True) == []

    def test_a_shifted_rowmap_is_found(self, filled, lease):
        put_in(filled, lease, np.roll(filled.x, 1, axis=0), np.arange(600))
        assert len(errors(check(filled.catalog, deep=True))) == 1

    def test_one_that_lacks_rows_is_found_and_built_anew(self, filled, lease):
        put_in(filled, lease, filled.x[:599], np.arange(599))
        assert "lacks 1 rows" in errors(check(filled.catalog, deep=True))[0]
        check(filled.catalog, deep=True, repair=True, lease=lease)
        assert check(filled.catalog, deep=True) == []

    def test_dead_rows_in_it_are_none_of_its_faults(self, filled, lease):
        publish(filled.catalog, lease, filled.space)
        filled.set_state(range(100, 150), "excluded")
        compact(filled.catalog, lease, filled.space, force=True)
        found = check(filled.catalog, deep=True)
        assert errors(found) == []


def again_of(filled, wrong=lambda n: (), change=lambda x: np.roll(x, 1), precision="float32"):
    """Return a function that gives the stored vectors back, some of them changed."""

    def again(space, paths):
        view = snapshot(filled.catalog, space)
        with filled.catalog.read() as conn:
            query = select(File.path, Image.digest, Vector.row)
            query = query.join(Image, Image.id == File.image_id)
            rows = conn.execute(query.join(Vector, Vector.image_id == Image.id)).all()
        root = root_of(filled)
        of_path = {root + b"/" + path: (digest, row) for path, digest, row in rows}
        found = [of_path[path] for path in paths]
        x = Rows(open_store(filled.catalog, space), view.parts).gather([row for _, row in found])
        for at in wrong(len(x)):
            x[at] = change(x[at])
        return Made(dict(zip([digest for digest, _ in found], x, strict=True)), precision)

    return again


class TestAgain:
    def test_what_gives_the_stored_vectors_is_sound(self, filled):
        depth = Depth(deep=True, again=again_of(filled), seed=1)
        assert check(filled.catalog, deep=depth) == []
        assert (depth.looked.again, depth.looked.vectors) == (SAMPLE, 600)

    def test_a_part_with_a_vector_that_is_not_given_again_is_dropped(self, filled, lease):
        publish(filled.catalog, lease, filled.space)
        depth = Depth(again=again_of(filled, wrong=lambda n: [n - 1]), seed=1)
        found = check(filled.catalog, deep=depth)
        assert "1 of 16 pictures" in errors(found)[0]
        assert root_of(filled).decode() in errors(found)[0]
        mended = check(filled.catalog, deep=depth, repair=True, lease=lease)
        assert all(finding.repaired for finding in mended)
        with filled.catalog.read() as conn:
            left = conn.execute(select(Vector.row)).scalars().all()
        assert len(left) == 400
        assert check(filled.catalog, deep=True) == []

    def test_where_most_differ_nothing_is_given_up(self, filled, lease):
        depth = Depth(again=again_of(filled, wrong=range), seed=1)
        found = check(filled.catalog, deep=depth, repair=True, lease=lease)
        assert "work otherwise here" in errors(found)[0]
        assert not any(finding.repaired for finding in found)
        assert check(filled.catalog, deep=True) == []
        with filled.catalog.read() as conn:
            assert len(conn.execute(select(Vector.row)).all()) == 600

    @pytest.mark.parametrize(
        ("precision", "noise", "sound"),
        [("float32", 1e-4, True), ("float32", 1e-2, False), ("float16", 1e-2, True)],
    )
    def test_precision_decides_how_close_is_close(self, filled, precision, noise, sound):
        def near(x):
            y = x + noise * np.random.default_rng(0).standard_normal(D).astype(np.float32) / 4
            return y / np.linalg.norm(y)

        with filled.catalog.write() as conn:
            conn.execute(update_facts({"precision": "float32"}))
        again = again_of(filled, wrong=lambda n: [0], change=near, precision=precision)
        found = errors(check(filled.catalog, deep=Depth(again=again, seed=2)))
        assert (found == []) == sound

    def test_not_a_number_is_not_close(self, filled):
        again = again_of(filled, wrong=lambda n: [0], change=lambda x: x * np.nan)
        assert len(errors(check(filled.catalog, deep=Depth(again=again, seed=2)))) == 1

    def test_pictures_with_other_bytes_by_now_are_not_compared(self, filled):
        depth = Depth(again=lambda _space, paths: Made({b"x" * 32: np.ones(D, np.float32)}))
        assert check(filled.catalog, deep=depth) == []
        assert depth.looked.again == 0

    def test_why_none_could_be_made_is_said(self, filled):
        depth = Depth(again=lambda _space, _paths: Made({}, why="the weights are gone"))
        [found] = check(filled.catalog, deep=depth)
        assert (found.severity, found.what.endswith("the weights are gone")) == ("info", True)

    def test_another_sample_is_drawn_each_time(self, filled):
        asked = []

        def again(_space, paths):
            asked.append(tuple(paths))
            return Made({})

        for _ in range(3):
            check(filled.catalog, deep=Depth(again=again))
        assert len(set(asked)) == 3
        assert {len(paths) for paths in asked} == {SAMPLE}


def update_facts(facts):
    from storage.tables import Part

    return update(Part).values(facts=facts)


def test_what_forget_deletes_meanwhile_is_no_damage(filled, lease, monkeypatch):
    import storage.check_space

    inspect, done = storage.check_space._inspect, []

    def forgets_first(catalog, view, depth):
        if not done:
            done.append(forget(catalog, lease, [root_of(filled) + b"/0000000.jpg"]))
        return inspect(catalog, view, depth)

    monkeypatch.setattr(storage.check_space, "_inspect", forgets_first)
    assert check(filled.catalog, deep=True) == []
    assert done[0].vectors == 1


def test_damage_is_still_found_where_runs_commit_all_the_time(filled, monkeypatch):
    import os

    import storage.check_space

    inspect = storage.check_space._inspect
    view = snapshot(filled.catalog, filled.space)
    os.unlink(open_store(filled.catalog, filled.space).path(view.parts[0].name))

    def commits_first(catalog, view, depth):
        filled.add(clustered(5, D, seed=view.next_row))
        return inspect(catalog, view, depth)

    monkeypatch.setattr(storage.check_space, "_inspect", commits_first)
    assert len(errors(check(filled.catalog))) == 2
