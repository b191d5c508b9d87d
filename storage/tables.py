"""The catalog's tables.  Words and meanings are those of ``docs/format.md``.

Times are seconds since 1970 by the database's own clock (``storage.catalog.now``), signatures are
nanoseconds and bytes as ``stat`` gives them, paths are bytes with a text beside them for display.
What is pending is a query over these tables (``storage.pending``), never a column.
"""

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only where the key is declared exactly INTEGER, and numbers what was
# deleted anew unless told otherwise; a claim or failure must never meet another file's number.
Id = BigInteger().with_variant(Integer(), "sqlite")
NEVER_AGAIN = {"sqlite_autoincrement": True}


class Base(DeclarativeBase):
    """Declarative base of all tables."""

    type_annotation_map: ClassVar = {
        float: Double(),
        int: BigInteger(),
        bytes: LargeBinary(),
        dict[str, Any]: JSON(none_as_null=True),
    }
    # Named constraints can be changed by a later migration, on SQLite too.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        }
    )


class Store(Base):
    """One row: which store this catalog belongs to; equal to ``store.json`` in the home."""

    __tablename__ = "store"
    store_id: Mapped[str] = mapped_column(primary_key=True)
    format: Mapped[int]
    created_at: Mapped[float]


class Root(Base):
    """A directory or manifest that is indexed."""

    __tablename__ = "roots"
    __table_args__ = NEVER_AGAIN
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    path: Mapped[bytes] = mapped_column(unique=True)
    """Absolute path."""
    display: Mapped[str]
    kind: Mapped[str]
    """``directory`` or ``manifest``."""
    excludes: Mapped[dict[str, Any]]
    """``{"globs": [...]}``, beside the default excludes."""
    added_at: Mapped[float]
    scanned_at: Mapped[float | None]
    """When the last complete scan ended."""
    scanned_before_at: Mapped[float | None]
    """When the complete scan before that ended."""
    place: Mapped[dict[str, Any] | None]
    """Where it lay at the last complete scan; see ``storage.places``."""
    unlisted: Mapped[dict[str, Any] | None]
    """``{"paths": [...]}``, where that scan could not look; null there: they were too many."""


class File(Base):
    """One path under a root, with the signatures ``seen`` (last scan) and ``digest_sig``."""

    __tablename__ = "files"
    __table_args__ = (
        UniqueConstraint("root_id", "path"),
        Index("ix_files_image_state", "image_id", "state"),
        NEVER_AGAIN,
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    root_id: Mapped[int] = mapped_column(ForeignKey("roots.id"))
    path: Mapped[bytes]
    """Relative to the root; in a manifest the key of the line: its id, else its path."""
    display: Mapped[str]
    source: Mapped[bytes | None]
    """In a manifest, the absolute path to open; else null."""
    label: Mapped[str | None]
    state: Mapped[str]
    """``live``, ``missing`` or ``excluded``."""
    missing_since: Mapped[float | None]
    first_seen_at: Mapped[float]
    seen_size_bytes: Mapped[int]
    seen_mtime_ns: Mapped[int]
    seen_ctime_ns: Mapped[int]
    seen_inode: Mapped[int]
    image_id: Mapped[int | None] = mapped_column(ForeignKey("images.id"))
    """The image that the file held when its bytes were last hashed."""
    digest_size_bytes: Mapped[int | None]
    digest_mtime_ns: Mapped[int | None]
    digest_ctime_ns: Mapped[int | None]
    digest_inode: Mapped[int | None]
    trusted: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether ``digest_sig`` was old enough when the bytes were read (same-second edits)."""


class Image(Base):
    """One distinct content.  Live while a live file holds it."""

    __tablename__ = "images"
    __table_args__ = NEVER_AGAIN
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    digest: Mapped[bytes] = mapped_column(unique=True)
    """SHA-256 of the bytes, 32 bytes."""
    size_bytes: Mapped[int]
    first_seen_at: Mapped[float]


class Space(Base):
    """One way to make vectors, known by its fingerprint."""

    __tablename__ = "spaces"
    __table_args__ = NEVER_AGAIN
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    fingerprint: Mapped[str] = mapped_column(unique=True)
    """Hexadecimal SHA-256 of the canonical JSON of ``spec``."""
    spec: Mapped[dict[str, Any]]
    """Everything that the vectors depend on, dtype and dimension included."""
    request: Mapped[dict[str, Any]]
    """Model, layer, weights and what else was asked for when the space was made."""
    dim: Mapped[int]
    dtype: Mapped[str]
    """``float32`` or ``float16``."""
    decode_version: Mapped[int]
    next_row: Mapped[int] = mapped_column(server_default=text("0"))
    current: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[float]


class SpaceKey(Base):
    """What the user typed, with the weights file's signature, to the space that it meant."""

    __tablename__ = "space_keys"
    key: Mapped[str] = mapped_column(primary_key=True)
    space_id: Mapped[int] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE"))


class Part(Base):
    """One write-once file of vectors, rows ``row_start`` to ``row_end`` of its space."""

    __tablename__ = "parts"
    __table_args__ = (Index("ix_parts_space_state", "space_id", "state", "row_start"), NEVER_AGAIN)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    space_id: Mapped[int] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(unique=True)
    """``<run>-<uuid>``; the files are ``<name>.npy``, ``<name>.ids.npy``, ``<name>.rows.npy``."""
    state: Mapped[str]
    """``live``, or ``replaced`` by compaction and kept for a day."""
    replaced_at: Mapped[float | None]
    row_start: Mapped[int]
    row_end: Mapped[int]
    n: Mapped[int]
    """Vectors in the file.  Fewer than ``row_end - row_start`` only with a rows sidecar."""
    size_bytes: Mapped[int]
    checksum: Mapped[str]
    """xxh3-128 of the npy file, hexadecimal."""
    ids_checksum: Mapped[str]
    rows_checksum: Mapped[str | None]
    run_id: Mapped[str]
    facts: Mapped[dict[str, Any]]
    """Device, engine and precision of the computation."""
    created_at: Mapped[float]


class Vector(Base):
    """The row of an image in a space.  A row without an entry here is dead from birth."""

    __tablename__ = "vectors"
    __table_args__ = (
        UniqueConstraint("space_id", "row"),
        Index("ix_vectors_image", "image_id"),
        {"sqlite_with_rowid": False},
    )
    space_id: Mapped[int] = mapped_column(
        ForeignKey("spaces.id", ondelete="CASCADE"), primary_key=True
    )
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), primary_key=True)
    row: Mapped[int]


class Failure(Base):
    """A recorded reason why an image has no vector."""

    __tablename__ = "failures"
    __table_args__ = (
        UniqueConstraint("stage", "file_id", "digest", "space_id", "decode_version"),
        Index("ix_failures_digest", "digest"),
        Index("ix_failures_file", "file_id"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    stage: Mapped[str]
    """``read`` is about a file, ``decode`` about a digest, ``forward`` about digest and space."""
    failure_class: Mapped[str]
    """``permission``, ``io``, ``truncated``, ``unsupported``, ``too_large``, ``nan``, ..."""
    message: Mapped[str]
    transient: Mapped[bool]
    """Retried on every run; the others wait for a changed file or ``lookalike retry``."""
    file_id: Mapped[int] = mapped_column(server_default=text("0"))
    """The file that could not be read; 0 in the other stages, which are about a digest."""
    digest: Mapped[bytes] = mapped_column(default=b"")
    """``b""`` where not keyed by it.  (A default of SQLite itself would be text, not bytes.)"""
    space_id: Mapped[int] = mapped_column(server_default=text("0"))
    decode_version: Mapped[int] = mapped_column(server_default=text("0"))
    size_bytes: Mapped[int | None]
    """The signature of the file when it failed to be read."""
    mtime_ns: Mapped[int | None]
    ctime_ns: Mapped[int | None]
    inode: Mapped[int | None]
    attempts: Mapped[int] = mapped_column(server_default=text("1"))
    first_at: Mapped[float]
    last_at: Mapped[float]
    run_id: Mapped[str]


class Run(Base):
    """One run of a command that writes, with its lease."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    """UTC start and random letters: sorts by time."""
    kind: Mapped[str]
    state: Mapped[str]
    """``running``, ``done``, ``failed``, ``interrupted`` or ``crashed``."""
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    token: Mapped[str]
    """Secret of the lease; cleared when another run declares this one dead."""
    expires_at: Mapped[float]
    host: Mapped[str]
    boot: Mapped[str]
    pid: Mapped[int]
    process_start: Mapped[str]
    report: Mapped[dict[str, Any] | None]
    flow_run: Mapped[str | None]
    """Id of the flow run in Prefect that carries it out, if any."""
    stopping: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether it was asked to stop; what its workers on other hosts look at."""


class Claim(Base):
    """What a live run has for itself: a root, a file in a space, or a space; ``work`` it shares."""

    __tablename__ = "claims"
    __table_args__ = (Index("ix_claims_run", "run_id", "chunk"),)
    kind: Mapped[str] = mapped_column(primary_key=True)
    """``root``, ``file``, ``image``, ``space``, or ``work``: the run extracts into the space."""
    space_id: Mapped[int] = mapped_column(primary_key=True)
    """0 for a root."""
    subject_id: Mapped[int] = mapped_column(primary_key=True)
    """Root, file, image or space; of ``work`` a number."""
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    chunk: Mapped[int]
    """Number of the chunk inside its run; 0 for all but files and images."""


class Suspect(Base):
    """A file that was in work when a run died, and was not settled since."""

    __tablename__ = "suspects"
    file_id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    deaths: Mapped[int]
    """How often."""
    run_id: Mapped[str]
    """The last run that died with it."""
    last_at: Mapped[float]


class Generation(Base):
    """One published index of a space: exactly the rows below ``row_end``."""

    __tablename__ = "generations"
    __table_args__ = NEVER_AGAIN
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    space_id: Mapped[int] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(unique=True)
    """The files are ``<name>.faiss`` and ``<name>.rowmap.npy``."""
    state: Mapped[str]
    """``live`` or ``replaced``."""
    replaced_at: Mapped[float | None]
    row_end: Mapped[int]
    n: Mapped[int]
    factory: Mapped[str]
    """FAISS ``index_factory`` string."""
    requested: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether somebody asked for this ``factory``; else it follows from the number."""
    parameters: Mapped[dict[str, Any]]
    """Search-time parameters: ``nprobe``, ``efSearch``."""
    size_bytes: Mapped[int]
    checksum: Mapped[str]
    rowmap_checksum: Mapped[str]
    created_at: Mapped[float]


class Recall(Base):
    """How well one published index found what exact search finds; kept when the index goes."""

    __tablename__ = "recalls"
    __table_args__ = (Index("ix_recalls_space", "space_id", "id"), NEVER_AGAIN)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    space_id: Mapped[int] = mapped_column(ForeignKey("spaces.id", ondelete="CASCADE"))
    generation: Mapped[str]
    """Name of the generation that was measured."""
    factory: Mapped[str]
    n: Mapped[int]
    """Vectors in the index."""
    k: Mapped[int]
    queries: Mapped[int]
    """Vectors of the seeded sample that were searched."""
    recall: Mapped[float]
    """Share of the k nearest that the index found, 0 to 1."""
    measured_at: Mapped[float]
