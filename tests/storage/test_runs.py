import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Row, event, select, text, update

from storage.catalog import Catalog
from storage.errors import CatalogError, LeaseHeld, LeaseLost
from storage.home import Home
from storage.leases import (
    LEASE_S,
    RENEW_S,
    Lease,
    RunState,
    ask_to_stop,
    check_lease,
    end_runs_of,
    finish_run,
    reap,
    renew,
    run_state,
    start_run,
)
from storage.owner import Owner, is_gone, this_process
from storage.runs import Heartbeat, claim, release
from storage.spaces import SpaceInfo
from storage.tables import Claim, Run

WORK = """
import sys, time
from storage.catalog import Catalog
from storage.home import Home
from storage.leases import start_run
from storage.runs import claim
catalog = Catalog.open(Home(sys.argv[1], sys.argv[2] or None), write=True)
lease = start_run(catalog, "index")
claim(catalog, lease, "root", 1)
print(lease.run_id, flush=True)
time.sleep(600)
"""

ELSEWHERE = {"host": "elsewhere", "boot": "other-boot pid:[1]"}


def _work_elsewhere(home: Home) -> tuple[subprocess.Popen[str], str]:
    """Start a process with a run that has claimed root 1; return both."""
    command = [sys.executable, "-c", WORK, home.path, home.catalog_url or ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _change(catalog: Catalog, lease: Lease, **values: object) -> None:
    with catalog.write() as conn:
        conn.execute(update(Run).where(Run.id == lease.run_id).values(values))


def _runs(catalog: Catalog) -> Sequence[Row[Any]]:
    """Return the runs as they are recorded, newest first."""
    query = select(*Run.__table__.c).order_by(Run.started_at.desc(), Run.id.desc())
    with catalog.read() as conn:
        return conn.execute(query).all()


def _state(catalog: Catalog, lease: Lease) -> str:
    with catalog.read() as conn:
        return conn.execute(select(Run.state).where(Run.id == lease.run_id)).scalar_one()


def _claims(catalog: Catalog) -> set[tuple[str, int, int, str]]:
    columns = (Claim.kind, Claim.space_id, Claim.subject_id, Claim.run_id)
    with catalog.read() as conn:
        return {(*row,) for row in conn.execute(select(*columns))}


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The owner of a run.

ME = Owner("here", "boot-1 pid:[1]", os.getpid(), this_process().process_start)
GONE = 1 << 30  # above the largest number that a process can have


@pytest.mark.parametrize(
    ("owner", "expired", "one_host", "gone"),
    [
        # This machine: the process counts, the clock does not.
        (ME, True, True, False),
        (Owner("renamed", ME.boot, ME.pid, ME.process_start), True, False, False),
        (Owner("here", ME.boot, GONE, "1"), False, False, True),
        (Owner("here", ME.boot, ME.pid, "1"), False, False, True),  # the number was given anew
        (Owner("here", ME.boot, ME.pid, ""), True, True, False),
        # Before this machine's last boot; but two machines of a cluster may have one name.
        (Owner("here", "boot-0 pid:[1]", ME.pid, "1"), False, True, True),
        (Owner("here", "boot-0 pid:[1]", ME.pid, "1"), False, False, False),
        (Owner("here", "boot-0 pid:[1]", ME.pid, "1"), True, False, True),
        # Another container of this machine: its numbers mean nothing here.
        (Owner("here", "boot-1 pid:[2]", GONE, "1"), False, True, False),
        (Owner("here", "boot-1 pid:[2]", GONE, "1"), True, True, True),
        # Another machine.
        (Owner("there", "boot-2 pid:[1]", GONE, "1"), False, True, False),
        (Owner("there", "boot-2 pid:[1]", GONE, "1"), True, True, True),
    ],
)
def test_who_is_gone(owner: Owner, expired: bool, one_host: bool, gone: bool) -> None:
    assert is_gone(owner, ME, expired=expired, one_host=one_host) is gone


def test_where_the_system_knows_no_boots_the_hosts_name_counts() -> None:
    me = Owner("here", "", 1, "")
    assert is_gone(Owner("here", "", GONE, ""), me, expired=False, one_host=True)
    assert not is_gone(Owner("there", "", GONE, ""), me, expired=False, one_host=True)


def test_a_process_is_told_from_its_forerunner() -> None:
    me = this_process()
    assert me == this_process()
    assert me.pid == os.getpid()
    child = subprocess.Popen(["sleep", "60"])
    other = Owner(me.host, me.boot, child.pid, me.process_start + "0")
    alive = Owner(me.host, me.boot, child.pid, "")
    assert is_gone(other, me, expired=False, one_host=True)
    assert not is_gone(alive, me, expired=True, one_host=True)
    child.kill()
    # Dead though its parent has not taken note: it holds nothing any more.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(alive, me, expired=False, one_host=True)
    child.wait()
    assert is_gone(alive, me, expired=False, one_host=True)


# A run's life.


def test_a_run_is_recorded_from_start_to_end(catalog: Catalog) -> None:
    before = time.time()
    lease = start_run(catalog, "index")
    (run,) = _runs(catalog)
    assert (run.id, run.kind, run.state, run.pid) == (lease.run_id, "index", "running", os.getpid())
    assert before - 2 < run.started_at < time.time() + 2
    assert run.expires_at == pytest.approx(run.started_at + 120)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(run.started_at))
    assert lease.run_id.startswith(f"{stamp}-")
    assert (run.ended_at, run.report) == (None, None)
    finish_run(catalog, lease, "done", {"extracted": 3, "roots": ["/a"]})
    (run,) = _runs(catalog)
    assert (run.state, run.report) == ("done", {"extracted": 3, "roots": ["/a"]})
    assert run.ended_at is not None
    assert run.ended_at >= run.started_at


def test_a_renewed_lease_lasts_longer(catalog: Catalog, lease: Lease) -> None:
    _change(catalog, lease, expires_at=1.0)
    renew(catalog, lease)
    assert _runs(catalog)[0].expires_at == pytest.approx(time.time() + 120, abs=5)


@pytest.mark.parametrize("how", ["finished", "crashed", "forged", "unknown"])
def test_without_the_lease_nothing_is_written(catalog: Catalog, lease: Lease, how: str) -> None:
    if how == "finished":
        finish_run(catalog, lease, "interrupted")
    elif how == "crashed":
        _change(catalog, lease, state="crashed", token="")
    elif how == "forged":
        lease = Lease(lease.run_id, "forged")
    else:
        lease = Lease("unknown", lease.token)
    state = _runs(catalog)[0].state
    with pytest.raises(LeaseLost, match=lease.run_id):
        renew(catalog, lease)
    with pytest.raises(LeaseLost), catalog.write() as conn:
        check_lease(conn, lease)
    with pytest.raises(LeaseLost):
        claim(catalog, lease, "root", 1)
    with pytest.raises(LeaseLost):
        finish_run(catalog, lease, "done")
    assert _runs(catalog)[0].state == state
    assert _claims(catalog) == set()


def _declare_dead_soon(conn: Connection) -> None:
    conn.execute(text("SET LOCAL lock_timeout = '30ms'"))
    conn.execute(update(Run).values(state="crashed"))


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_nobody_declares_a_run_dead_while_it_commits(catalog: Catalog, lease: Lease) -> None:
    with catalog.write() as conn:
        check_lease(conn, lease)
        with pytest.raises(CatalogError, match="was locked"), catalog.write() as other:
            _declare_dead_soon(other)
    assert _state(catalog, lease) == "running"


# Claims.


def test_one_claim_has_one_run(catalog: Catalog, lease: Lease) -> None:
    other = start_run(catalog, "index")
    claim(catalog, lease, "root", 1)
    claim(catalog, lease, "root", 1)
    claim(catalog, other, "root", 2)
    claim(catalog, other, "file", 1, space_id=1)
    claim(catalog, other, "file", 1, space_id=2)
    with pytest.raises(LeaseHeld) as caught:
        claim(catalog, other, "root", 1)
    for word in ("the root", lease.run_id, this_process().host, str(os.getpid()), "UTC"):
        assert word in str(caught.value)
    assert _claims(catalog) == {
        ("root", 0, 1, lease.run_id),
        ("root", 0, 2, other.run_id),
        ("file", 1, 1, other.run_id),
        ("file", 2, 1, other.run_id),
    }


def test_only_its_own_claims_can_be_given_back(catalog: Catalog, lease: Lease) -> None:
    other = start_run(catalog, "index")
    for subject_id in (1, 2):
        claim(catalog, lease, "root", subject_id)
    release(catalog, other, "root", 1)
    release(catalog, lease, "root", 2)
    release(catalog, lease, "root", 2)
    assert _claims(catalog) == {("root", 0, 1, lease.run_id)}
    with catalog.write() as conn:
        release(conn, lease, "root", 1)
    claim(catalog, other, "root", 1)


def test_an_ended_run_holds_nothing(catalog: Catalog, lease: Lease) -> None:
    other = start_run(catalog, "index")
    claim(catalog, lease, "root", 1)
    claim(catalog, other, "root", 2)
    finish_run(catalog, lease, "done")
    assert _claims(catalog) == {("root", 0, 2, other.run_id)}


def test_a_claim_goes_with_its_transaction(catalog: Catalog, lease: Lease) -> None:

    def fail(conn: Connection) -> None:
        claim(conn, lease, "root", 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), catalog.write() as conn:
        fail(conn)
    assert _claims(catalog) == set()
    other = start_run(catalog, "index")
    with catalog.write() as conn:
        claim(conn, lease, "root", 1)
    with pytest.raises(LeaseHeld, match=lease.run_id), catalog.write() as conn:
        claim(conn, other, "root", 1)


def test_of_many_runs_that_want_it_one_gets_it(catalog: Catalog) -> None:
    leases = [start_run(catalog, "index") for _ in range(6)]
    start, won, lost = threading.Barrier(len(leases)), [], []

    def take(lease: Lease) -> None:
        start.wait()
        try:
            claim(catalog, lease, "space", 7)
            won.append(lease.run_id)
        except LeaseHeld as err:
            lost.append(str(err))

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 5
    assert all(won[0] in message for message in lost)


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_claim_that_is_given_back_at_this_moment_is_taken(catalog: Catalog, lease: Lease) -> None:
    other = start_run(catalog, "index")
    claim(catalog, lease, "root", 1)

    def give_back(*args: Any) -> None:
        if "JOIN claims" in args[2] and _claims(catalog):
            release(catalog, lease, "root", 1)

    event.listen(catalog.engine, "before_cursor_execute", give_back)
    claim(catalog, other, "root", 1)
    assert _claims(catalog) == {("root", 0, 1, other.run_id)}


# The dead.


def test_a_killed_run_is_void_at_once_and_its_claims_are_free(
    catalog: Catalog, lease: Lease
) -> None:
    process, run_id = _work_elsewhere(catalog.home)
    assert reap(catalog) == []
    with pytest.raises(LeaseHeld, match=f"{run_id} .*process {process.pid}"):
        claim(catalog, lease, "root", 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    claim(catalog, lease, "root", 1)  # nobody called reap
    assert _claims(catalog) == {("root", 0, 1, lease.run_id)}
    states = {run.id: run.state for run in _runs(catalog)}
    assert states == {run_id: "crashed", lease.run_id: "running"}
    assert reap(catalog) == []


def test_the_dead_are_told_by_age(catalog: Catalog, lease: Lease) -> None:
    dead = [start_run(catalog, "index") for _ in range(3)]
    for lost in dead:
        claim(catalog, lost, "root", dead.index(lost))
        _change(catalog, lost, started_at=50.0 - dead.index(lost), pid=GONE)
    assert reap(catalog) == [lost.run_id for lost in reversed(dead)]
    assert _claims(catalog) == set()
    assert all(run.ended_at is not None for run in _runs(catalog) if run.state == "crashed")
    with pytest.raises(LeaseLost):
        renew(catalog, dead[0])
    renew(catalog, lease)


def test_elsewhere_the_clock_decides(catalog: Catalog, lease: Lease) -> None:
    _change(catalog, lease, **ELSEWHERE)
    assert reap(catalog) == []
    _change(catalog, lease, **ELSEWHERE, expires_at=time.time() - 1)
    assert reap(catalog) == [lease.run_id]
    assert _state(catalog, lease) == "crashed"


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_who_renews_at_the_last_moment_lives(catalog: Catalog, lease: Lease) -> None:
    _change(catalog, lease, **ELSEWHERE, expires_at=1.0)
    reaped: list[list[str]] = []
    thread = threading.Thread(target=lambda: reaped.append(reap(catalog)))
    with catalog.write() as conn:
        later = update(Run).where(Run.id == lease.run_id).values(expires_at=time.time() + 100)
        conn.execute(later)
        thread.start()
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        _wait(lambda: conn.execute(waiting).scalar_one() > 0)
    thread.join()
    assert reaped == [[]]
    assert _state(catalog, lease) == "running"


# What others see of a run, and tell it.


def test_workers_see_whose_run_it_is_and_that_it_goes_on(catalog: Catalog, lease: Lease) -> None:
    assert run_state(catalog, lease) == RunState(this_process(), going=True)
    owner = Owner("elsewhere", "other-boot pid:[1]", 7, "123")
    _change(catalog, lease, host=owner.host, boot=owner.boot, pid=7, process_start="123")
    assert run_state(catalog, lease) == RunState(owner, going=True)


def test_a_run_that_was_asked_to_stop_keeps_its_lease_and_does_not_go_on(
    catalog: Catalog, lease: Lease
) -> None:
    other = start_run(catalog, "index")
    ask_to_stop(catalog, lease)
    ask_to_stop(catalog, lease)
    assert run_state(catalog, lease).going is False
    assert run_state(catalog, other).going is True
    renew(catalog, lease)
    finish_run(catalog, lease, "interrupted")
    assert _state(catalog, lease) == "interrupted"


@pytest.mark.parametrize("state", ["done", "failed", "interrupted", "crashed"])
def test_a_run_that_has_ended_is_not_going_and_hears_nothing(
    catalog: Catalog, lease: Lease, state: str
) -> None:
    _change(catalog, lease, state=state)
    ask_to_stop(catalog, lease)
    assert run_state(catalog, lease) == RunState(this_process(), going=False)
    assert _runs(catalog)[0].stopping is False


def test_only_who_has_the_token_is_heard(catalog: Catalog, lease: Lease) -> None:
    stranger = Lease(lease.run_id, "guessed")
    ask_to_stop(catalog, stranger)
    assert run_state(catalog, stranger).going is False
    assert run_state(catalog, lease).going is True
    assert run_state(catalog, Lease("no such run", "x")).going is False


def test_looking_at_a_run_is_one_small_read(catalog: Catalog, lease: Lease) -> None:
    statements: list[str] = []

    def note(*args: Any) -> None:
        statements.append(args[2])

    event.listen(catalog.engine, "before_cursor_execute", note)
    run_state(catalog, lease)
    event.remove(catalog.engine, "before_cursor_execute", note)
    reads = [statement for statement in statements if "runs" in statement]
    assert len(reads) == 1
    assert "FOR" not in reads[0]
    assert "JOIN" not in reads[0]


def test_a_run_knows_the_flow_run_that_carries_it_out(catalog: Catalog, lease: Lease) -> None:
    nightly = start_run(catalog, "index", flow_run="flow-1")
    assert {run.id: run.flow_run for run in _runs(catalog)} == {
        lease.run_id: None,
        nightly.run_id: "flow-1",
    }


def test_the_runs_of_a_flow_run_that_crashed_are_ended(catalog: Catalog, lease: Lease) -> None:
    first, second = (start_run(catalog, "index", flow_run="flow-1") for _ in range(2))
    other = start_run(catalog, "index", flow_run="flow-2")
    done = start_run(catalog, "index", flow_run="flow-1")
    finish_run(catalog, done, "done")
    _change(catalog, second, started_at=5.0)
    for i, holder in enumerate([lease, first, second, other]):
        claim(catalog, holder, "root", i)
    claim(catalog, first, "image", 9, space_id=1)
    assert end_runs_of(catalog, "flow-3") == []
    assert end_runs_of(catalog, "flow-1") == [second.run_id, first.run_id]
    assert end_runs_of(catalog, "flow-1") == []
    assert _claims(catalog) == {("root", 0, 0, lease.run_id), ("root", 0, 3, other.run_id)}
    states = {run.id: (run.state, run.ended_at is None) for run in _runs(catalog)}
    assert states == {
        lease.run_id: ("running", True),
        other.run_id: ("running", True),
        first.run_id: ("crashed", False),
        second.run_id: ("crashed", False),
        done.run_id: ("done", False),
    }
    assert run_state(catalog, first).going is False
    with pytest.raises(LeaseLost):
        renew(catalog, first)
    with pytest.raises(LeaseLost), catalog.write() as conn:
        check_lease(conn, second)
    with pytest.raises(LeaseLost):
        finish_run(catalog, first, "done")


# The heartbeat.


def _beats() -> bool:
    return any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_heartbeat_keeps_the_lease(catalog: Catalog, lease: Lease) -> None:
    _change(catalog, lease, expires_at=1.0)
    with Heartbeat(catalog, lease, every_s=0.01):
        _wait(lambda: _runs(catalog)[0].expires_at > 1.0)
    assert not _beats()


def test_a_heartbeat_ends_with_the_lease(catalog: Catalog, lease: Lease) -> None:
    with Heartbeat(catalog, lease, every_s=0.01):
        assert _beats()
        _change(catalog, lease, state="crashed", token="")
        _wait(lambda: not _beats())
    assert _runs(catalog)[0].state == "crashed"


def test_a_heartbeat_outlives_a_catalog_that_does_not_answer(
    catalog: Catalog, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed: list[str] = []

    def refuse_twice(catalog: Catalog, lease: Lease) -> None:
        renewed.append(lease.run_id)
        if len(renewed) < 3:
            raise CatalogError("busy")
        renew(catalog, lease)

    monkeypatch.setattr("storage.runs.renew", refuse_twice)
    _change(catalog, lease, expires_at=1.0)
    with Heartbeat(catalog, lease, every_s=0.01):
        _wait(lambda: _runs(catalog)[0].expires_at > 1.0)


def test_the_heart_beats_often_enough() -> None:
    assert 3 * RENEW_S < LEASE_S


def test_a_claim_in_a_space_does_not_bar_the_space_itself(
    catalog: Catalog, lease: Lease, space: SpaceInfo
) -> None:
    other = start_run(catalog, "index")
    claim(catalog, lease, "file", 5, space_id=space.id)
    claim(catalog, other, "space", space.id)
    assert len(_claims(catalog)) == 2
