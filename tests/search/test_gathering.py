"""Questions of several threads are answered together, and each as if it were asked alone."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import case, update

from search import Searcher
from search.asking import Outcome
from search.errors import SearchError, UnknownImage
from search.examples import Asked
from search.gathering import Gathering
from search.questions import Example, Question, Reply, Wanted
from storage.errors import PartError
from storage.leases import start_run
from storage.publish import publish
from storage.tables import File
from tests.search.stores import Store, digest_of, draw
from tests.storage.filled import Filled, clustered, local_catalog

D = 32
PATIENCE_S = 60


class Asker(threading.Thread):
    """A question on a thread of its own; ``outcome`` is its answer or what it raised."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._ask()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.outcome = error

    def done(self) -> object:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.outcome


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Doubling:
    """Work that doubles numbers, notes what it was given, and stops at a gate where asked to."""

    def __init__(self, **options: int) -> None:
        self.rounds: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.held = {"slow"}
        self.gathering: Gathering[str, int, int] = Gathering(self, **options)

    def __call__(self, kind: str, items: Sequence[int]) -> list[int]:
        self.rounds.append((kind, list(items)))
        if kind in self.held:
            assert self.gate.wait(PATIENCE_S)
        if -1 in items:
            raise SearchError("-1 can't be doubled")
        if -2 in items:
            raise KeyboardInterrupt
        return [2 * item for item in items]

    def ask(self, kind: str, *items: int) -> Asker:
        return Asker(lambda: self.gathering.ask(kind, items))

    def held_up(self, *jobs: Sequence[int], first: Sequence[int] = (0,)) -> list[Asker]:
        """Let jobs wait, in this order, for the first one, which is at work."""
        askers = [self.ask("slow", *first)]
        until(lambda: len(self.rounds) == 1)
        for number, job in enumerate(jobs, 1):
            askers.append(self.ask("slow", *job))
            until(lambda n=number: self.gathering.waiting("slow") == n)
        return askers


def test_who_asks_alone_is_answered_alone() -> None:
    work = Doubling()
    for number in range(3):
        assert list(work.gathering.ask("quick", [number, 5])) == [2 * number, 10]
    assert work.rounds == [("quick", [number, 5]) for number in range(3)]
    assert work.gathering._kinds == {}


def test_those_that_come_meanwhile_are_taken_together() -> None:
    work = Doubling()
    askers = work.held_up([1, 2], [3], [], [4])
    assert work.rounds == [("slow", [0])]
    work.gate.set()
    assert [asker.done() for asker in askers] == [[0], [2, 4], [6], [], [8]]
    assert work.rounds == [("slow", [0]), ("slow", [1, 2, 3, 4])]
    assert work.gathering._kinds == {}


def test_no_more_than_fit_are_taken_together() -> None:
    work = Doubling(most=3)
    askers = work.held_up([1, 2], [3], [4], [5, 6, 7, 8, 9], [10])
    work.gate.set()
    assert [asker.done() for asker in askers] == [
        *([0], [2, 4], [6], [8], [10, 12, 14, 16, 18], [20]),
    ]
    rounds = [items for _, items in work.rounds]
    assert rounds == [[0], [1, 2, 3], [4], [5, 6, 7, 8, 9], [10]]


def test_one_kind_does_not_wait_for_another() -> None:
    work = Doubling()
    [slow] = work.held_up()
    assert work.ask("quick", 4).done() == [8]
    assert slow.is_alive()
    work.gate.set()
    assert slow.done() == [0]


def test_as_many_are_at_work_at_once_as_there_are_lanes() -> None:
    work = Doubling(lanes=2)
    askers = [work.ask("slow", 1)]
    until(lambda: len(work.rounds) == 1)
    askers.append(work.ask("slow", 2))
    until(lambda: len(work.rounds) == 2)
    for number in range(3):
        askers.append(work.ask("slow", 3 + number))
        until(lambda n=number: work.gathering.waiting("slow") == n + 1)
    work.gate.set()
    assert [asker.done() for asker in askers] == [[2], [4], [6], [8], [10]]
    assert [sorted(items) for _, items in work.rounds[:2]] == [[1], [2]]
    assert sorted(item for _, items in work.rounds[2:] for item in items) == [3, 4, 5]
    assert work.gathering._kinds == {}


def test_what_fails_for_one_does_not_fail_for_others() -> None:
    work = Doubling()
    askers = work.held_up([1], [-1], [2])
    work.gate.set()
    zero, one, wrong, two = (asker.done() for asker in askers)
    assert (zero, one, two) == ([0], [2], [4])
    assert isinstance(wrong, SearchError)
    assert sorted(items for _, items in work.rounds) == [[-1], [0], [1], [1, -1, 2], [2]]
    assert work.gathering._kinds == {}


@pytest.mark.parametrize("stopped", [0, 1])
def test_an_interrupted_thread_leaves_the_others_their_answers(stopped: int) -> None:
    work = Doubling()
    jobs = [[number] for number in range(4)]
    jobs[stopped] = [-2]  # the first one leads, and so does the first of those that wait
    askers = work.held_up(*jobs[1:], first=jobs[0])
    work.gate.set()
    outcomes = [asker.done() for asker in askers]
    assert isinstance(outcomes.pop(stopped), KeyboardInterrupt)
    assert outcomes == [[2 * number] for number in range(4) if number != stopped]
    assert work.gathering._kinds == {}
    assert list(work.gathering.ask("quick", [7])) == [14]


def test_a_waiting_thread_that_is_interrupted_goes_out_of_the_way() -> None:
    work = Doubling()
    [slow] = work.held_up()

    def interrupt() -> None:
        until(lambda: work.gathering.waiting("slow") == 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Asker(interrupt)
        with pytest.raises(KeyboardInterrupt):
            work.gathering.ask("slow", [1])
    finally:
        signal.signal(signal.SIGINT, before)
    later = work.ask("slow", 2)
    until(lambda: work.gathering.waiting("slow") == 1)
    work.gate.set()
    assert (slow.done(), later.done()) == ([0], [4])
    assert work.rounds == [("slow", [0]), ("slow", [2])]


def test_many_threads_get_each_its_own() -> None:
    work = Doubling(most=5)
    rng = np.random.default_rng(0)

    def many(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        right = True
        for _ in range(300):
            items = rng.integers(0, 1000, rng.integers(1, 4)).tolist()
            kind = "ab"[rng.integers(2)]
            right &= list(work.gathering.ask(kind, items)) == [2 * item for item in items]
        return right

    askers = [Asker(lambda seed=seed: many(seed)) for seed in rng.integers(10**6, size=12).tolist()]
    assert [asker.done() for asker in askers] == [True] * 12
    assert work.gathering._kinds == {}


@pytest.fixture
def filled(sqlite_template: str, tmp_path: Path) -> Iterator[Filled]:
    with local_catalog(sqlite_template, tmp_path) as catalog:
        filled = Filled(catalog, D)
        filled.add(clustered(2000, D))
        publish(catalog, start_run(catalog, "index"), filled.space, "IVF32,SQ8")
        yield filled


@pytest.fixture(params=["index", "exact"])
def searcher(request: pytest.FixtureRequest, filled: Filled) -> Iterator[Searcher]:
    with Searcher(filled.catalog.home) as made:
        if request.param == "index":
            made._answers.lookup.exact_below = 0
        yield made


def together(
    searcher: Searcher, wanted: Wanted, asks: Sequence[Callable[[], object]]
) -> list[object]:
    """Ask on a thread each: the first one is held up until all are there, and so they gather."""
    gathering, work = searcher._gathering, searcher._gathering._work
    held, go = [], threading.Event()

    def hold(kind: Wanted, asked: Sequence[Asked]) -> Sequence[Outcome]:
        held.append(len(asked))
        assert go.wait(PATIENCE_S)
        return work(kind, asked)

    gathering._work, gathering._lanes = hold, 1
    askers = [Asker(asks[0])]
    until(lambda: held == [1])
    for number, ask in enumerate(asks[1:], 1):
        askers.append(Asker(ask))
        until(lambda n=number: gathering.waiting(wanted) == n)
    go.set()
    outcomes = [asker.done() for asker in askers]
    assert held[:2] == [1, len(asks) - 1]
    return outcomes


def test_answers_are_those_of_asking_alone(searcher: Searcher, filled: Filled) -> None:
    wanted = Wanted(20, skip=5, no_self=True, distinct=0.95)
    questions = [
        Question((Example(image_id=1000 + at), Example(vector=filled.x[at + 1])))
        for at in range(0, 1600, 100)
    ]
    alone = [searcher.reply(question, wanted) for question in questions]
    asks = [lambda q=question: searcher.reply(q, wanted) for question in questions]
    replies = together(searcher, wanted, asks)
    assert [reply.hits for reply in replies] == [reply.hits for reply in alone]
    assert [reply.more for reply in replies] == [reply.more for reply in alone]
    assert all(np.array_equal(a.vector, b.vector) for a, b in zip(replies, alone, strict=True))


def test_an_unknown_image_is_unknown_to_who_asked_for_it(searcher: Searcher) -> None:
    ids = [1000, 1001, 999_999, 1003, 888_888]
    asks = [lambda image=image: searcher.search_image(image, 1)[0].row for image in ids]
    outcomes = together(searcher, Wanted(1), asks)
    assert [outcomes[at] for at in (0, 1, 3)] == [0, 1, 3]
    for at in (2, 4):
        assert isinstance(outcomes[at], UnknownImage)
        assert str(ids[at]) in str(outcomes[at])


def test_a_damaged_vector_hits_those_who_meet_it(filled: Filled) -> None:
    x = clustered(2000, D)
    sane, near = (int(row) for row in np.argsort(x @ x[700])[[0, -2]])
    with Searcher(filled.catalog.home) as searcher:
        searcher.prepare()
        parts = searcher._answers.lookup._rows
        assert parts is not None
        damaged = np.array(next(parts.blocks())[1])
        damaged[700] *= 7
        parts._open[0] = parts._open[0]._replace(x=damaged)
        rows = (sane, near, sane)
        asks = [lambda row=row: searcher.search_image(1000 + row, 3) for row in rows]
        outcomes = together(searcher, Wanted(3), asks)
    assert isinstance(outcomes.pop(1), PartError)
    assert [hits[0].row for hits in outcomes] == [sane] * 2


def test_each_answer_is_of_one_state(filled: Filled) -> None:
    """One transaction swaps who lives; no answer has hits of both sides."""
    filled.set_state(range(1, 2000, 2), "missing")
    stop = threading.Event()
    images = 1000 + np.arange(0, 64)

    def swap() -> int:
        swaps = 0
        while not stop.is_set():
            swaps += 1
            with filled.catalog.write() as conn:
                state = case((File.image_id % 2 == swaps % 2, "live"), else_="missing")
                conn.execute(update(File).values(state=state))
        return swaps

    def ask(seed: int) -> set[frozenset[int]]:
        rng = np.random.default_rng(seed)
        seen = set()
        while not stop.is_set():
            reply = searcher.reply(
                Question((Example(image_id=int(rng.choice(images))),)), Wanted(15, skip=15)
            )
            seen.add(frozenset(hit.row % 2 for hit in reply.hits))
        return seen

    with Searcher(filled.catalog.home) as searcher:
        searcher._answers.lookup.exact_below = 0
        swapper, askers = Asker(swap), [Asker(lambda s=s: ask(s)) for s in range(8)]
        time.sleep(3)
        stop.set()
        assert swapper.done() > 3
        seen = set().union(*(asker.done() for asker in askers))
    assert seen == {frozenset({0}), frozenset({1})}


def test_pictures_go_through_the_network_together(store: Store, tmp_path: Path) -> None:
    from extractor.models import ModelRequest, open_model
    from storage.spaces import ensure_space

    request = ModelRequest("shufflenet_v2_x0_5", None, "random:0")
    spec = {**open_model(request).spec.to_json(), "dtype": "float32"}
    asked = {"model": "shufflenet_v2_x0_5", "layer": None, "weights": "random:0"}
    space = ensure_space(store.catalog, name="net", spec=spec, request=asked, key="net")
    known = [draw(tmp_path / f"root/{i}.png", i) for i in range(6)]
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(6, space.dim))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    store.index(tmp_path / "root", space, vectors=dict(zip(map(digest_of, known), x, strict=True)))
    new = [draw(tmp_path / f"{i}.png", 50 + i, size=(70, 50)) for i in range(6)]
    with Searcher(store.catalog.home, "net", device="cpu") as searcher:
        alone = [searcher.reply(Question((Example(path=os.fsencode(p)),))) for p in new]
        rounds: list[int] = []
        forwards = searcher._pictures._forwards
        work, here, go = forwards._work, threading.Event(), threading.Event()

        def held(kind: None, items: Sequence[object]) -> object:
            rounds.append(len(items))
            here.set()
            assert go.wait(PATIENCE_S)
            return work(kind, items)

        forwards._work = held
        data = [path.read_bytes() for path in new]
        askers = [Asker(lambda: searcher.reply(Question((Example(data=data[0]),))))]
        assert here.wait(PATIENCE_S)
        askers += [
            Asker(lambda d=one: searcher.reply(Question((Example(data=d),)))) for one in data[1:]
        ]
        until(lambda: forwards.waiting(None) == len(data) - 1)
        go.set()
        replies = [asker.done() for asker in askers]
    assert rounds == [1, len(data) - 1]
    for reply, lone in zip(replies, alone, strict=True):
        assert isinstance(reply, Reply)
        assert reply.vector == pytest.approx(lone.vector, abs=1e-5)
        assert [h.score for h in reply.hits] == pytest.approx(
            [h.score for h in lone.hits], abs=1e-5
        )
