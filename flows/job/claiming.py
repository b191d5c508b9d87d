"""Which chunks a run works on: claimed one after the other, each as large as it should be."""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flows.job.patience import patiently
from flows.job.progress import counted
from storage.catalog import Catalog
from storage.chunks import Chunk, claim_chunk, give_back, pending_elsewhere
from storage.leases import Lease, reap
from storage.pending import Scope
from storage.spaces import SpaceInfo
from storage.suspects import deaths, suspect_lost

T = TypeVar("T")

CHUNK_SECONDS = 30.0
"""A chunk is about this much work, so that orchestration costs nothing and a kill loses little."""
MAX_CHUNK_IMAGES = 8192
MAX_CHUNK_BYTES = 128 << 20
FIRST_CHUNK_IMAGES = 64
POLL_S = 0.5
LOSSES = 2
"""How often a run takes up files again whose worker was lost with them: they may be the reason."""
SUSPECTS = 64
"""Files of a chunk that a run has died with before; an eighth of it for each death more."""
AMONG = MAX_CHUNK_IMAGES
"""Files of a later pass that are looked up at once."""


class ChunkSize:
    """How many images to take next, from how long the last chunk took."""

    def __init__(
        self, vector_bytes: int, fixed: int | None, most_bytes: int = MAX_CHUNK_BYTES
    ) -> None:
        self._most = max(1, min(MAX_CHUNK_IMAGES, most_bytes // vector_bytes))
        self._fixed = fixed
        self.limit = min(fixed or FIRST_CHUNK_IMAGES, self._most)

    def learn(self, images: int, seconds: float) -> None:
        """Aim at ``CHUNK_SECONDS``, growing at most fourfold at a time."""
        if self._fixed is None and seconds > 0:
            aim = int(images / seconds * CHUNK_SECONDS)
            self.limit = max(16, min(aim, 4 * self.limit, self._most))


def chunk_size(space: SpaceInfo, fixed: int | None) -> ChunkSize:
    """Return how many images to claim for a space."""
    return ChunkSize(space.dim * (2 if space.dtype == "float16" else 4), fixed)


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
    _number: int = 0
    _crowded: bool = False
    _again: set[int] = field(default_factory=set)
    _former: set[int] = field(default_factory=set)
    """What the pass before has claimed of, and nothing was lost since."""
    _losses: Counter[int] = field(default_factory=Counter)

    def chunks(self) -> Iterator[Chunk | None]:
        """Claim chunk after chunk until nothing is left for this run.

        The first pass goes by file id, and leaves alone what a run has died with.  None stands
        between two passes: the next one depends on what becomes of the chunks in flight, so that
        the caller waits for them before it goes on.  Another pass tries the files again that were
        left because their image was in work, and those that were in work when a run or a worker
        died: these last, in small chunks, so that all else is done before, should it happen again.
        Only when nothing else is pending does the run wait for what others have claimed; what they
        gave back meanwhile lies behind, and takes a pass of its own.  Files of which a whole pass
        settled none are left to the next run.
        """
        yield from self._pass(sparing=True)
        while not self.stop.is_set():
            yield None
            if (yield from self._pass_again()):
                continue
            if not self._crowded:
                return
            self._wait_for_others()
            self._crowded = False
            yield from self._pass(sparing=True)

    def left(self, file_ids: Iterable[int]) -> None:
        """Note files that are to be tried again in another pass."""
        self._again.update(file_ids)

    def lost(self, chunk: Chunk) -> int:
        """Note a chunk that was lost with its worker; return how many files are tried again."""
        ids = [work.file_id for work in chunk.work]
        self._patiently(lambda: suspect_lost(self.catalog, self.lease.run_id, ids))
        self._losses.update(ids)
        again = [w.file_id for w in chunk.work if self._losses[w.file_id] <= LOSSES]
        self.left(again)
        self._former = set()  # bounded by the number of losses
        return len(again)

    def _pass_again(self) -> Generator[Chunk, None, bool]:
        """Claim of the files that were left; return whether there was anything to claim."""
        if self._again and self._again == self._former:
            files = counted(len(self._again), "file")
            self.say(f"{files} not taken: another run of this process has their image in work")
            self._former = set()
            return False
        ids, self._again = sorted(self._again), set()
        self._former = set(ids)
        claimed = False
        for n, some in self._by_deaths(ids):
            most = max(1, SUSPECTS >> 3 * (n - 1)) if n else MAX_CHUNK_IMAGES
            for start in range(0, len(some), AMONG):
                for chunk in self._pass(some[start : start + AMONG], most):
                    claimed = True
                    yield chunk
        if not claimed:
            self._former = set()
        return claimed

    def _by_deaths(self, ids: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return files by how many deaths they were in work in, those in none first."""
        found = self._patiently(lambda: deaths(self.catalog, ids))
        if found:
            files = counted(len(found), "file")
            self.say(f"{files} in work when a run died: decoded one by one, in a process apart")
        groups: dict[int, list[int]] = {}
        for file_id in ids:
            groups.setdefault(found.get(file_id, 0), []).append(file_id)
        return sorted(groups.items())

    def _pass(
        self,
        among: Sequence[int] | None = None,
        most: int = MAX_CHUNK_IMAGES,
        *,
        sparing: bool = False,
    ) -> Iterator[Chunk]:
        after = 0
        while not self.stop.is_set():
            self._crowded = bool(self._patiently(self._look_round)) or self._crowded
            chunk = self._claim(after, among, most, sparing=sparing)
            if chunk is None:
                return
            after = chunk.work[-1].file_id
            yield chunk

    def _claim(
        self, after: int, among: Sequence[int] | None, most: int, *, sparing: bool
    ) -> Chunk | None:
        number = self._number + 1
        passed: list[int] = []
        tried = False

        def claim() -> Chunk | None:
            nonlocal tried
            if tried:  # what was claimed without an answer
                give_back(self.catalog, self.lease, Chunk(number, self.space.id, ()))
            tried = True
            passed.clear()
            return claim_chunk(
                self.catalog,
                self.lease,
                self.space,
                number=number,
                limit=min(self.size.limit, most),
                after_file_id=after,
                scope=self.scope,
                among=among,
                sparing=sparing,
                passed=passed,
            )

        chunk = self._patiently(claim)
        self._number += chunk is not None
        self.left(passed)
        return chunk

    def _look_round(self) -> int:
        """Return how many runs have died just now, or how many files other runs have in work."""
        return len(reap(self.catalog)) or self._elsewhere()

    def _wait_for_others(self) -> None:
        """Wait until another run gave files back or settled them."""
        held = self._patiently(self._elsewhere)
        if held:
            self.say(f"waiting for {counted(held, 'file')} that another run is working on")
        while held and not self.stop.wait(POLL_S):
            self._patiently(lambda: reap(self.catalog))
            before, held = held, self._patiently(self._elsewhere)
            if held < before:
                return

    def _elsewhere(self) -> int:
        return pending_elsewhere(self.catalog, self.lease, self.space, self.scope)

    def _patiently(self, act: Callable[[], T]) -> T:
        return patiently(self.stop, act)
