"""What can go wrong with the store.  Each class has its exit code and says what to do next.

::

    StorageError                  5  the store is in trouble
    ├── CatalogError              5  the catalog can't be opened, migrated or written
    ├── StoreMismatch             5  catalog and files belong to different stores
    ├── PartError                 5  a part is missing or not what the catalog says
    │   └── PartUnreadable        5  a part may be whole, but can't be looked at now
    ├── IndexFileError            5  an index file is missing or not what the catalog says
    ├── DiskFull                  5  too little free disk for what is about to be written
    ├── LeaseLost                 5  this run's lease was taken over; nothing more of it commits
    ├── LeaseHeld                 6  a lease that the command needs is held by another run
    ├── RootUnavailable           4  a root can't be trusted now; nothing changed for it
    ├── RootError                 2  a root can't be registered: overlap, not a directory, unknown
    │   └── ManifestError         2  the lines of a manifest or list are wrong
    ├── SourceError               2  a source of images can't be opened, or not as was asked
    ├── ExportError               2  an output can't be written as asked
    ├── SpaceError                2  unknown space, or vectors of another space
    └── WorkMismatch              2  unfinished work beside an output is of another request
"""


class StorageError(Exception):
    """The store is in trouble.  The message is one line that says what to do."""

    exit_code = 5


class CatalogError(StorageError):
    """The catalog can't be opened, migrated or written."""


class StoreMismatch(StorageError):
    """Catalog and files belong to different stores."""


class PartError(StorageError):
    """A part is missing or not what the catalog says."""


class PartUnreadable(PartError):
    """A part may be whole, but can't be looked at now, for want of permission or memory."""


class IndexFileError(StorageError):
    """An index file is missing or not what the catalog says.  It can be rebuilt."""


class DiskFull(StorageError):
    """Too little free disk for what is about to be written."""


class LeaseLost(StorageError):
    """The lease of this run was taken over or ran out; it commits nothing more."""


class LeaseHeld(StorageError):
    """A lease that the command needs is held by another run."""

    exit_code = 6


class RootUnavailable(StorageError):
    """A root can't be trusted now; nothing changed for it."""

    exit_code = 4


class RootError(StorageError):
    """A root can't be registered or is not known."""

    exit_code = 2


class ManifestError(RootError):
    """The lines of a manifest or list are wrong; the message gives their numbers."""


class SourceError(StorageError):
    """A source of images can't be opened, or not in the way that was asked for."""

    exit_code = 2


class ExportError(StorageError):
    """An output can't be written as asked; the message says what would do."""

    exit_code = 2


class SpaceError(StorageError):
    """A space is unknown, or the vectors belong to another one; the message names both."""

    exit_code = 2


class WorkMismatch(StorageError):
    """Unfinished work beside an output is of another request; the message says what differs."""

    exit_code = 2
