"""Whether a file that a walk did not meet is really not there."""

import os

from storage.changes import GONE


class Absence:
    """Looks once more for files of a directory root, just before their absence is believed.

    A folder that changes while it is listed may leave out names that were there all the time.
    Files are asked for in the order of their paths, so each folder is listed once.
    """

    __slots__ = ("_folder", "_names", "_real", "_root")

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._folder: bytes | None = None
        self._names: frozenset[bytes] | None = None

    def confirms(self, path: bytes) -> bool:
        """Say whether no regular file lies at a path relative to the root.

        Where that can't be found out it is not confirmed.  The folder's own list of names decides,
        for a file system that ignores case finds a file under names that it does not have.
        """
        folder, name = os.path.split(path)
        if folder != self._folder:
            self._folder, self._names = folder, self._list(folder)
        return self._names is not None and name not in self._names

    def _list(self, folder: bytes) -> frozenset[bytes] | None:
        """Return the names of the regular files in a folder; None where that can't be said."""
        path = os.path.join(self._root, folder)
        if os.path.realpath(path) != os.path.join(self._real, folder).rstrip(os.sep.encode()):
            return frozenset()  # a walk does not follow links
        try:
            with os.scandir(path) as entries:
                return frozenset(e.name for e in entries if e.is_file(follow_symlinks=False))
        except OSError as trouble:
            return frozenset() if trouble.errno in GONE else None
