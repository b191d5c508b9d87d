"""Clients ask ``lookalike serve`` while another process commits, deletes and publishes."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import ensure_space

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from bulk import clustered
from clients import Answer, ask_at_once, request, serving
from feeding import Event, Feed, Feeder, feeding
from truth import Held, State, Truth, states_of, vectors_of

DIM = 32
VECTORS, CLIENTS, SECONDS, ROUNDS = 3000, 8, 6, 5
K = 10

INDEXED = (
    "from storage.lookup import Lookup\n"
    "Lookup.__init__.__kwdefaults__['exact_below'] = 1\n"
    "from flows.cli import main; main()"
)
"""The command line, with an index in use however small it is."""


def filled(home: Home, folder: Path) -> None:
    with Catalog.open(home, write=True) as catalog:
        spec = {"dim": DIM, "dtype": "float32", "decode_version": 1, "architecture": "none"}
        request = {"model": "none", "layer": None, "weights": "none"}
        ensure_space(catalog, name="synthetic", spec=spec, request=request, key="synthetic")
        feeder = Feeder(catalog, str(folder))
        feeder.fill(np.concatenate(list(clustered(VECTORS, DIM))))
        feeder.close()


def test_each_answer_is_of_one_state_while_indexes_are_published(
    catalog_home: Home, tmp_path: Path
) -> None:
    filled(catalog_home, tmp_path / "first")
    with Catalog.open(catalog_home, write=False) as catalog:
        x, held = vectors_of(catalog)
    rows = np.arange(0, VECTORS, 100)
    xq = np.concatenate([next(clustered(30, DIM, seed=1)), x[rows]])
    values = [{"vector": [float(f"{v:.9g}") for v in q], "k": K} for q in xq[:30]]
    values += [{"image_id": held[row].image_id, "k": K} for row in rows.tolist()]
    feed = Feed(catalog_home, str(tmp_path / "fed"), xq, ROUNDS, 1.0)
    with feeding(feed) as feeder, serving(catalog_home, "-c", INDEXED) as url:
        requests = [request(url, value) for value in values]
        feeder.send("go")
        answers = ask_at_once(url, requests, clients=CLIENTS, seconds=SECONDS)
        events = feeder.recv()
    assert [event.kind for event in events] == ["gone", "came", "published"] * ROUNDS
    with Catalog.open(catalog_home, write=False) as catalog:
        x, held = vectors_of(catalog)
    truth = Truth(x, held, states_of(feed, VECTORS, events), xq, K)
    assert [problem for answer in answers if (problem := truth.problem(answer))] == []
    # What came in each round was found, and so were enough others.
    found = {hit["row"] for answer in answers for hit in json.loads(answer.body)["hits"]}
    for event in events:
        if event.kind == "came":
            assert found & set(range(event.row, event.row + len(xq)))
    assert len(answers) > 20 * CLIENTS


class TestJudge:
    """It tells every kind of wrong answer."""

    X = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
    STATES = (
        State(-np.inf, 1.0, 2),
        State(0.9, 2.0, 4),
        State(1.9, np.inf, 4, frozenset([0])),
    )
    RIGHT = ([0, 1], [0, 1], [1, 2])
    """The rows of the two best by state."""

    @pytest.fixture
    def truth(self) -> Truth:
        held = {row: Held(row + 1, f"/{row}.jpg") for row in range(4)}
        xq = np.array([[1, 0], [0, 1]], np.float32)
        return Truth(self.X, held, self.STATES, xq, 2)

    def answer(self, rows: list[int], asked: float, answered: float, question: int = 0) -> Answer:
        q = np.eye(2, dtype=np.float32)[question]
        hits = [
            {
                "row": r,
                "image_id": r + 1,
                "path": f"/{r}.jpg",
                "score": round(float(self.X[r] @ q), 6),
            }
            for r in rows
        ]
        return Answer(question, asked, answered, 200, json.dumps({"hits": hits}).encode())

    def test_right_answers_pass_while_their_state_may_be_the_newest(self, truth: Truth) -> None:
        for rows, state in zip(self.RIGHT, self.STATES, strict=True):
            at = max(state.since_s, 0)
            assert truth.problem(self.answer(rows, at, at + 0.01)) is None
        assert truth.problem(self.answer([0, 1], 1.5, 1.6)) is None  # as of both first states
        assert truth.problem(self.answer([3, 2], 0.85, 0.95, question=1)) is None

    def test_what_was_committed_before_must_be_known(self, truth: Truth) -> None:
        found = truth.problem(self.answer([1, 0], 1.1, 1.2, question=1))
        assert found == "of state 0 of 3, which had ended 0.100 s before"

    def test_what_is_gone_and_what_comes_later_must_not_be_known(self, truth: Truth) -> None:
        assert truth.problem(self.answer([0, 1], 2.1, 2.2)) is not None
        assert truth.problem(self.answer([3, 2], 0.5, 0.6, question=1)) is not None

    def test_hits_of_two_states_are_of_none(self, truth: Truth) -> None:
        mixed = self.answer([3, 1], 0.5, 3.0, question=1)
        assert str(truth.problem(mixed)).startswith("of no single state: question 1, rows [3, 1]")
        short = self.answer([3], 0.5, 3.0, question=1)
        assert str(truth.problem(short)).startswith("of no single state")

    def test_scores_order_and_images_must_be_true(self, truth: Truth) -> None:
        right = self.answer([0, 1], 0.0, 0.5)
        hits = json.loads(right.body)["hits"]
        for wrong, said in (
            ([hits[1], hits[0]], "not in order"),
            ([hits[0], hits[0]], "not in order, or twice"),
            ([hits[0], {**hits[1], "score": 0.81}], "the scores are no cosines"),
            ([{**hits[0], "image_id": 2}, hits[1]], "row 0 is not image 2"),
            ([{**hits[0], "path": "/1.jpg"}, hits[1]], "row 0 is not image 1, /1.jpg"),
            ([{**hits[0], "row": 9}, hits[1]], "row 9 is not"),
        ):
            body = json.dumps({"hits": wrong}).encode()
            assert str(truth.problem(replace(right, body=body))).startswith(said)
        assert truth.problem(replace(right, status=503)) == f"status 503: {right.body.decode()}"


def test_states_follow_from_what_was_done(tmp_path: Path) -> None:
    feed = Feed(Home(os.fspath(tmp_path)), "", np.eye(4, dtype=np.float32), 3, 1.0)
    events = []
    for number in range(3):
        events.append(Event("gone", number, 10 * number, 10 * number + 1))
        events.append(Event("came", number, 10 * number + 2, 10 * number + 3, 100 + 4 * number))
        events.append(Event("published", number, 10 * number + 4, 10 * number + 5))
    assert states_of(feed, 100, events) == [
        State(-np.inf, 3, 100),
        State(2, 13, 104),
        State(12, 21, 108),
        State(20, 23, 108, frozenset([100, 102])),
        State(22, np.inf, 112, frozenset([100, 102])),
    ]
