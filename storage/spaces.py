"""Spaces: ways to make vectors.  A space is its fingerprint; its name is for people."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from storage.catalog import Catalog, insert_into
from storage.durable import delete_durably, make_dir
from storage.errors import LeaseHeld, SpaceError
from storage.fs import fs
from storage.leases import Lease, check_lease
from storage.space_names import recipe_name
from storage.tables import Claim, Failure, Generation, Part, Space, SpaceKey, Vector
from storage.turns import take_turns
from storage.whitenings import delete_unused, whitening_of


@dataclass(frozen=True)
class SpaceInfo:
    """One space as recorded."""

    id: int
    name: str
    fingerprint: str
    spec: Mapping[str, Any]
    request: Mapping[str, Any]
    dim: int
    dtype: str
    decode_version: int
    current: bool
    next_row: int
    created_at: float


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON of ``spec``.

    Canonical: keys in order, no white space, ASCII.  Raises ValueError on NaN and infinity.
    """
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def ensure_space(
    catalog: Catalog,
    *,
    name: str | None,
    spec: Mapping[str, Any],
    request: Mapping[str, Any],
    key: str,
) -> SpaceInfo:
    """Return the space of ``spec``, making it if it is new; the first one becomes current.

    Parameters
    ----------
    catalog
        Open for writing.
    name
        What the user calls it; None for the model's and layer's names, with a number if taken.
    spec
        Everything that the vectors depend on, with at least ``dim``, ``dtype`` and
        ``decode_version``.
    request
        ``model``, ``layer``, ``weights`` and what else was asked for.
    key
        What was typed and the weights file's signature; leads to the space from now on.

    Raises
    ------
    SpaceError
        The name belongs to another space, or the space has another name.
    """
    digest = fingerprint(spec)
    make_dir(catalog.home.parts_dir(digest))
    make_dir(catalog.home.index_dir(digest))
    with catalog.write() as conn:
        take_turns(conn)
        space = _find(conn, Space.fingerprint == digest)
        if space is None:
            space = _make(
                catalog,
                conn,
                name,
                {"fingerprint": digest, "spec": dict(spec), "request": dict(request)},
            )
        elif name not in (None, space.name):
            raise SpaceError(
                f"these vectors are those of the space {space.name!r}"
                f" ({digest[:16]}), not of a new space {name!r}; use --space {space.name}"
            )
        link = insert_into(conn, SpaceKey).values(key=key, space_id=space.id)
        conn.execute(
            link.on_conflict_do_update(index_elements=["key"], set_={"space_id": space.id})
        )
    return space


def space_for_key(catalog: Catalog, key: str) -> SpaceInfo | None:
    """Return the space that this request meant when it was last made, or None."""
    with catalog.read() as conn:
        meant = select(SpaceKey.space_id).where(SpaceKey.key == key).scalar_subquery()
        return _find(conn, Space.id == meant)


def get_space(catalog: Catalog, name: str | None = None) -> SpaceInfo:
    """Return the space of this name, or the current one.

    Raises
    ------
    SpaceError
        There is none; the message names those that there are.
    """
    with catalog.read() as conn:
        return _get(conn, name)


def list_spaces(catalog: Catalog) -> list[SpaceInfo]:
    """Return all spaces, oldest first."""
    with catalog.read() as conn:
        return [_info(row) for row in conn.execute(_columns().order_by(Space.id))]


def use_space(catalog: Catalog, name: str, *, force: bool = False) -> SpaceInfo:
    """Make the space of this name the current one: every reader sees the old one or this one.

    Parameters
    ----------
    catalog
        Open for writing.
    name
        The space.
    force
        Even where it has no vectors and the current one has some.

    Raises
    ------
    SpaceError
        There is none, or searches would find nothing any more.
    """
    with catalog.write() as conn:
        take_turns(conn)
        space = _get(conn, name)
        if not force and not _has_vectors(conn, Space.id == space.id):
            _refuse_empty(conn, name)
        # Only the two that change: on Postgres a commit into a third space is not waited for.
        changing = update(Space).where(Space.current != (Space.id == space.id))
        conn.execute(changing.values(current=Space.id == space.id))
        return _get(conn, name)


def drop_space(catalog: Catalog, lease: Lease, name: str) -> None:
    """Delete a space: its records in one transaction, then its files, at once.

    The catalog sends no new reader there.  One that is in the midst of a search finds the space
    gone, says so (``storage.reading.snapshot_in``) and can ask the current one; what it holds open
    keeps its disk until it lets go.

    Raises
    ------
    SpaceError
        There is none, or it is the current one of several.
    LeaseHeld
        Another run works in it.
    LeaseLost
        This run was declared dead.
    """
    with catalog.write() as conn:
        check_lease(conn, lease)
        take_turns(conn)
        space = _get(conn, name)
        others = select(Space.name).where(Space.id != space.id).order_by(Space.id)
        other = conn.execute(others).scalar()
        if space.current and other is not None:
            raise SpaceError(
                f"{name!r} is the current space; make another one current first,"
                f" e.g. `lookalike spaces use {other}`"
            )
        _refuse_busy(conn, lease, space)
        # Only what is here now: the same space may be made again before the files are gone.
        files = _files_below(catalog.home.space_dir(space.fingerprint))
        _delete_records(conn, space.id)
    for path in files:
        delete_durably(path)
    home = catalog.home
    for folder_of in (home.parts_dir, home.index_dir, home.space_dir):
        with suppress(OSError):  # not empty: made again
            fs().rmdir(folder_of(space.fingerprint))
    if digest := whitening_of(space.request):
        delete_unused(catalog, only=digest)


def _columns() -> Any:
    return select(*(getattr(Space, name) for name in SpaceInfo.__dataclass_fields__))


def _info(row: Row[Any]) -> SpaceInfo:
    return SpaceInfo(**row._mapping)


def _find(conn: Connection, condition: Any) -> SpaceInfo | None:
    row = conn.execute(_columns().where(condition)).first()
    return None if row is None else _info(row)


def _get(conn: Connection, name: str | None) -> SpaceInfo:
    space = _find(conn, Space.current if name is None else Space.name == name)
    if space is not None:
        return space
    names = list(conn.execute(select(Space.name).order_by(Space.id)).scalars())
    if not names:
        raise SpaceError("there is no space yet: run `lookalike index DIRECTORY`")
    if name is None:
        raise SpaceError(f"no space is current; choose one with --space: {', '.join(names)}")
    raise SpaceError(f"there is no space {name!r}; there are: {', '.join(names)}")


def _make(catalog: Catalog, conn: Connection, name: str | None, facts: dict[str, Any]) -> SpaceInfo:
    digest, spec = facts["fingerprint"], facts["spec"]
    taken = {
        row.name: row.fingerprint for row in conn.execute(select(Space.name, Space.fingerprint))
    }
    if name in taken:
        raise SpaceError(
            f"the space {name!r} has the fingerprint {taken[name][:16]}, these vectors have"
            f" {digest[:16]}; choose another name with --space"
        )
    space = {
        **facts,
        "name": name or _free_name(facts, taken),
        "dim": spec["dim"],
        "dtype": spec["dtype"],
        "decode_version": spec["decode_version"],
        "current": not taken,
        "created_at": catalog.now(conn),
    }
    conn.execute(insert(Space).values(space))
    return _get(conn, str(space["name"]))


def _free_name(facts: Mapping[str, Any], taken: Mapping[str, str]) -> str:
    request, spec = facts["request"], facts["spec"]
    stem = recipe_name(
        {
            **request,
            "model": request.get("model") or spec.get("architecture") or "space",
            "layer": request.get("layer") or spec.get("node"),
        }
    )
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


def _has_vectors(conn: Connection, condition: ColumnElement[bool]) -> bool:
    held = select(Vector.row).join(Space, Space.id == Vector.space_id).where(condition)
    return conn.execute(held.limit(1)).first() is not None


def _refuse_empty(conn: Connection, name: str) -> None:
    if _has_vectors(conn, Space.current.is_(True)):
        raise SpaceError(
            f"the space {name!r} has no vectors, and searches would find nothing: fill it with"
            f" `lookalike index --space {name}` first, or use --force"
        )


def _refuse_busy(conn: Connection, lease: Lease, space: SpaceInfo) -> None:
    # Postgres: a commit into the space locks it, so that none is under way after this.
    conn.execute(select(Space.id).where(Space.id == space.id).with_for_update())
    foreign = (_claims_in(space.id), Claim.run_id != lease.run_id)
    holder = conn.execute(select(Claim.run_id).where(*foreign)).scalar()
    if holder is not None:
        raise LeaseHeld(f"run {holder} works in the space {space.name!r}; wait for it to end")


def _delete_records(conn: Connection, space_id: int) -> None:
    conn.execute(delete(Claim).where(_claims_in(space_id)))
    for table in (Failure, Vector, Generation, Part, SpaceKey):
        conn.execute(delete(table).where(table.space_id == space_id))
    conn.execute(delete(Space).where(Space.id == space_id))


def _claims_in(space_id: int) -> ColumnElement[bool]:
    return (Claim.space_id == space_id) | ((Claim.kind == "space") & (Claim.subject_id == space_id))


def _files_below(folder: str) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
