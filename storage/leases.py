"""Leases: which run may write, and how a dead run is recognised.

A run owns a lease: a secret token beside the owner's host, boot, process and process start.  On the
machine of a dead owner its lease is void at once; elsewhere it runs out `LEASE_S` seconds after it
was last renewed.  Every transaction that writes for a run begins with `check_lease`, so that a run
which was declared dead commits nothing more.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    UpdateBase,
    and_,
    delete,
    insert,
    select,
    true,
    update,
)

from storage.catalog import Catalog
from storage.errors import LeaseLost
from storage.owner import Owner, is_gone, this_process
from storage.suspects import suspect_claimed
from storage.tables import Claim, Run

LEASE_S = 120.0
RENEW_S = 30.0
"""How often `storage.runs.Heartbeat` renews a lease."""


@dataclass(frozen=True)
class Lease:
    """A run's right to write.  The token is secret."""

    run_id: str
    token: str


@dataclass(frozen=True)
class RunState:
    """Whose a run is, and whether it is ``going``: it holds its lease, and need not stop."""

    owner: Owner
    going: bool


def start_run(catalog: Catalog, kind: str, flow_run: str | None = None) -> Lease:
    """Record a new run of this process and return its lease.

    Parameters
    ----------
    kind
        ``index``, ``backfill`` or what else writes.
    flow_run
        Id of the flow run in Prefect that carries it out, if any.
    """
    owner, token = this_process(), secrets.token_hex(16)
    with catalog.write() as conn:
        now = catalog.now(conn)
        started = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%S")
        run_id = f"{started}-{secrets.token_hex(3)}"
        row = {
            "id": run_id,
            "kind": kind,
            "state": "running",
            "started_at": now,
            "token": token,
            "expires_at": now + LEASE_S,
            "host": owner.host,
            "boot": owner.boot,
            "pid": owner.pid,
            "process_start": owner.process_start,
            "flow_run": flow_run,
        }
        conn.execute(insert(Run).values(row))
    return Lease(run_id, token)


def renew(catalog: Catalog, lease: Lease) -> None:
    """Put the lease's end off to `LEASE_S` seconds from now.

    Raises
    ------
    LeaseLost
        The run was declared dead, or has ended.
    """
    with catalog.write() as conn:
        held = _held(lease)
        later = catalog.now(conn) + LEASE_S
        if changed(conn, update(Run).where(*held).values(expires_at=later)) == 0:
            raise _lost(lease)


def check_lease(conn: Connection, lease: Lease) -> None:
    """Refuse to go on without the lease; keeps it until the transaction ends.

    Raises
    ------
    LeaseLost
        The run was declared dead, or has ended.
    """
    # Postgres: nobody declares the run dead between this check and the commit.
    query = select(Run.id).where(*_held(lease)).with_for_update(read=True)
    if conn.execute(query).scalar() is None:
        raise _lost(lease)


def run_state(catalog: Catalog, lease: Lease) -> RunState:
    """Look at a run, from wherever its work is done; a run that has ended is not going."""
    owner = (Run.host, Run.boot, Run.pid, Run.process_start)
    going = and_(*_held(lease), Run.stopping.is_not(true()))
    with catalog.read() as conn:
        row = conn.execute(select(*owner, going).where(Run.id == lease.run_id)).one_or_none()
    if row is None:
        return RunState(Owner("", "", 0, ""), going=False)
    return RunState(Owner(*row[:4]), going=bool(row[4]))


def ask_to_stop(catalog: Catalog, lease: Lease) -> None:
    """Tell the run's workers, on whatever host, to stop; nothing happens where it has ended."""
    with catalog.write() as conn:
        conn.execute(update(Run).where(*_held(lease)).values(stopping=True))


def finish_run(
    catalog: Catalog, lease: Lease, state: str, report: Mapping[str, Any] | None = None
) -> None:
    """Record the run's end, and drop its claims.

    Parameters
    ----------
    catalog, lease
        The run.
    state
        ``done``, ``failed`` or ``interrupted``.
    report
        The run's report, plain JSON values.

    Raises
    ------
    LeaseLost
        The run was declared dead, or has ended already.
    """
    with catalog.write() as conn:
        ended: dict[str, Any] = {"state": state, "ended_at": catalog.now(conn), "report": report}
        if changed(conn, update(Run).where(*_held(lease)).values(ended)) == 0:
            raise _lost(lease)
        conn.execute(delete(Claim).where(Claim.run_id == lease.run_id))


def reap(catalog: Catalog) -> list[str]:
    """Declare the runs dead whose owner is gone; return their ids, oldest first.

    Their state becomes ``crashed``, their token is cleared and their claims are deleted; the files
    that they had in work become suspect (``storage.suspects``).  What they committed stays.
    """
    with catalog.read() as conn:
        if not _dead(catalog, conn):
            return []
    reaped = []
    with catalog.write() as conn:
        for run_id, expires_at in _dead(catalog, conn):
            # On Postgres the run may renew its lease just now; then it lives.
            if _crash(catalog, conn, run_id, Run.expires_at == expires_at):
                reaped.append(run_id)
    return reaped


def end_runs_of(catalog: Catalog, flow_run: str) -> list[str]:
    """Declare the running runs dead that a flow run of Prefect carried out, which has crashed.

    Their owner, should it live, finds its lease lost.  Returns their ids, oldest first.
    """
    query = select(Run.id).where(Run.flow_run == flow_run, Run.state == "running")
    with catalog.write() as conn:
        ids = conn.execute(query.order_by(Run.started_at, Run.id)).scalars().all()
        return [run_id for run_id in ids if _crash(catalog, conn, run_id)]


def changed(conn: Connection, statement: UpdateBase) -> int:
    """Run a statement and return how many rows it changed."""
    return conn.execute(statement).rowcount


def _crash(catalog: Catalog, conn: Connection, run_id: str, *as_seen: ColumnElement[bool]) -> bool:
    """Declare a running run dead, and drop its claims; return whether it still was as seen.

    The files that it had in work are suspect from now on.
    """
    now = catalog.now(conn)
    crashed = {"state": "crashed", "token": "", "ended_at": now}
    running = (Run.id == run_id, Run.state == "running", *as_seen)
    if not changed(conn, update(Run).where(*running).values(crashed)):
        return False
    suspect_claimed(conn, now, run_id)
    conn.execute(delete(Claim).where(Claim.run_id == run_id))
    return True


def _held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return Run.id == lease.run_id, Run.token == lease.token, Run.state == "running"


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"run {lease.run_id} has ended or was declared dead by another run; nothing more of it is"
        " written, run the command again"
    )


def _dead(catalog: Catalog, conn: Connection) -> list[tuple[str, float]]:
    """Return id and lease's end of the running runs whose owner is gone, oldest first."""
    me, now, one_host = this_process(), catalog.now(conn), catalog.dialect == "sqlite"
    columns = (Run.id, Run.expires_at, Run.host, Run.boot, Run.pid, Run.process_start)
    query = select(*columns).where(Run.state == "running").order_by(Run.started_at, Run.id)
    return [
        (run_id, expires_at)
        for run_id, expires_at, host, boot, pid, start in conn.execute(query)
        if is_gone(Owner(host, boot, pid, start), me, expired=expires_at < now, one_host=one_host)
    ]
