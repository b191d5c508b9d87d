"""Files that were in work when a run died: one of them may be the reason.

A process that dies says nothing of why: a picture that a decoder crashed on, a power cut and a
``kill -9`` look the same.  So nothing is held against these files; each is decoded in a process of
its own the next time, and stops being suspect when it is settled.  What such a process could not
decode stays suspect by its content, with its failure, also when that is armed again.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, delete, exists, or_, select, true

from storage.catalog import Catalog
from storage.database import insert_into
from storage.slices import sliced
from storage.tables import Claim, Failure, File, Image, Suspect

POISON = ("crashed", "timeout", "memory", "killed")
"""Classes of what the decoding of a picture has done to the process that it was decoded in."""


def suspected() -> ColumnElement[bool]:
    """Return the condition that a file, outer-joined to its image, is to be decoded with care."""
    poisonous = (
        Failure.stage == "decode",
        Failure.failure_class.in_(POISON),
        Failure.transient.is_(true()),
        Failure.digest == Image.digest,
    )
    return or_(exists().where(Suspect.file_id == File.id), exists().where(*poisonous))


def deaths(catalog: Catalog, file_ids: Iterable[int]) -> dict[int, int]:
    """Return in how many deaths files were in work since they were settled, if in any."""
    found: dict[int, int] = {}
    with catalog.read() as conn:
        for some in sliced(file_ids):
            query = select(Suspect.file_id, Suspect.deaths).where(Suspect.file_id.in_(some))
            found.update((file_id, n) for file_id, n in conn.execute(query))
    return found


def suspect_lost(catalog: Catalog, run_id: str, file_ids: Sequence[int]) -> None:
    """Note files of a living run whose worker has died with them."""
    with catalog.write() as conn:
        suspect(conn, catalog.now(conn), run_id, file_ids)


def suspect_claimed(conn: Connection, now: float, run_id: str) -> None:
    """Note the files that a dead run had in work, before its claims are dropped."""
    claimed = select(Claim.subject_id).distinct()
    claimed = claimed.where(Claim.kind == "file", Claim.run_id == run_id)
    suspect(conn, now, run_id, conn.execute(claimed).scalars().all())


def suspect(conn: Connection, now: float, run_id: str, file_ids: Sequence[int]) -> None:
    """Note one more death with these files in work; forget those that are gone meanwhile."""
    if not file_ids:
        return
    conn.execute(delete(Suspect).where(~exists().where(File.id == Suspect.file_id)))
    again = insert_into(conn, Suspect)
    again = again.on_conflict_do_update(
        index_elements=["file_id"],
        set_={
            "deaths": Suspect.deaths + 1,
            "run_id": again.excluded.run_id,
            "last_at": again.excluded.last_at,
        },
    )
    row = {"deaths": 1, "run_id": run_id, "last_at": now}
    conn.execute(again, [{"file_id": file_id, **row} for file_id in sorted(file_ids)])


def acquit(conn: Connection, file_ids: Iterable[int]) -> None:
    """Suspect files no longer: they are settled."""
    for some in sliced(sorted(file_ids)):
        conn.execute(delete(Suspect).where(Suspect.file_id.in_(some)))
