"""Regions of images as a folder with one npz for each, and as the rows of one Parquet file.

::

    OUT/
        regions.json        how the regions were made, and the names of the classes
        a/b.jpg.npz         those of the image with the id a/b.jpg

An npz holds ``features`` (n, D) float32, ``boxes`` (n, 4) float32, ``classes`` (n,) int64,
``scores`` (n,) float32, ``image_size`` (width, height) int64, and as text ``id``, ``digest``
(SHA-256 of the image's content) and ``fingerprint`` (of how they were made).  That of a file also
has its ``signature`` (4,) int64: size, modification time, change time and inode, by which a later
run sees without reading it that the image is still the same.  Its bytes depend on nothing else; its
modification time is that of the image.

``.lookalike-tmp`` holds what is being written, and the notes of `storage.begun` on what was worked
on when a process died.  A picture that was the reason stays in its note.
"""

import errno
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

import numpy as np
import numpy.typing as npt

from storage.begun import Begun
from storage.errors import WorkMismatch
from storage.exports.errors import ExportError, plain_errors, shown
from storage.fs import fs, open_stream, write_all
from storage.scan import Signature
from storage.work_plan import differences

FORMAT: Final = 1
PLAN: Final = "regions.json"
_MAKING: Final = b".lookalike-tmp"
_SIG: Final = "signature"
_NAME_TROUBLES: Final = (
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EILSEQ,
    errno.EINVAL,
)

Array = npt.NDArray[Any]


class BadName(Exception):
    """An image's regions can't lie under its id.  One image's trouble; the run goes on."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an npz says of itself.

    Attributes
    ----------
    digest
        SHA-256 of the image's content.
    sig
        What the image's file looked like before it was read; None for a row of an array, and where
        an earlier version noted none.
    """

    id: bytes
    digest: bytes
    fingerprint: str
    sig: Signature | None


class RegionFolder:
    """The folder of one output; several processes may write to it at once.

    Parameters
    ----------
    out
        The folder; made where it is not there.
    recipe
        Plain values that say how regions are made.
    class_names
        Names of the classes, by number.
    overwrite
        Accept that the folder holds regions that were made otherwise.

    Raises
    ------
    WorkMismatch
        It does, and that is not accepted.
    ExportError, DiskFull
        The folder can't be made or written.
    """

    def __init__(
        self,
        out: str,
        recipe: Mapping[str, Any],
        class_names: tuple[str, ...] = (),
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = os.path.abspath(out)
        self._place = os.fsencode(self.path)
        self._making = os.path.join(self._place, _MAKING)
        plan = {"format": FORMAT, "recipe": dict(recipe), "class_names": list(class_names)}
        plan = json.loads(json.dumps(plan))
        with plain_errors(self.path):
            os.makedirs(self._place, exist_ok=True)
            self.begun = Begun(os.fsdecode(self._making))
            before = self._plan()
            if before != plan:
                if before is not None and not overwrite:
                    raise WorkMismatch(self._mismatch(before, plan))
                text = json.dumps(plan, indent=1, ensure_ascii=False) + "\n"
                self._write(os.path.join(self._place, PLAN.encode()), text.encode())

    def header(self, id: bytes) -> Header | None:
        """Return what is there of an image; None where nothing is, or it is not whole."""
        path = self._path(id)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = [str(arrays[name]) for name in ("id", "digest", "fingerprint")]
                sig = Signature(*arrays[_SIG].tolist()) if _SIG in arrays else None
            return Header(os.fsencode(values[0]), bytes.fromhex(values[1]), values[2], sig)
        except Exception:  # noqa: BLE001 - a damaged archive breaks in its own way: it is made anew
            return None

    def write(self, header: Header, arrays: Mapping[str, Array]) -> None:
        """Write the regions of an image; they appear complete and synced, or not at all.

        Raises
        ------
        BadName
            The id is no name for a file here, or another image's regions lie there.
        DiskFull, ExportError
            The file system refuses.
        """
        path = self._path(header.id)
        before = self.header(header.id)
        if before is not None and before.id != header.id:
            other = before.id.decode("utf-8", "backslashreplace")
            raise BadName(f"its regions would lie where those of {other} are")
        said = {
            "id": os.fsdecode(header.id),
            "digest": header.digest.hex(),
            "fingerprint": header.fingerprint,
        }
        texts = {name: np.array(text) for name, text in said.items()}
        data = _npz({**arrays, **texts}, header.sig)
        with plain_errors(os.fsdecode(path)):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self._write(path, data, header.sig)
            except OSError as error:
                if error.errno in _NAME_TROUBLES:
                    reason = error.strerror or str(error)
                    raise BadName(f"its id is no name for a file: {reason}") from error
                raise

    def renew(self, id: bytes, sig: Signature | None) -> None:
        """Note what an image's file looks like now, whose content is still the same."""
        if sig is None:
            return
        path = self._path(id)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files if name != _SIG}
        except Exception:  # noqa: BLE001 - as in `header`
            return
        with suppress(OSError):  # without it the image is only read again
            self._write(path, _npz(arrays, sig), sig)

    def close(self) -> None:
        """Remove the folder of unfinished files, unless somebody has some there, or died."""
        with suppress(OSError):
            fs().rmdir(self._making)

    def _path(self, id: bytes) -> bytes:
        """Return where an image's regions lie: never outside of the folder."""
        parts = [part for part in id.split(b"/") if part not in (b"", b".")]
        inside = [b"__" if part == b".." else part.replace(b"\0", b"_") for part in parts]
        return os.path.join(self._place, *(inside or [b"_"])) + b".npz"

    def _write(self, path: bytes, data: Any, sig: Signature | None = None) -> None:
        temporary = os.path.join(self._making, uuid.uuid4().hex.encode())
        os.makedirs(self._making, exist_ok=True)
        try:
            fd = fs().open_new(temporary, 0o666)
            try:
                write_all(fd, data)
                fs().fsync(fd)
            finally:
                fs().close(fd)
            if sig is not None:
                os.utime(temporary, ns=(sig.mtime_ns, sig.mtime_ns))
            fs().replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                fs().unlink(temporary)
            raise

    def _plan(self) -> dict[str, Any] | None:
        path = os.path.join(self.path, PLAN)
        try:
            with open(path, "rb") as file:
                plan = json.loads(file.read())
            if plan["format"] == FORMAT:
                found: dict[str, Any] = plan
                return found
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        raise ExportError(f"{shown(path)} is none of ours, or of another version: name another OUT")

    def _mismatch(self, before: dict[str, Any], now: dict[str, Any]) -> str:
        names = ("recipe", "class_names")
        wrong = [line for name in names for line in differences(before[name], now[name], name)]
        first = "; ".join(line.removeprefix("recipe.") for line in wrong[:2])
        return (
            f"{shown(self.path)} holds regions that were made otherwise: {first}. "
            "Name another OUT, or --overwrite to make them anew"
        )


def _npz(arrays: Mapping[str, Array], sig: Signature | None) -> memoryview:
    data = io.BytesIO()
    more = {} if sig is None else {_SIG: np.array(sig, np.int64)}
    np.savez(data, allow_pickle=False, **arrays, **more)
    return data.getbuffer()


class FailureList:
    """A list of failures beside an output, in constant memory; a context manager.

    On a clean exit it stands under ``path``, or no list does where nothing failed.  Until then its
    lines have no name, so that two processes with one list do not write into each other's.
    """

    def __init__(self, path: str, header: bytes) -> None:
        self.path = path
        self.n = 0
        self._header = header

    def __enter__(self) -> Self:
        with plain_errors(self.path):
            unnamed = tempfile.TemporaryFile(dir=os.path.dirname(self.path))
            self._lines = cast(BinaryIO, unnamed)
        return self

    def add(self, line: bytes) -> None:
        """Append a line."""
        with plain_errors(self.path):
            self._lines.write(line)
        self.n += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            with suppress(OSError):
                self._lines.close()
            return
        with plain_errors(self.path), self._lines:
            if self.n:
                self._put()
            else:
                with suppress(FileNotFoundError):
                    fs().unlink(self.path)
            fs().fsync_dir(os.path.dirname(self.path))

    def _put(self) -> None:
        making = f"{self.path}.{uuid.uuid4().hex}.tmp"
        try:
            with open_stream(making) as file:
                file.write(self._header)
                self._lines.seek(0)
                shutil.copyfileobj(self._lines, file, 1 << 20)
                file.flush()
                fs().fsync(file.fileno())
            fs().replace(making, self.path)
        except BaseException:
            with suppress(OSError):
                fs().unlink(making)
            raise
