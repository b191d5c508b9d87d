"""Which files an absolute path means, whichever way their roots know them."""

import os

from sqlalchemy import ColumnElement, Connection, and_, false, or_

from storage.roots import RootInfo, inside, roots_in, within
from storage.scan import SEP
from storage.tables import File


def files_at(conn: Connection, path: bytes) -> ColumnElement[bool]:
    """Return the condition that a file lies at an absolute path, or below it.

    A directory knows its files by relative paths, a manifest by the paths that its lines name; the
    path of a manifest itself means all its files.  A path is taken as it is written and as symbolic
    links resolve it.  Nothing fulfils the condition where no root knows the path.

    Parameters
    ----------
    conn
        Open transaction, in which the condition is used.
    path
        A file or folder; it need not exist now.
    """
    places = dict.fromkeys((os.path.abspath(path), os.path.realpath(path)))
    meant = [_in_root(root, place) for root in roots_in(conn) for place in places]
    return or_(false(), *meant)


def _in_root(root: RootInfo, place: bytes) -> ColumnElement[bool]:
    here: ColumnElement[bool] = File.root_id == root.id
    if root.path == place:
        return here
    if root.kind == "manifest":
        return and_(here, within(File.source, place.rstrip(SEP)))
    if inside(root.path, place):
        return here
    if inside(place, root.path):
        return and_(here, within(File.path, os.path.relpath(place, root.path)))
    return false()
