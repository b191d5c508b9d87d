"""Lay out the catalog: store, roots, files, images, spaces, runs.

Revision 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# SQLite numbers rows by itself only where the key is declared exactly INTEGER.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create all tables."""
    _roots_and_files()
    _spaces()
    _runs()


def _roots_and_files() -> None:
    """Create what is found on disk."""
    op.create_table(
        "roots",
        sa.Column("id", ID, nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("display", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("excludes", sa.JSON(), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.Column("scanned_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_roots"),
        sa.UniqueConstraint("path", name="uq_roots_path"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "images",
        sa.Column("id", ID, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("digest", name="uq_images_digest"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "files",
        sa.Column("id", ID, nullable=False),
        sa.Column("root_id", ID, nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("display", sa.String(), nullable=False),
        sa.Column("source", sa.LargeBinary(), nullable=True),
        sa.Column("label", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("missing_since", sa.Double(), nullable=True),
        sa.Column("first_seen_at", sa.Double(), nullable=False),
        sa.Column("seen_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_ctime_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_inode", sa.BigInteger(), nullable=False),
        sa.Column("image_id", ID, nullable=True),
        sa.Column("digest_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("digest_mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("digest_ctime_ns", sa.BigInteger(), nullable=True),
        sa.Column("digest_inode", sa.BigInteger(), nullable=True),
        sa.Column("trusted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_files_image_id"),
        sa.ForeignKeyConstraint(["root_id"], ["roots.id"], name="fk_files_root_id"),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
        sa.UniqueConstraint("root_id", "path", name="uq_files_root_id_path"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_files_image_state", "files", ["image_id", "state"])


def _spaces() -> None:
    """Create the spaces and their files."""
    op.create_table(
        "spaces",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("dim", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("decode_version", sa.BigInteger(), nullable=False),
        sa.Column("next_row", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("current", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_spaces"),
        sa.UniqueConstraint("fingerprint", name="uq_spaces_fingerprint"),
        sa.UniqueConstraint("name", name="uq_spaces_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "space_keys",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("space_id", ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["space_id"], ["spaces.id"], name="fk_space_keys_space_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_space_keys"),
    )
    op.create_table(
        "parts",
        sa.Column("id", ID, nullable=False),
        sa.Column("space_id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("replaced_at", sa.Double(), nullable=True),
        sa.Column("row_start", sa.BigInteger(), nullable=False),
        sa.Column("row_end", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.String(), nullable=False),
        sa.Column("ids_checksum", sa.String(), nullable=False),
        sa.Column("rows_checksum", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["space_id"], ["spaces.id"], name="fk_parts_space_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_parts"),
        sa.UniqueConstraint("name", name="uq_parts_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_parts_space_state", "parts", ["space_id", "state", "row_start"])
    op.create_table(
        "vectors",
        sa.Column("space_id", ID, nullable=False),
        sa.Column("image_id", ID, nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_vectors_image_id"),
        sa.ForeignKeyConstraint(
            ["space_id"], ["spaces.id"], name="fk_vectors_space_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("space_id", "image_id", name="pk_vectors"),
        sa.UniqueConstraint("space_id", "row", name="uq_vectors_space_id_row"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "generations",
        sa.Column("id", ID, nullable=False),
        sa.Column("space_id", ID, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("replaced_at", sa.Double(), nullable=True),
        sa.Column("row_end", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("factory", sa.String(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.String(), nullable=False),
        sa.Column("rowmap_checksum", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["space_id"], ["spaces.id"], name="fk_generations_space_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_generations"),
        sa.UniqueConstraint("name", name="uq_generations_name"),
        sqlite_autoincrement=True,
    )


def _runs() -> None:
    """Create the store's identity, the runs and what they record."""
    op.create_table(
        "store",
        sa.Column("store_id", sa.String(), nullable=False),
        sa.Column("format", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("store_id", name="pk_store"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("process_start", sa.String(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_table(
        "claims",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("space_id", sa.BigInteger(), nullable=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("chunk", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_claims_run_id"),
        sa.PrimaryKeyConstraint("kind", "space_id", "subject_id", name="pk_claims"),
    )
    op.create_index("ix_claims_run", "claims", ["run_id", "chunk"])
    op.create_table(
        "failures",
        sa.Column("id", ID, nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("failure_class", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("transient", sa.Boolean(), nullable=False),
        sa.Column("file_id", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("space_id", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("decode_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("ctime_ns", sa.BigInteger(), nullable=True),
        sa.Column("inode", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_failures"),
        sa.UniqueConstraint(
            "stage",
            "file_id",
            "digest",
            "space_id",
            "decode_version",
            name="uq_failures_stage_file_id_digest_space_id_decode_version",
        ),
    )
    op.create_index("ix_failures_digest", "failures", ["digest"])
    op.create_index("ix_failures_file", "failures", ["file_id"])
