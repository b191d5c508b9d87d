import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from search.engine import Searcher
from search.errors import SearchError, UnknownImage
from search.following import Follower
from storage.errors import CatalogError, SpaceError
from storage.home import Home
from storage.spaces import SpaceInfo, drop_space, get_space, use_space
from tests.search.stores import DIM, Store, digest_of

Vectors = dict[bytes, np.ndarray]
Answer = tuple[str, list[tuple[int, float]]]


class Pair:
    """Two spaces over the same pictures, each with vectors of its own; ``old`` is current."""

    def __init__(self, store: Store, tree: Path) -> None:
        self.store = store
        self.digests = sorted({digest_of(path) for path in tree.rglob("*.png")})
        self.old, self.x_old = self._fill("old", tree, 1)
        self.new, self.x_new = self._fill("new", tree, 2)
        with Searcher(store.catalog.home, "old") as searcher:
            hits = {d: searcher.search_vectors(self.x_old[d][None], 1)[0][0] for d in self.digests}
        self.images = {digest: hit.image_id for digest, hit in hits.items()}

    def _fill(self, name: str, tree: Path, seed: int) -> tuple[SpaceInfo, Vectors]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(len(self.digests), DIM))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        vectors = dict(zip(self.digests, x, strict=True))
        space = self.store.space(name)
        self.store.index(tree, space, vectors=vectors)
        return space, vectors

    def use(self, space: SpaceInfo) -> None:
        use_space(self.store.catalog, space.name)

    def drop(self, space: SpaceInfo) -> None:
        drop_space(self.store.catalog, self.store.lease, space.name)

    def right(self, answer: Answer) -> bool:
        """Say whether all of an answer to `nearest` is that of the space which it names."""
        x = self.x_old if answer[0] == "old" else self.x_new
        scores = {self.images[d]: float(v @ x[self.digests[0]]) for d, v in x.items()}
        wanted = sorted(scores.items(), key=lambda one: -one[1])[:4]
        return [i for i, _ in answer[1]] == [i for i, _ in wanted] and np.allclose(
            [score for _, score in answer[1]], [score for _, score in wanted], atol=1e-5
        )

    def nearest(self, searcher: Searcher) -> Answer:
        hits = searcher.search_image(self.images[self.digests[0]], 4)
        return searcher.space.name, [(hit.image_id, hit.score) for hit in hits]


@pytest.fixture
def pair(store: Store, tree: Path) -> Pair:
    return Pair(store, tree)


@pytest.fixture
def follower(pair: Pair) -> Iterator[Follower]:
    with Follower(pair.store.catalog.home, device="cpu") as made:
        yield made


class Asking(threading.Thread):
    """A question on a thread of its own; ``outcome`` is its answer or what it raised."""

    def __init__(self, follower: Follower, question: Callable[[Searcher], Answer]) -> None:
        super().__init__()
        self.follower, self.question = follower, question
        self.outcome: Answer | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.follower.ask(self.question)
        except Exception as error:  # noqa: BLE001
            self.outcome = error


def is_closed(searcher: Searcher, pool: object) -> bool:
    return searcher.catalog.engine.pool is not pool  # SQLAlchemy gives a closed engine a new one


def test_the_next_question_goes_to_the_space_that_is_current(
    pair: Pair, follower: Follower
) -> None:
    for space in (pair.old, pair.new, pair.old):
        pair.use(space)
        answer = follower.ask(pair.nearest)
        assert answer[0] == space.name == get_space(pair.store.catalog).name
        assert pair.right(answer)
    assert pair.x_old.keys() == pair.x_new.keys()
    assert follower.health()[1] == len(pair.digests) == 12


def test_a_question_keeps_its_space_open_until_it_is_answered(
    pair: Pair, follower: Follower
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    used: list[tuple[Searcher, object]] = []

    def slow(searcher: Searcher) -> Answer:
        used.append((searcher, searcher.catalog.engine.pool))
        inside.set()
        assert go_on.wait(60)
        return pair.nearest(searcher)

    asking = Asking(follower, slow)
    assert inside.wait(60)
    pair.use(pair.new)
    assert follower.ask(pair.nearest)[0] == "new"
    assert not is_closed(*used[0])
    go_on.set()
    asking.join()
    assert isinstance(asking.outcome, tuple)
    assert asking.outcome[0] == "old"
    assert pair.right(asking.outcome)
    assert len(used) == 1
    assert is_closed(*used[0])


def test_while_one_thread_opens_the_new_space_the_others_are_answered_by_the_old_one(
    pair: Pair, follower: Follower
) -> None:
    pair.use(pair.new)
    with follower._opening:  # as long as a thread is at it
        answer = follower.ask(pair.nearest)
        assert answer[0] == "old"
        assert pair.right(answer)
    assert follower.ask(pair.nearest)[0] == "new"


def test_who_needs_the_new_space_waits_for_the_thread_that_opens_it(
    pair: Pair, follower: Follower
) -> None:
    failed = threading.Event()

    def question(searcher: Searcher) -> Answer:
        try:
            return pair.nearest(searcher)
        except (SpaceError, UnknownImage):
            failed.set()
            raise

    pair.use(pair.new)
    with follower._opening:
        pair.drop(pair.old)
        asking = Asking(follower, question)
        assert failed.wait(60)
        asking.join(0.3)
        assert asking.is_alive()
    asking.join()
    assert isinstance(asking.outcome, tuple)
    assert asking.outcome[0] == "new"
    assert pair.right(asking.outcome)


def test_a_space_that_is_dropped_under_a_question_is_no_error(
    pair: Pair, follower: Follower
) -> None:
    asked: list[str] = []

    def question(searcher: Searcher) -> Answer:
        asked.append(searcher.space.name)
        if searcher.space.name == "old":
            pair.use(pair.new)
            pair.drop(pair.old)
        return pair.nearest(searcher)

    answer = follower.ask(question)
    assert asked == ["old", "new"]
    assert pair.right(answer)


def test_a_question_that_is_wrong_by_itself_is_put_once(pair: Pair, follower: Follower) -> None:
    asked: list[str] = []

    def wrong(searcher: Searcher) -> Answer:
        asked.append(searcher.space.name)
        return searcher.space.name, searcher.search_image(10**6)

    with pytest.raises(UnknownImage, match="no image 1000000 has a vector in the space 'old'"):
        follower.ask(wrong)
    assert asked == ["old"]


def test_a_question_that_is_meant_for_the_new_space_finds_it(
    pair: Pair, follower: Follower
) -> None:
    """What the former space can't answer is put to the new one, though another thread opens it."""
    asked: list[str] = []

    def for_new(searcher: Searcher) -> Answer:
        asked.append(searcher.space.name)
        if searcher.space.name != "new":
            raise SearchError("it has another dimension")
        return pair.nearest(searcher)

    pair.use(pair.new)
    with follower._opening:
        asking = Asking(follower, for_new)
        asking.join(0.3)
        assert asking.is_alive()
    asking.join()
    assert asked == ["old", "new"]
    assert isinstance(asking.outcome, tuple)
    assert pair.right(asking.outcome)


def test_a_named_space_is_stayed_with_to_its_end(pair: Pair) -> None:
    with Follower(pair.store.catalog.home, "old") as follower:
        pair.use(pair.new)
        answer = follower.ask(pair.nearest)
        assert answer[0] == "old"
        assert pair.right(answer)
        pair.drop(pair.old)
        for _ in range(2):
            with pytest.raises(SpaceError, match="no space 'old'; there are: new"):
                follower.ask(pair.nearest)


def test_a_store_without_spaces_is_an_error_until_there_is_one(
    pair: Pair, follower: Follower, tree: Path
) -> None:
    pair.use(pair.new)
    pair.drop(pair.old)
    pair.drop(pair.new)
    with pytest.raises(SpaceError, match="no space yet"):
        follower.ask(pair.nearest)
    pair.store.index(tree, pair.store.space("new"), vectors=pair.x_new)
    answer = follower.ask(pair.nearest)
    assert answer[0] == "new"
    assert pair.right(answer)


def test_what_can_not_be_opened_is_said(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(CatalogError, match="nothing is indexed yet"):
        Follower(Home(str(tmp_path / "none")))
    with pytest.raises(SpaceError, match="'other'; there are: old, new"):
        Follower(pair.store.catalog.home, "other")


def test_a_network_that_can_not_be_opened_holds_up_no_switch(
    pair: Pair, follower: Follower
) -> None:
    """These spaces have the request of a network that gives other vectors than theirs."""
    from extractor.engine import Engine
    from extractor.models import ModelRequest, open_model

    old = follower.ask(lambda searcher: searcher)
    network = old._pictures.network
    network._engine = Engine(open_model(ModelRequest("resnet18", None, "random:0")), device="cpu")
    pair.use(pair.new)
    assert pair.right(follower.ask(pair.nearest))
    new = follower.ask(lambda searcher: searcher)
    assert (new.space.name, new.has_model) == ("new", False)
    with pytest.raises(SpaceError, match="its model now gives"):
        follower.ask(lambda searcher: searcher.prepare(model=True))


def open_below(folder: str) -> int:
    """Count this process's open files below a folder; 0 where the system does not tell."""
    own = Path("/proc/self/fd")
    links = list(own.iterdir()) if own.is_dir() else []
    return sum(os.path.realpath(link).startswith(os.path.realpath(folder)) for link in links)


def test_many_threads_and_many_switches_mix_nothing_and_leave_nothing_open(
    pair: Pair, follower: Follower
) -> None:
    home = pair.store.catalog.home.path
    follower.ask(pair.nearest)
    before = open_below(home)
    done = threading.Event()
    wrong: list[object] = []
    counts = {"old": 0, "new": 0}

    def client() -> None:
        while not done.is_set():
            try:
                answer = follower.ask(pair.nearest)
            except Exception as error:  # noqa: BLE001
                wrong.append(error)
                return
            counts[answer[0]] += 1
            if not pair.right(answer):
                wrong.append(answer)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        pair.use((pair.new, pair.old)[number % 2])
        done.wait(0.05)
    pair.use(pair.new)
    done.wait(0.2)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(counts.values()) > 10
    assert follower.ask(pair.nearest)[0] == "new"
    # Idle connections of one searcher may stay, those of twenty may not.
    assert open_below(home) <= before + 3 * 2 * len(threads)
