"""Which chunks a run works on: claimed one after the other, each as large as it should be."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flows.progress import counted
from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk, pending_elsewhere
from storage.pending import Scope
from storage.runs import Lease, reap
from storage.spaces import SpaceInfo

CHUNK_SECONDS = 30.0
"""A chunk is about this much work, so that orchestration costs nothing and a kill loses little."""
MAX_CHUNK_IMAGES = 8192
MAX_CHUNK_BYTES = 128 << 20
FIRST_CHUNK_IMAGES = 64
POLL_S = 0.5


class ChunkSize:
    """How many images to claim next, from how long the last chunk took."""

    def __init__(self, space: SpaceInfo, fixed: int | None) -> None:
        vector_bytes = space.dim * (2 if space.dtype == "float16" else 4)
        self._most = max(1, min(MAX_CHUNK_IMAGES, MAX_CHUNK_BYTES // vector_bytes))
        self._fixed = fixed
        self.limit = min(fixed or FIRST_CHUNK_IMAGES, self._most)

    def learn(self, images: int, seconds: float) -> None:
        """Aim at ``CHUNK_SECONDS``, growing at most fourfold at a time."""
        if self._fixed is None and seconds > 0:
            aim = int(images / seconds * CHUNK_SECONDS)
            self.limit = max(16, min(aim, 4 * self.limit, self._most))


@dataclass
class Claiming:
    """A run's way through what is pending in one space, of some roots."""

    catalog: Catalog
    lease: Lease
    space: SpaceInfo
    scope: Scope
    size: ChunkSize
    stop: threading.Event
    say: Callable[[str], None]

    def chunks(self) -> Iterator[Chunk]:
        """Claim chunk after chunk, in one pass by file id, until nothing is left for this run.

        Only when nothing else is pending does the run wait for what others have claimed.  What they
        gave back meanwhile lies behind this run's place, so that it takes another pass.
        """
        number, after, crowded = 0, 0, False
        while not self.stop.is_set():
            crowded = bool(reap(self.catalog) or self._elsewhere()) or crowded
            number += 1
            chunk = claim_chunk(
                self.catalog,
                self.lease,
                self.space,
                number=number,
                limit=self.size.limit,
                after_file_id=after,
                scope=self.scope,
            )
            if chunk is not None:
                after = chunk.work[-1].file_id
                started = time.perf_counter()
                yield chunk
                self.size.learn(len(chunk.work), time.perf_counter() - started)
            elif crowded:
                self._wait_for_others()
                after, crowded = 0, False
            else:
                return

    def _wait_for_others(self) -> None:
        """Wait until another run gave files back or settled them."""
        held = self._elsewhere()
        if held:
            self.say(f"waiting for {counted(held, 'file')} that another run is working on")
        while held and not self.stop.wait(POLL_S):
            reap(self.catalog)
            before, held = held, self._elsewhere()
            if held < before:
                return

    def _elsewhere(self) -> int:
        return pending_elsewhere(self.catalog, self.lease, self.space, self.scope)
