"""What a run has entered into a space, for whoever was not told."""

from sqlalchemy import and_, func, select

from storage.catalog import Catalog
from storage.leases import Lease
from storage.spaces import SpaceInfo
from storage.tables import Part, Vector


def entered_by(catalog: Catalog, lease: Lease, space: SpaceInfo) -> int:
    """Count the vectors that a run has committed into a space."""
    rows = and_(
        Vector.space_id == Part.space_id, Vector.row >= Part.row_start, Vector.row < Part.row_end
    )
    query = select(func.count()).select_from(Part).join(Vector, rows)
    query = query.where(Part.space_id == space.id, Part.run_id == lease.run_id)
    with catalog.read() as conn:
        return int(conn.execute(query).scalar_one())
