"""Whether a file was old enough when its bytes were read, by the clock of its own file system."""

import os

from storage.scan import Signature, fs_clock_offset_ns


class Clocks:
    """The clocks of the file systems that a chunk's files lie on, each asked once.

    A signature is trusted when it was 2.5 s old, by the clock of its own file system, at the
    moment when its bytes were read: a later edit then can't carry the same times.
    """

    def __init__(self) -> None:
        self._by_folder: dict[bytes, tuple[int, int]] = {}
        self._by_device: dict[int, tuple[int, int]] = {}

    def trusted(self, path: bytes, sig: Signature, read_at_ns: int) -> bool:
        """Return whether ``sig`` was old enough when the file was read."""
        offset_ns, margin_ns = self._clock(os.path.dirname(path))
        return max(sig.mtime_ns, sig.ctime_ns) <= read_at_ns + offset_ns - margin_ns

    def _clock(self, folder: bytes) -> tuple[int, int]:
        if folder not in self._by_folder:
            try:
                device = os.stat(folder).st_dev
            except OSError:  # the folder went away after the read: judge on the next run
                return 0, 1 << 62
            if device not in self._by_device:
                self._by_device[device] = fs_clock_offset_ns(folder)
            self._by_folder[folder] = self._by_device[device]
        return self._by_folder[folder]
