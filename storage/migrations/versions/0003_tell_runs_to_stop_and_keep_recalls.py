"""Tell runs to stop from elsewhere, and keep the recall of every index.

Revision 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add what runs on several hosts need, and the series of recalls."""
    op.add_column("runs", sa.Column("flow_run", sa.String(), nullable=True))
    no = sa.text("false")
    stopping: sa.Column[bool] = sa.Column(
        "stopping", sa.Boolean(), server_default=no, nullable=False
    )
    op.add_column("runs", stopping)
    requested: sa.Column[bool] = sa.Column(
        "requested", sa.Boolean(), server_default=no, nullable=False
    )
    op.add_column("generations", requested)
    op.create_table(
        "recalls",
        sa.Column("id", ID, nullable=False),
        sa.Column("space_id", ID, nullable=False),
        sa.Column("generation", sa.String(), nullable=False),
        sa.Column("factory", sa.String(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("k", sa.BigInteger(), nullable=False),
        sa.Column("queries", sa.BigInteger(), nullable=False),
        sa.Column("recall", sa.Double(), nullable=False),
        sa.Column("measured_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["space_id"], ["spaces.id"], name="fk_recalls_space_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_recalls"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_recalls_space", "recalls", ["space_id", "id"])
