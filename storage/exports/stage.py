"""Files that appear together, complete and synced, or not at all.

They are written in a folder beside their place, ``<OUT>.lookalike-tmp``, which is locked meanwhile.
One that a killed process left there is emptied and used again.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import BinaryIO, Self, cast

from storage.exports.errors import ExportError, plain_errors, shown
from storage.exports.output import Output, check_output
from storage.fs import fs, open_stream

BUFFER_BYTES = 1 << 20
MAKING = ".lookalike-tmp"
"""Ends the name of the folder in which an output is made."""
OLD = ".lookalike-old"
"""Ends the name of a folder while it is being replaced."""


class Stage:
    """The files of one output while they are made; a context manager.

    Parameters
    ----------
    output
        Where they will be.
    overwrite
        Whether to replace what is there.

    Raises
    ------
    ExportError
        Something is there, another process makes the same output, or the file system refuses.
    DiskFull
        The disk is full.
    """

    def __init__(self, output: Output, *, overwrite: bool) -> None:
        self.output = output
        self.overwrite = overwrite
        self.folder = f"{output.path}{MAKING}"
        self._lock = -1
        self._moved = False
        self._open = ExitStack()
        self._files: list[BinaryIO] = []
        self._made: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        old = f"{self.output.path}{OLD}"
        with plain_errors(self.output.path):
            if self.output.folder and os.path.isdir(old) and not os.path.exists(self.output.path):
                fs().replace(old, self.output.path)  # killed between the two renames
            check_output(self.output, overwrite=self.overwrite)
            self._lock = _make_own(self.folder)
            _empty(self.folder)
        return self

    def create(self, name: str) -> BinaryIO:
        """Return a new file for binary writing; ``name`` is relative, ``/`` parts it."""
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = open_stream(path, BUFFER_BYTES)
        self._files.append(file)
        self._made[name] = _identity(os.fstat(file.fileno()))
        self._open.callback(_quietly, file.close)
        return file

    def spool(self) -> BinaryIO:
        """Return an unnamed file on the same disk that goes with the stage."""
        unnamed = tempfile.TemporaryFile(dir=self.folder, buffering=BUFFER_BYTES)  # noqa: SIM115
        file = cast(BinaryIO, unnamed)
        self._open.callback(_quietly, file.close)
        return file

    def at_end(self, close: Callable[[], object]) -> None:
        """Call ``close`` at the end, before the files are closed, whatever it raises."""
        self._open.callback(_quietly, close)

    def settle(self, file: BinaryIO) -> None:
        """Bring a finished file to the disk, and close it."""
        file.flush()
        fs().fsync(file.fileno())
        file.close()
        self._files.remove(file)

    def rename(self, old: str, new: str) -> None:
        """Give a settled file its final name."""
        fs().replace(os.path.join(self.folder, old), os.path.join(self.folder, new))
        self._made[new] = self._made.pop(old)

    def put_in_place(self) -> None:
        """Sync all files and move them to where they belong."""
        for file in list(self._files):
            self.settle(file)
        check_output(self.output, overwrite=self.overwrite)
        self._refuse_foreign()
        if self.output.folder:
            self._put_folder()
        else:
            self._put_files()
        fs().fsync_dir(os.path.dirname(self.output.path))

    def _refuse_foreign(self) -> None:
        """Refuse files that are another process's, where there are no locks to keep it away."""
        for name, made in self._made.items():
            try:
                found = _identity(os.stat(os.path.join(self.folder, name)))
            except FileNotFoundError:
                found = None
            if found != made:
                raise _other_process(self.output.path)

    def _put_files(self) -> None:
        last = self.output.paths[-1]
        if len(self.output.paths) > 1 and os.path.lexists(last):
            fs().unlink(last)  # so that the old last file never stands beside new ones
            fs().fsync_dir(self.output.place)
        for name, path in zip(self.output.names, self.output.paths, strict=True):
            fs().replace(os.path.join(self.folder, name), path)

    def _put_folder(self) -> None:
        for at, _, _ in os.walk(self.folder):
            fs().fsync_dir(at)
        path, old = self.output.path, f"{self.output.path}{OLD}"
        if os.path.isdir(path) and os.listdir(path):
            shutil.rmtree(old, ignore_errors=True)
            fs().replace(path, old)
        fs().replace(self.folder, path)
        self._moved = True
        fs().fsync_dir(os.path.dirname(path))  # before the old one goes: no power cut takes both
        shutil.rmtree(old, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
        if not self._moved:  # else the name may be another process's by now
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make_own(folder: str) -> int:
    """Make a folder and lock it; return the lock's file descriptor, -1 where there are no locks."""
    with suppress(FileExistsError):
        fs().mkdir(folder)
    if os.name == "nt":
        return -1
    import fcntl

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise _other_process(folder.removesuffix(MAKING)) from None
    except OSError:
        pass  # file systems on a network may have no locks, or none of folders
    # Whoever held it before may just have moved it to its place, or removed it.
    if not os.path.exists(folder) or not os.path.samestat(os.fstat(fd), os.stat(folder)):
        os.close(fd)
        raise _other_process(folder.removesuffix(MAKING))
    return fd


def _other_process(path: str) -> ExportError:
    return ExportError(f"another process writes {shown(path)}; wait for it to end")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _empty(folder: str) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                fs().unlink(entry.path)


def _quietly(close: Callable[[], object]) -> None:
    """Close what may be closed already, or can't be: its file is put in place before, or goes."""
    with suppress(Exception):
        close()
