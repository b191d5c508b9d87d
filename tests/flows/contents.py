"""What an indexed tree comes to: catalog, vectors and hits, comparable between two homes."""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from search.engine import Searcher
from storage.catalog import Catalog
from storage.home import Home
from storage.reading import Rows, open_store, snapshot
from storage.spaces import get_space
from storage.tables import Failure, File, Image, Vector


@dataclass(frozen=True)
class Contents:
    """Files, failures, vectors by digest and the hits of every image."""

    files: dict[bytes, tuple[str, bytes | None]]
    failures: list[tuple[str, str]]
    space: tuple[str, str]
    vectors: dict[bytes, npt.NDArray[np.float32]]
    hits: dict[bytes, list[tuple[bytes, ...]]]
    scores: npt.NDArray[np.float64]


def contents(home: str, k: int = 5) -> Contents:
    """Read a home with the current space."""
    catalog = Catalog.open(Home(home), write=False)
    try:
        space = get_space(catalog)
        with catalog.read() as conn:
            query = select(File.path, File.state, Image.digest)
            files = conn.execute(query.outerjoin(Image, Image.id == File.image_id)).all()
            failures = conn.execute(select(Failure.stage, Failure.failure_class)).all()
            query_rows = select(Image.digest, Vector.row).join(Vector, Vector.image_id == Image.id)
            rows = conn.execute(query_rows.order_by(Image.digest)).all()
        found = snapshot(catalog, space)
        xb = Rows(open_store(catalog, space), found.parts).gather([row.row for row in rows])
    finally:
        catalog.close()
    with Searcher(Home(home)) as searcher:
        answers = searcher.search_vectors(xb, k)
    return Contents(
        files={path: (state, digest) for path, state, digest in files},
        failures=sorted((stage, name) for stage, name in failures),
        space=(space.name, space.fingerprint),
        vectors={row.digest: x for row, x in zip(rows, xb, strict=True)},
        hits={
            row.digest: [hit.paths for hit in hits] for row, hits in zip(rows, answers, strict=True)
        },
        scores=np.array([[hit.score for hit in hits] for hits in answers]),
    )


def assert_same(one: Contents, other: Contents) -> None:
    """Hold two homes of the same tree against each other; vectors within 1e-5."""
    assert one.files == other.files
    assert one.failures == other.failures
    assert one.space == other.space
    assert one.vectors.keys() == other.vectors.keys()
    for digest, vector in one.vectors.items():
        np.testing.assert_allclose(vector, other.vectors[digest], rtol=0, atol=1e-5)
    assert one.hits == other.hits
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-5)


def age(folder: str) -> None:
    """Make all files old enough to be trusted at once."""
    for where, _, names in os.walk(folder):
        for name in names:
            os.utime(os.path.join(where, name), ns=(10**18, 10**18))
