"""The devices of a process and their engines: one model is kept loaded for each device."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

POLL_S = 0.5

_opening = threading.Lock()
"""Held while a model is made: its random weights come from the process's one generator."""


@dataclass
class Seat:
    """A device, and the engine that is kept on it."""

    device: str
    key: tuple[int, int | None, str] | None = None
    """Space, batch size and engine that it is for."""
    engine: Any = None


class Engines:
    """The seats of a process; a chunk that needs a forward pass has one to itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._names: str | None = None
        self._all: list[Seat] = []
        self._free: list[Seat] = []

    @property
    def several(self) -> bool:
        """Whether there is more than one device."""
        return self.number > 1

    @property
    def number(self) -> int:
        """How many devices there are, once one was asked for."""
        return len(self._all)

    @contextmanager
    def seat(
        self, names: str, space_id: int, number: int, check: Callable[[], None]
    ) -> Iterator[Seat]:
        """Wait for a free device and have it inside; where there is a choice, one with the model.

        Parameters
        ----------
        names
            What ``extractor.device.devices`` takes.
        space_id
            The space whose model is wanted.
        number
            Which of the free devices to take otherwise: that of this worker among its neighbours.
        check
            Called while waiting; what it raises ends that.

        Raises
        ------
        DeviceError
            A device is not here.
        """
        with self._changed:
            self._lay_out(names)
            while not self._free:
                check()
                self._changed.wait(POLL_S)
            loaded = [seat for seat in self._free if seat.key and seat.key[0] == space_id]
            seat = loaded[0] if loaded else self._free[number % len(self._free)]
            self._free.remove(seat)
        try:
            if seat.device == "cpu":
                self._share_cores()
            yield seat
        finally:
            with self._changed:
                if any(seat is one for one in self._all):
                    self._free.append(seat)
                self._changed.notify_all()

    def _lay_out(self, names: str) -> None:
        """Make the seats; those of another run, with other devices, go."""
        if names == self._names:
            return
        from extractor.device import devices

        self._all = [Seat(device) for device in devices(names)]
        self._free = list(self._all)
        self._names = names

    def _share_cores(self) -> None:
        """Divide torch's threads for the calling thread where several seats are the CPU's."""
        import torch

        neighbours = sum(seat.device == "cpu" for seat in self._all)
        if neighbours > 1:
            share = max(1, cores() // neighbours)
            torch.set_num_threads(min(share, torch.get_num_threads()))


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def opened(
    seat: Seat,
    key: tuple[int, int | None, str],
    check: Callable[[], None],
    make: Callable[[str], Any],
) -> Any:
    """Return the seat's engine, made by ``make(device)`` unless it is there for ``key``."""
    if seat.key != key:
        seat.key, seat.engine = None, None  # a device has room for one
        with _opening:
            check()
            seat.engine = make(seat.device)
        seat.key = key
    return seat.engine
