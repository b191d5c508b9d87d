import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select

from storage.catalog import Catalog
from storage.errors import LeaseHeld, LeaseLost, SpaceError
from storage.leases import Lease, finish_run, start_run
from storage.runs import claim, work_in
from storage.spaces import (
    SpaceInfo,
    drop_space,
    ensure_space,
    fingerprint,
    get_space,
    list_spaces,
    space_for_key,
    use_space,
)
from storage.tables import Base, Claim, Failure, Generation, Image, Part, Space, SpaceKey, Vector
from tests.conftest import OpenCatalog

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPECS = st.dictionaries(st.text(), JSON, max_size=5)


def _make(catalog: Catalog, key: str, *, name: str | None = None, **spec: object) -> SpaceInfo:
    facts = {"dim": 8, "dtype": "float32", "decode_version": 1, **spec}
    request = {"model": "resnet50", "layer": "avgpool", "weights": "DEFAULT"}
    return ensure_space(catalog, name=name, spec=facts, request=request, key=key)


def _fill(catalog: Catalog, space: SpaceInfo) -> None:
    """Give the space one row in every table that knows spaces, and a file on disk."""
    file = {"size_bytes": 1, "created_at": 1.0, "checksum": "", "space_id": space.id}
    part = {**file, "name": f"part-{space.id}", "state": "live", "row_start": 0, "row_end": 1}
    generation = {**file, "name": f"generation-{space.id}", "state": "live", "row_end": 1, "n": 1}
    failure = {"stage": "forward", "failure_class": "nan", "message": "", "transient": False}
    failure |= {"first_at": 1.0, "last_at": 1.0, "run_id": "r"}
    image = {"digest": bytes([space.id]) * 32, "size_bytes": 1, "first_seen_at": 1.0}
    rows: list[tuple[type[Base], dict[str, Any]]] = [
        (Image, {**image, "id": space.id}),
        (Part, {**part, "n": 1, "ids_checksum": "", "run_id": "r", "facts": {}}),
        (Generation, {**generation, "factory": "Flat", "parameters": {}, "rowmap_checksum": ""}),
        (Vector, {"space_id": space.id, "image_id": space.id, "row": 0}),
        (
            Failure,
            {**failure, "space_id": space.id},
        ),
    ]
    with catalog.write() as conn:
        for table, row in rows:
            conn.execute(insert(table).values(row))
    Path(catalog.home.parts_dir(space.fingerprint), "part.npy").write_bytes(b"vectors")


def _rows(catalog: Catalog, space: SpaceInfo) -> dict[str, int]:
    counts = {}
    with catalog.read() as conn:
        for table in (Part, Generation, Vector, Failure, SpaceKey, Claim):
            query = select(func.count()).where(table.space_id == space.id)
            counts[table.__tablename__] = conn.execute(query).scalar_one()
    return counts


@given(SPECS)
def test_a_fingerprint_knows_no_order_of_keys(spec: dict[str, Any]) -> None:
    assert fingerprint(dict(reversed(spec.items()))) == fingerprint(spec)


@given(SPECS, SPECS)
def test_two_specs_share_a_fingerprint_only_if_they_are_equal(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    if fingerprint(one) == fingerprint(two):
        assert one == two


def test_a_fingerprint_is_a_known_hash_of_a_known_text() -> None:
    known = '{"a":[1,0.1],"b":"\\u00e9"}'
    assert fingerprint({"b": "é", "a": (1, 0.1)}) == hashlib.sha256(known.encode()).hexdigest()
    with pytest.raises(ValueError, match="Out of range"):
        fingerprint({"mean": float("nan")})


def test_equal_specs_are_one_space_and_different_ones_two(catalog: Catalog) -> None:
    first = _make(catalog, "k1")
    again = _make(catalog, "k2")
    half = _make(catalog, "k3", dtype="float16")
    third = _make(catalog, "k4", dim=16)
    assert first == again
    assert [space.name for space in list_spaces(catalog)] == [
        "resnet50-avgpool",
        "resnet50-avgpool-2",
        "resnet50-avgpool-3",
    ]
    assert (half.dim, half.dtype, third.dim, third.dtype) == (8, "float16", 16, "float32")
    assert first.spec == {"dim": 8, "dtype": "float32", "decode_version": 1}
    assert (first.next_row, first.decode_version) == (0, 1)
    assert os.path.isdir(catalog.home.parts_dir(half.fingerprint))
    assert os.path.isdir(catalog.home.index_dir(half.fingerprint))


@pytest.mark.parametrize(
    ("request_", "spec", "name"),
    [
        ({"model": "vgg16", "layer": None}, {"node": "classifier.4"}, "vgg16-classifier.4"),
        ({"model": "vgg16"}, {}, "vgg16"),
        ({}, {"architecture": "tiny", "node": "pool"}, "tiny-pool"),
        ({}, {}, "space"),
    ],
)
def test_a_space_without_a_name_is_called_by_what_made_it(
    request_: dict[str, Any], spec: dict[str, Any], name: str, catalog: Catalog
) -> None:
    facts = {"dim": 8, "dtype": "float32", "decode_version": 1, **spec}
    made = ensure_space(catalog, name=None, spec=facts, request=request_, key="k")
    assert made.name == name


def test_a_key_leads_to_the_space_that_it_last_meant(catalog: Catalog) -> None:
    assert space_for_key(catalog, "k") is None
    first = _make(catalog, "k")
    assert space_for_key(catalog, "k") == first
    second = _make(catalog, "k", dim=16)
    assert space_for_key(catalog, "k") == second


def test_a_name_belongs_to_one_fingerprint(catalog: Catalog) -> None:
    mine = _make(catalog, "k1", name="mine")
    assert _make(catalog, "k1", name="mine") == mine
    other = fingerprint({**mine.spec, "dim": 16})
    with pytest.raises(SpaceError, match=rf"'mine' has .*{mine.fingerprint[:16]}.*{other[:16]}"):
        _make(catalog, "k2", name="mine", dim=16)
    with pytest.raises(SpaceError, match=r"'mine' .*not of a new space 'yours'; use --space mine"):
        _make(catalog, "k3", name="yours")
    assert [space.name for space in list_spaces(catalog)] == ["mine"]
    assert space_for_key(catalog, "k2") is None


def test_the_first_space_is_current_until_another_is_chosen(catalog: Catalog) -> None:
    with pytest.raises(SpaceError, match="no space yet: run `lookalike index"):
        get_space(catalog)
    first, second = _make(catalog, "k1"), _make(catalog, "k2", dim=16)
    assert get_space(catalog) == first
    assert get_space(catalog, second.name) == second
    assert use_space(catalog, second.name).current
    assert [space.current for space in list_spaces(catalog)] == [False, True]
    assert get_space(catalog).id == second.id
    with pytest.raises(SpaceError, match=f"no space 'x'; there are: {first.name}, {second.name}"):
        use_space(catalog, "x")
    assert get_space(catalog).id == second.id


def test_every_reader_sees_exactly_one_current_space(
    catalog: Catalog, open_catalog: OpenCatalog
) -> None:
    names = [_make(catalog, "k1").name, _make(catalog, "k2", dim=16).name]
    reading = open_catalog(write=False)
    done = threading.Event()
    seen: list[tuple[str, ...]] = []
    current = select(Space.name).where(Space.current)

    def look() -> None:
        while not done.is_set():
            with reading.read() as conn:
                first = tuple(conn.execute(current).scalars())
                seen.append(first if first == tuple(conn.execute(current).scalars()) else ())

    def switch(name: str) -> None:
        for _ in range(25):
            use_space(catalog, name)

    readers = [threading.Thread(target=look) for _ in range(2)]
    writers = [threading.Thread(target=switch, args=(name,)) for name in names]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert set(seen) == {(name,) for name in names}


def test_an_empty_space_becomes_current_only_by_force(catalog: Catalog) -> None:
    full, empty = _make(catalog, "k1"), _make(catalog, "k2", dim=16)
    assert use_space(catalog, empty.name).current  # nothing is lost by it yet
    use_space(catalog, full.name)
    _fill(catalog, full)
    with pytest.raises(SpaceError, match=f"no vectors.*`lookalike index --space {empty.name}`"):
        use_space(catalog, empty.name)
    assert get_space(catalog).id == full.id
    assert use_space(catalog, full.name).current
    assert use_space(catalog, empty.name, force=True).current
    assert get_space(catalog).id == empty.id


def test_of_spaces_made_at_the_same_moment_one_is_current(catalog: Catalog) -> None:
    start = threading.Barrier(6)

    def make(number: int) -> None:
        start.wait()
        _make(catalog, f"k{number}", dim=number // 2 + 1)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spaces = list_spaces(catalog)
    assert sorted(space.dim for space in spaces) == [1, 2, 3]
    assert sum(space.current for space in spaces) == 1
    assert all(space_for_key(catalog, f"k{number}") for number in range(6))


def test_where_no_space_is_current_one_must_be_chosen(catalog: Catalog, lease: Lease) -> None:
    first = _make(catalog, "k1")
    drop_space(catalog, lease, first.name)
    second = _make(catalog, "k2", dim=16)
    assert second.current
    use_space(catalog, second.name)
    with catalog.write() as conn:
        conn.exec_driver_sql("UPDATE spaces SET current = false")
    with pytest.raises(SpaceError, match=f"choose one with --space: {second.name}"):
        get_space(catalog)


def test_dropping_a_space_leaves_the_others_whole(catalog: Catalog, lease: Lease) -> None:
    kept, dropped = _make(catalog, "k1"), _make(catalog, "k2", dim=16)
    for space in (kept, dropped):
        _fill(catalog, space)
    claim(catalog, lease, "file", 1, space_id=dropped.id)
    before = _rows(catalog, kept)
    assert set(_rows(catalog, dropped).values()) == {1}
    drop_space(catalog, lease, dropped.name)
    assert set(_rows(catalog, dropped).values()) == {0}
    assert _rows(catalog, kept) == before
    assert list_spaces(catalog) == [kept]
    assert not os.path.exists(catalog.home.space_dir(dropped.fingerprint))
    assert os.listdir(catalog.home.parts_dir(kept.fingerprint)) == ["part.npy"]


def test_the_current_space_is_dropped_only_as_the_last(catalog: Catalog, lease: Lease) -> None:
    first, second = _make(catalog, "k1"), _make(catalog, "k2", dim=16)
    with pytest.raises(SpaceError, match=f"current space; .*`lookalike spaces use {second.name}`"):
        drop_space(catalog, lease, first.name)
    use_space(catalog, second.name)
    drop_space(catalog, lease, first.name)
    drop_space(catalog, lease, second.name)
    assert list_spaces(catalog) == []
    assert not catalog.home.has_spaces()
    again = _make(catalog, "k1")
    assert again.current
    assert again.id not in (first.id, second.id)


@pytest.mark.parametrize("kind", ["file", "space", "work"])
def test_a_space_in_use_is_not_dropped(kind: str, catalog: Catalog, lease: Lease) -> None:
    space, other = _make(catalog, "k1"), start_run(catalog, "index")
    if kind == "file":
        claim(catalog, other, "file", 5, space_id=space.id)
    elif kind == "space":
        claim(catalog, other, "space", space.id)
    else:
        work_in(catalog, other, space)
    with pytest.raises(LeaseHeld, match=f"{other.run_id} works in the space '{space.name}'"):
        drop_space(catalog, lease, space.name)
    assert get_space(catalog) == space
    finish_run(catalog, other, "done")
    claim(catalog, lease, "space", space.id)
    work_in(catalog, lease, space)
    drop_space(catalog, lease, space.name)
    assert list_spaces(catalog) == []
    with catalog.read() as conn:
        assert conn.execute(select(Claim.kind)).all() == []
    with pytest.raises(SpaceError, match=f"{space.name} was dropped meanwhile"):
        work_in(catalog, lease, space)


def test_many_runs_work_in_a_space_at_once(catalog: Catalog, lease: Lease) -> None:
    space, leases = _make(catalog, "k1"), [start_run(catalog, "index") for _ in range(8)]
    gate = threading.Barrier(len(leases))

    def enter(mine: Lease) -> None:
        gate.wait(30)
        work_in(catalog, mine, space)
        work_in(catalog, mine, space)  # an answer may be lost

    with ThreadPoolExecutor(len(leases)) as pool:
        list(pool.map(enter, leases))
    with catalog.read() as conn:
        runs = list(conn.execute(select(Claim.run_id)).scalars())
    assert sorted(runs) == sorted(each.run_id for each in leases)
    for each in leases:
        with pytest.raises(LeaseHeld, match="works in the space"):
            drop_space(catalog, lease, space.name)
        finish_run(catalog, each, "done")
    drop_space(catalog, lease, space.name)


def test_a_dead_run_drops_nothing(catalog: Catalog, lease: Lease, space: SpaceInfo) -> None:
    finish_run(catalog, lease, "done")
    with pytest.raises(LeaseLost):
        drop_space(catalog, lease, space.name)
    assert list_spaces(catalog) == [space]


def test_a_folder_that_is_gone_already_is_no_trouble(
    catalog: Catalog, lease: Lease, space: SpaceInfo
) -> None:
    os.rmdir(catalog.home.parts_dir(space.fingerprint))
    drop_space(catalog, lease, space.name)
    assert not os.path.exists(catalog.home.space_dir(space.fingerprint))
