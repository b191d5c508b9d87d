"""Extract pictures again as a space's own were, for a check: into memory, and nothing is kept."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.job.extraction import default_workers
from storage.check_again import Again, Made
from storage.errors import StorageError
from storage.home import Home
from storage.spaces import SpaceInfo

if TYPE_CHECKING:
    from extractor.engine import Engine


def extract_again(home: Home, device: str = "auto", workers: int | None = None) -> Again:
    """Return the function that extracts pictures for ``storage.check.Depth``.

    torch is imported and a network opened for the first picture that can be decoded.

    Parameters
    ----------
    home
        Where the spaces lie.
    device
        As ``extractor.engine.Engine`` takes it.
    workers
        Threads that read and decode; None is one for each core.
    """

    def again(space: SpaceInfo, paths: Sequence[bytes]) -> Made:
        from extractor.errors import ExtractorError
        from extractor.extract import extract
        from extractor.loader import Source
        from extractor.preprocess import Preprocess

        built: list[Engine] = []

        def engine() -> "Engine":
            from search.query import open_engine

            if not built:
                built.append(open_engine(space, device, home=home))
            return built[0]

        try:
            done = extract(
                [Source(key=key, path=path) for key, path in enumerate(paths)],
                wants=lambda _digest: True,
                preprocess=Preprocess.from_json(space.spec["preprocess"]),
                engine=engine,
                workers=workers or default_workers(),
                stop=threading.Event(),
                progress=lambda _done, _failed: None,
            )
        except (ExtractorError, StorageError) as error:
            return Made({}, why=str(error))
        vectors = dict(zip(done.digests, done.vectors, strict=True))
        return Made(vectors, str(built[0].facts["precision"]) if built else "float32")

    return again
