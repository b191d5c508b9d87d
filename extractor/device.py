"""Devices by name, and what their exceptions mean."""

import torch

from extractor.errors import DeviceError


def devices(name: str) -> list[str]:
    """Return the devices to work on at once: each can have a network of its own.

    Parameters
    ----------
    name
        ``auto`` for every CUDA device, or else the best one there is; a device; or several, with
        commas between them.  ``cpu,cpu`` is two workers on the CPU.

    Raises
    ------
    DeviceError
        One of them is not here, or nothing is named.
    """
    if name == "auto" and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(choose_device(one.strip())) for one in name.split(",")]


def choose_device(name: str) -> torch.device:
    """Return the device of that name, ``auto`` being the best one; of several the first.

    Raises
    ------
    DeviceError
        No such device here.
    """
    name = name.partition(",")[0]
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"there is no device {name!r}: use auto, cpu, cuda or mps") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise DeviceError(
            f"this machine has no device {name!r} that torch can use: use --device auto or cpu"
        )
    return device


def is_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines[0] else type(error).__name__
