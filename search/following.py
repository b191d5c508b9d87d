"""One searcher that many threads share, and that goes over to another space without a gap."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

from search.decoders import Decoders
from search.engine import Searcher
from search.gathering import Gathering
from search.records import space_number, vectors_in
from search.thumbnail_files import thumbnails_folder
from search.thumbnails import Thumbnails
from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import SpaceInfo, get_space

T = TypeVar("T")


class _Held:
    """A searcher, and how many hold it: each request that it answers, and whoever serves it."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.holders = 1


class Follower:
    """Answers from the current space, whichever that is when a question comes.

    Each question asks the catalog which space is current.  The first one that finds another than
    before opens that, with its index, and with its network where the former one was in use; all
    others go on with the former space meanwhile.  Then one assignment makes the new space answer.
    So every answer comes wholly from one space, and none waits for a switch but the one that meets
    it first.  A searcher is closed when the last question to it is answered.

    Parameters
    ----------
    home
        Where the store is.
    space
        Name of the space to stay with; None follows the current one.
    device
        Where a picture that is not indexed is run.
    cache
        Folder of the thumbnails; None is the store's own in the user's cache folder.

    Raises
    ------
    CatalogError
        Nothing is indexed there, or the catalog can't be opened.
    SpaceError
        There is no such space.
    """

    def __init__(
        self,
        home: Home,
        space: str | None = None,
        *,
        device: str = "auto",
        cache: str | None = None,
    ) -> None:
        self.home = home
        self.name = space
        self.device = device
        self._decoders = Decoders()
        self._catalog = Catalog.open(home, write=False)
        self._looking: Gathering[None, None, int] = Gathering(self._looked)
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        try:
            folder = cache or thumbnails_folder(self._catalog.store_id)
            self.thumbnails = Thumbnails(self._catalog, folder)
            self._serving = _Held(self._opened(model=False))
        except BaseException:
            self._catalog.close()
            raise

    def ask(self, question: Callable[[Searcher], T]) -> T:
        """Return the answer of one searcher to one question.

        Where that fails and another space is current by now (the former one was dropped in
        mid-question, or the new one was meant all along), the question is put once more, to it.

        Parameters
        ----------
        question
            Called with a searcher that stays open until it returns; called twice where the space
            changes under it.

        Raises
        ------
        SpaceError
            No space is current, or the one to stay with is gone.
        Exception
            Whatever ``question`` raises.
        """
        with self._borrowed(wait=False) as searcher:
            try:
                return question(searcher)
            except Exception:
                if self.space().id == searcher.space.id:
                    raise
        with self._borrowed(wait=True) as searcher:
            return question(searcher)

    def look(self, question: Callable[[Catalog], T]) -> T:
        """Return what a question finds in the catalog alone; it may raise what it likes."""
        return question(self._catalog)

    @property
    def has_model(self) -> bool:
        """Whether the network of the space that answers is open."""
        return self._serving.searcher.has_model

    def space(self) -> SpaceInfo:
        """Return the space that the catalog says is to be asked now.

        Raises
        ------
        SpaceError
            There is none.
        """
        return get_space(self._catalog, self.name)

    def health(self) -> tuple[SpaceInfo, int]:
        """Return the space that is to be asked now, and how many vectors it holds; `SpaceError`."""
        space = self.space()
        with self._catalog.read() as conn:
            return space, vectors_in(conn, space.id)

    def close(self) -> None:
        """Close the searcher, at the end of the last question to it, and the catalog."""
        self._decoders.close()
        self.thumbnails.close()
        self._give_back(self._serving)
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _borrowed(self, *, wait: bool) -> Iterator[Searcher]:
        self._follow(wait=wait)
        with self._counting:
            held = self._serving
            held.holders += 1
        try:
            yield held.searcher
        finally:
            self._give_back(held)

    def _follow(self, *, wait: bool) -> None:
        """Go over to the space that is current; ``wait`` for a thread that is at it already."""
        if not self._is_behind() or not self._opening.acquire(blocking=wait):
            return
        try:
            # Asked again under the lock: what this thread saw may be older than what serves.
            if self._is_behind():
                new = _Held(self._opened(model=self._serving.searcher.has_model))
                with self._counting:
                    old, self._serving = self._serving, new
                self._give_back(old)
        finally:
            self._opening.release()

    def _is_behind(self) -> bool:
        [current] = self._looking.ask(None, (None,))
        return current != self._serving.searcher.space.id

    def _looked(self, _: None, questions: Sequence[None]) -> Sequence[int]:
        """Look once for all questions that came together: the look begins after each of them."""
        with self._catalog.read() as conn:
            current = space_number(conn, self.name)
        return [self.space().id if current is None else current] * len(questions)

    def _opened(self, *, model: bool) -> Searcher:
        searcher = Searcher(self.home, self.name, device=self.device, decoders=self._decoders)
        # FAISS's threads belong to the one that calls it, and with two such teams both are slower.
        with suppress(RuntimeError), ThreadPoolExecutor(1) as passing:  # no thread to be had
            passing.submit(searcher.prepare, model=model)  # whoever asks next meets its trouble
        return searcher

    def _give_back(self, held: _Held) -> None:
        with self._counting:
            held.holders -= 1
            last = held.holders == 0
        if last:
            held.searcher.close()
