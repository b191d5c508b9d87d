"""Find vectors by their image: a deleted image is looked for in every space.

Revision 0002.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the index, without which the deletion of one image reads all vectors."""
    op.create_index("ix_vectors_image", "vectors", ["image_id"])
