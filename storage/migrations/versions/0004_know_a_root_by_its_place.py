"""Know a root by its place, and what two complete scans say of it.

Revision 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add what tells another disk in a root's place, and what must be missing twice."""
    op.add_column("roots", sa.Column("scanned_before_at", sa.Double(), nullable=True))
    op.add_column("roots", sa.Column("place", sa.JSON(), nullable=True))
    op.add_column("roots", sa.Column("unlisted", sa.JSON(), nullable=True))
