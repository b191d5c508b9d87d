"""What a client asks: the body of a request, read within bounds, and what it means."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from search.answers import Hit
from search.engine import Searcher
from search.errors import VectorError
from storage.vectors import UNIT_TOLERANCE

Model = TypeVar("Model", bound=BaseModel)
Ask = Callable[[Searcher], list[Hit]]

MOST_HITS = 1000


class Refused(Exception):
    """A request that is no question; ``status`` and ``code`` say why."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What a request may be at most."""

    picture_bytes: int = 64 << 20
    json_bytes: int = 4 << 20
    seconds: float = 60.0
    """For the body to arrive."""
    pictures: int = 8
    """Pictures in memory at once; more of them wait."""


class Wanted(BaseModel):
    """Which hits are wanted: in the query string beside a picture, else in the JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    k: Annotated[int, Field(ge=1, le=MOST_HITS)] = 10
    min_score: float | None = None
    no_self: bool = False


class Question(Wanted):
    """A question without a picture."""

    image_id: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    vector: list[float] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Question":
        if (self.image_id is None) == (self.vector is None):
            raise ValueError("give either image_id or vector")
        return self


class Reader:
    """Reads requests within bounds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.pictures = asyncio.Semaphore(limits.pictures)

    async def question(self, request: Request) -> Ask:
        """Return what a request without a picture asks.

        Raises
        ------
        Refused
            It is no question.
        """
        body = await self._body(request, self._limits.json_bytes)
        asked = _valid(lambda: Question.model_validate_json(body, strict=True))
        if asked.vector is not None:
            return _by_vector(asked.vector, asked)
        return _by_image(asked.image_id or 0, asked)

    async def picture(self, request: Request) -> Ask:
        """Return what a request asks whose body is the bytes of an image file; `Refused`."""
        wanted = _valid(lambda: Wanted.model_validate(dict(request.query_params)))
        data = await self._body(request, self._limits.picture_bytes)
        return lambda searcher: searcher.search_picture(data, **wanted.model_dump())

    async def _body(self, request: Request, most: int) -> bytes:
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > most:
            raise _too_large(most)
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for piece in request.stream():
                    size += len(piece)
                    if size > most:
                        raise _too_large(most)
                    pieces.append(piece)
        except TimeoutError:
            late = f"the body did not arrive within {self._limits.seconds:g} s"
            raise Refused(408, "too_slow", late) from None
        return b"".join(pieces)


def is_json(request: Request) -> bool:
    """Return whether the body is JSON; False for the bytes of an image file.

    Raises
    ------
    Refused
        The request says neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return True
    if kind.startswith("image/") or kind == "application/octet-stream":
        return False
    raise Refused(
        415,
        "unsupported_body",
        "send JSON as application/json, or the bytes of a picture as image/... or"
        " application/octet-stream",
    )


def _valid(parse: Callable[[], Model]) -> Model:
    try:
        return parse()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "".join(f"{part}: " for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        raise Refused(400, "bad_request", f"{where}{message}") from None


def _by_image(image_id: int, wanted: Wanted) -> Ask:
    options = _options(wanted)
    return lambda searcher: searcher.search_image(image_id, **options)


def _by_vector(vector: list[float], wanted: Wanted) -> Ask:
    """Return the search for a vector; whose image it is nobody knows, so ``no_self`` is void."""

    def ask(searcher: Searcher) -> list[Hit]:
        space = searcher.space
        if len(vector) != space.dim:
            raise VectorError(
                f"the vector has {len(vector)} numbers, the space {space.name!r} has {space.dim}"
            )
        norm = math.hypot(*vector)
        if not abs(norm - 1) < UNIT_TOLERANCE:
            raise VectorError(f"the vector has norm {norm:.6g}, it must be 1")
        xq = np.array([vector], np.float32)
        return searcher.search_vectors(xq, wanted.k, min_score=wanted.min_score)[0]

    return ask


def _options(wanted: Wanted) -> dict[str, Any]:
    return {"k": wanted.k, "min_score": wanted.min_score, "no_self": wanted.no_self}


def _too_large(most: int) -> Refused:
    return Refused(413, "too_large", f"the body has more than {most:,} bytes")
