"""Which process owns a run, and whether it is still there."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """A process, told apart from every other one.

    Parameters
    ----------
    host
        Name of the machine, for people.
    boot
        Boot of the machine and namespace of the process number: equal for two processes exactly
        where each can see the other by its number.  "" where the system has no such thing.
    pid
        Process number.
    process_start
        When the process began, as the system counts it, because numbers are given anew; "" where
        the system does not say.
    """

    host: str
    boot: str
    pid: int
    process_start: str


def this_process() -> Owner:
    """Return this process as an owner."""
    return process(os.getpid())


def process(pid: int) -> Owner:
    """Return a process that this one can see by its number as an owner."""
    boot = ""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return Owner(platform.node(), boot, pid, _start_and_state(pid)[0])


def is_gone(owner: Owner, me: Owner, *, expired: bool, one_host: bool) -> bool:
    """Return whether a run's owner is no more, as far as this process can tell.

    Parameters
    ----------
    owner, me
        The run's owner, and this process.
    expired
        Whether the lease has run out: what counts where the owner can't be looked for.
    one_host
        Whether all runs must be on one machine, so that a host of the same name is the same host.
    """
    if owner.boot == me.boot and (me.boot or owner.host == me.host):
        return not is_alive(owner)
    before, now = owner.boot.partition(" ")[0], me.boot.partition(" ")[0]
    rebooted = bool(before and now) and before != now
    return expired or (one_host and rebooted and owner.host == me.host)


def is_alive(owner: Owner) -> bool:
    """Return whether a process with a number that this one can see is still there."""
    if os.name == "nt":
        return True  # signal 0 would end the process there
    if not _exists(owner.pid):
        return False
    start, state = _start_and_state(owner.pid)
    if state in ("Z", "X"):
        return False
    return not (start and owner.process_start) or start == owner.process_start


def _exists(pid: int) -> bool:
    try:
        with suppress(PermissionError):  # another user's, but there
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _start_and_state(pid: int) -> tuple[str, str]:
    """Return start time and state letter of a process from ``/proc``, "" where unknown."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
        return fields[19].decode("ascii"), fields[0].decode("ascii")
    return "", ""
