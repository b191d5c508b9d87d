"""What is answered where there is no answer: one shape for all refusals, one list of reasons."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from extractor.errors import ExtractorError
from search.errors import (
    NoMemory,
    NoWords,
    QueryError,
    SearchError,
    UnknownImage,
    UnknownPlace,
    VectorError,
)
from storage.errors import SpaceError, StorageError

# First match decides.
_KINDS: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (QueryError, 400, "unusable_picture"),
    (VectorError, 400, "wrong_vector"),
    (UnknownImage, 404, "unknown_image"),
    (UnknownPlace, 404, "unknown_place"),
    (NoWords, 400, "no_words"),
    (NoMemory, 503, "no_memory"),
    (SearchError, 400, "bad_request"),
    (SpaceError, 503, "space"),
    (StorageError, 503, "store"),
    (ExtractorError, 503, "model"),
    (ClientDisconnect, 400, "gone"),
)
_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
ERRORS: Final = {
    400: "The question makes no sense, or its picture or vector can't be used.",
    401: "The token is missing or wrong.",
    403: "The page of another site asks.",
    404: "There is no such image, folder, space or address.",
    405: "Not by this method.",
    408: "The request did not arrive in time.",
    413: "The body is larger than allowed.",
    415: "The body is of no type that is read here.",
    421: "The server does not go by this name.",
    431: "The headers are larger than allowed.",
    500: "A bug; please report what stands on the server's stderr.",
    503: "Store, space, network or memory is missing now, or too many ask; try again later.",
}
"""What each status of a refusal means."""
_SAID: Final = {
    404: "there is nothing at this address",
    405: "this address is not asked by this method",
}
BUG: Final = "a bug of the server, which has said more on its stderr"


@dataclass(frozen=True)
class Trouble:
    """Why a request has no answer: an HTTP status, a word for programs, a line for people."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that is not answered; ``status`` and ``code`` say why.

    Parameters
    ----------
    status, code, message
        As `Trouble` has them.
    headers
        What goes with the answer, by name; an underscore stands for a hyphen.
    """

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.trouble = Trouble(
            status,
            code,
            " ".join(message.split()),
            {name.replace("_", "-"): text for name, text in headers.items()},
        )

    @classmethod
    def of(cls, trouble: Trouble) -> "Refused":
        """Return the exception for a trouble."""
        return cls(trouble.status, trouble.code, trouble.message)


def trouble_of(error: Exception) -> Trouble:
    """Return what an exception means to whoever asked; status 500 is a bug."""
    if isinstance(error, Refused):
        return error.trouble
    if isinstance(error, HTTPException):
        status = error.status_code
        said = _SAID.get(status, str(error.detail))
        return Trouble(status, _CODES.get(status, "http"), said, error.headers or {})
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return bad_request(first["loc"][1:], first["msg"])
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Trouble(status, code, " ".join(str(error).split()))
    return Trouble(500, "bug", BUG)


def bad_request(where: tuple[int | str, ...], message: str) -> Trouble:
    """Return the trouble with one value of a request, named by its place in it."""
    name = "".join(f"{part}: " for part in where[:1])
    said = f"{name}{message.removeprefix('Value error, ')}"
    return Trouble(400, "bad_request", " ".join(said.split()))


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    r"""Return JSON: ASCII alone, so that odd bytes of a path are ``\udcXX`` as in all commands."""
    body = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Response(body, status, headers, "application/json")


def failed(trouble: Trouble) -> Response:
    """Return an error in its one shape."""
    error = {"code": trouble.code, "message": trouble.message}
    return answer({"error": error}, trouble.status, trouble.headers)
