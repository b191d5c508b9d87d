"""Runs at work: what each has for itself, and the thread that keeps its lease.

The lease itself is made, checked and ended in `storage.leases`.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, Self

from sqlalchemy import Connection, delete, func, insert, select

from storage.catalog import Catalog, insert_into
from storage.errors import LeaseHeld, LeaseLost, SpaceError, StorageError
from storage.leases import RENEW_S, Lease, check_lease, reap, renew
from storage.spaces import SpaceInfo
from storage.tables import Claim, Run, Space


def claim(
    at: Catalog | Connection, lease: Lease, kind: str, subject_id: int, space_id: int = 0
) -> None:
    """Take a root, a file or a space for this run.  What it has already, it keeps.

    Parameters
    ----------
    at
        An open write transaction; or the catalog, and then runs that are dead are declared so and
        do not stand in the way.
    lease
        The run's lease.
    kind, subject_id, space_id
        ``root``, ``file`` or ``space``, its number, and for a file the space's number.

    Raises
    ------
    LeaseHeld
        Another run has it; the message names run, host and process.
    LeaseLost
        This run was declared dead.
    """
    row = {"kind": kind, "space_id": space_id, "subject_id": subject_id}
    with _transaction(at) as conn:
        check_lease(conn, lease)
        holder = _take(conn, lease, row)
    if holder is not None and isinstance(at, Catalog) and reap(at):
        with at.write() as conn:
            check_lease(conn, lease)
            holder = _take(conn, lease, row)
    if holder is not None:
        raise LeaseHeld(f"the {kind} is in use by {holder}; wait for it to end, or stop it")


def release(
    at: Catalog | Connection, lease: Lease, kind: str, subject_id: int, space_id: int = 0
) -> None:
    """Give back what `claim` took.  What another run has, stays with it."""
    row = {"kind": kind, "space_id": space_id, "subject_id": subject_id}
    with _transaction(at) as conn:
        mine = delete(Claim).where(Claim.run_id == lease.run_id)
        conn.execute(mine.where(*(getattr(Claim, name) == value for name, value in row.items())))


def work_in(catalog: Catalog, lease: Lease, space: SpaceInfo) -> None:
    """Say that this run works in a space, beside others, until it ends; nobody drops it meanwhile.

    Raises
    ------
    SpaceError
        The space was dropped meanwhile.
    LeaseLost
        This run was declared dead.
    """
    works = (Claim.kind == "work", Claim.space_id == space.id)
    mine = select(Claim.run_id).where(*works, Claim.run_id == lease.run_id)
    last = select(func.coalesce(func.max(Claim.subject_id), 0)).where(*works)
    with catalog.write() as conn:
        check_lease(conn, lease)
        # Postgres: the numbers of two runs differ, and it is not dropped at the same time.
        locked = select(Space.id).where(Space.id == space.id).with_for_update()
        if conn.execute(locked).first() is None:
            raise SpaceError(f"the space {space.name} was dropped meanwhile")
        if conn.execute(mine).first() is not None:
            return
        row = {"kind": "work", "space_id": space.id, "run_id": lease.run_id, "chunk": 0}
        number = conn.execute(last).scalar_one() + 1
        conn.execute(insert(Claim).values(**row, subject_id=number))


class Heartbeat:
    """Renews a lease in the background, for as long as the context lasts or the lease does.

    A catalog that does not answer is no loss yet: every commit checks the lease by itself.
    """

    def __init__(self, catalog: Catalog, lease: Lease, every_s: float = RENEW_S) -> None:
        self._catalog = catalog
        self._lease = lease
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                renew(self._catalog, self._lease)
            except LeaseLost:
                return  # the next commit says so
            except StorageError:
                continue  # busy or out of reach: the next beat tries again


def _take(conn: Connection, lease: Lease, row: dict[str, Any]) -> str | None:
    """Insert the claim; return in words who has it if it is not this run."""
    values = {**row, "run_id": lease.run_id, "chunk": 0}
    take = insert_into(conn, Claim).values(values).on_conflict_do_nothing()
    if conn.execute(take.returning(Claim.run_id)).first() is not None:
        return None
    holder = conn.execute(
        select(Run.id, Run.host, Run.pid, Run.started_at)
        .join(Claim, Claim.run_id == Run.id)
        .where(*(getattr(Claim, name) == value for name, value in row.items()))
    ).first()
    if holder is None:
        return _take(conn, lease, row)  # given back between the two statements
    if holder.id == lease.run_id:
        return None
    since = datetime.fromtimestamp(holder.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"run {holder.id} (host {holder.host}, process {holder.pid}, since {since})"


def _transaction(at: Catalog | Connection) -> AbstractContextManager[Connection]:
    return at.write() if isinstance(at, Catalog) else nullcontext(at)
