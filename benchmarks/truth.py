"""Which answers were right, of a store that changed while it was asked.

Every commit ends one state of the store and begins another.  An answer is right when it is the
answer of one state, found by comparison with every vector that lived in it, and when that state may
have been the newest at some moment between question and answer.  So an answer that lacks what was
committed before it was asked for is wrong, as is one that knows too much, names what is gone, or
takes some hits from one state and some from another.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from clients import Answer
from feeding import LAG, Event, Feed
from sqlalchemy import select

from storage.catalog import Catalog
from storage.reading import Rows, open_store, snapshot
from storage.spaces import get_space
from storage.tables import File, Root, Vector

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

TIE = 3e-6
"""Cosines that differ by less are equal: an answer has six digits, and sums are rounded."""


@dataclass(frozen=True)
class State:
    """What a question can see: rows below ``n`` but the ``dead`` ones.

    It was the newest at no moment before ``since_s``, and at none after ``until_s``.
    """

    since_s: float
    until_s: float
    n: int
    dead: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Held:
    """The image of a row, and the path of the one file that holds or held it."""

    image_id: int
    path: str


def states_of(feed: Feed, n: int, events: Iterable[Event]) -> list[State]:
    """Return the states of a store that had n rows, all of them alive, before it was fed."""
    states = [State(-math.inf, math.inf, n)]
    rows: dict[int, int] = {}
    for event in events:
        last = states[-1]
        new = replace(last, since_s=event.began_s)
        if event.kind == "came":
            rows[event.round] = event.row
            new = replace(new, n=event.row + len(feed.targets))
        elif event.kind == "gone":
            gone = {rows[event.round - LAG] + at for at in feed.going(event.round)}
            new = replace(new, dead=last.dead | gone)
        if (new.n, new.dead) != (last.n, last.dead):
            states[-1] = replace(last, until_s=event.ended_s)
            states.append(new)
    return states


def vectors_of(catalog: Catalog) -> tuple[FloatArray, dict[int, Held]]:
    """Return all vectors of the current space by row, and what each row is about."""
    space = get_space(catalog)
    view = snapshot(catalog, space)
    query = (
        select(Vector.row, Vector.image_id, Root.display, File.display)
        .join(File, File.image_id == Vector.image_id)
        .join(Root, Root.id == File.root_id)
        .where(Vector.space_id == space.id)
    )
    with catalog.read() as conn:
        held = {
            row: Held(image, f"{root}/{name}") for row, image, root, name in conn.execute(query)
        }
    return Rows(open_store(catalog, space), view.parts).gather(np.arange(view.next_row)), held


class Truth:
    """Judges answers.

    Parameters
    ----------
    x
        The vectors by row, shape ``(n, d)``, float32, unit length.
    held
        What each row is about.
    states
        In their order.
    xq
        What each question, by its number, asks for, shape ``(nq, d)``, float32, unit length.
    k
        How many hits each asks for.
    """

    def __init__(
        self,
        x: FloatArray,
        held: Mapping[int, Held],
        states: Sequence[State],
        xq: FloatArray,
        k: int,
    ) -> None:
        self._held = held
        self._states = states
        self._k = k
        self._products = xq @ x.T  # (nq, n)
        self._best: dict[tuple[int, int], FloatArray] = {}

    def problem(self, answer: Answer) -> str | None:
        """Return what is wrong with an answer, None where it is right."""
        if answer.status != 200:
            return f"status {answer.status}: {answer.body[:200].decode(errors='replace')}"
        hits = json.loads(answer.body)["hits"]
        rows = np.array([hit["row"] for hit in hits], np.int64)
        scores = np.array([hit["score"] for hit in hits])
        for hit in hits:
            if self._held.get(hit["row"]) != Held(hit["image_id"], hit["path"]):
                return f"row {hit['row']} is not image {hit['image_id']}, {hit['path']}"
        if np.abs(self._products[answer.question, rows] - scores).max(initial=0) > TIE:
            return f"the scores are no cosines: {scores.tolist()}"
        if (np.diff(scores) > 0).any() or len(set(rows.tolist())) < len(rows):
            return f"not in order, or twice: {rows.tolist()}, {scores.tolist()}"
        return self._timely(answer, rows)

    def _timely(self, answer: Answer, rows: RowArray) -> str | None:
        fitting = [
            number
            for number in range(len(self._states))
            if self._is_answer(number, answer.question, rows)
        ]
        if not fitting:
            return f"of no single state: question {answer.question}, rows {rows.tolist()}"
        for number in fitting:
            state = self._states[number]
            if state.since_s <= answer.answered_s and answer.asked_s <= state.until_s:
                return None
        late = answer.asked_s - self._states[fitting[-1]].until_s
        return f"of state {fitting[-1]} of {len(self._states)}, which had ended {late:.3f} s before"

    def _is_answer(self, number: int, question: int, rows: RowArray) -> bool:
        state = self._states[number]
        if rows.max(initial=-1) >= state.n or not state.dead.isdisjoint(rows.tolist()):
            return False
        best = self._best_in(number, question)
        found = self._products[question, rows]
        return len(found) == len(best) and bool(np.abs(found - best).max(initial=0) <= TIE)

    def _best_in(self, number: int, question: int) -> FloatArray:
        """Return the k largest products of what lives in a state, largest first."""
        if (number, question) not in self._best:
            state = self._states[number]
            products = self._products[question, : state.n].copy()
            products[list(state.dead)] = -np.inf
            best = np.sort(np.partition(products, -self._k)[-self._k :])[::-1]
            self._best[number, question] = best
        return self._best[number, question]
