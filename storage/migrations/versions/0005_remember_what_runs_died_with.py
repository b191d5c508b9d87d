"""Remember what runs died with.

Revision 0005.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the files that were in work when a run died."""
    op.create_table(
        "suspects",
        sa.Column("file_id", ID, autoincrement=False, nullable=False),
        sa.Column("deaths", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("file_id", name="pk_suspects"),
    )
