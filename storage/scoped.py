"""How many files a run is about, whatever they have or lack."""

from sqlalchemy import func, select

from storage.catalog import Catalog
from storage.excludes import Globs
from storage.pending import Scope, in_scope, placed
from storage.slices import pages
from storage.spaces import SpaceInfo
from storage.tables import File, Image


def live_files(catalog: Catalog, scope: Scope, space: SpaceInfo | None = None) -> int:
    """Count the live files of a scope, with or without a vector.

    Parameters
    ----------
    scope
        Which files.
    space
        Where ``scope.failed`` looks for failures; None looks for none.

    Raises
    ------
    RootError
        A glob is empty.
    """
    conditions = placed(scope) if space is None else in_scope(scope, space)
    query = select().select_from(File).outerjoin(Image, Image.id == File.image_id)
    query = query.where(File.state == "live", *conditions)
    if not scope.globs:
        with catalog.read() as conn:
            return int(conn.execute(query.add_columns(func.count())).scalar_one())
    globs = Globs(scope.globs)
    named = query.add_columns(File.id, File.path)
    return sum(globs.match(path) for rows in pages(catalog, named, File.id) for _, path in rows)
