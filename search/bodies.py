"""The bodies of requests, read within bounds: none is larger, or comes slower, than it may."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from search.refusals import Refused

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what clients send

FIELD_BYTES: Final = 1 << 20
"""Of one field of a form, and of all that stands in it beside the picture."""
FIELDS: Final = 1000
SMALL_BYTES: Final = 16 << 10
"""Of a form of a few words, which is read before it is known who sends it."""


@dataclass(frozen=True)
class Limits:
    """What a request may be, and take, at most."""

    picture_bytes: int = 64 << 20
    json_bytes: int = 4 << 20
    seconds: float = 60.0
    """For the body to arrive."""
    silence: float = 10.0
    """Seconds between two of its pieces."""
    pictures: int = 8
    """Pictures in memory at once; more of them wait."""
    answer_seconds: float = 90.0
    """For the answer, once the body is there; a picture is tried twice for 30 s each."""
    waiting: int = 192
    """Questions that wait for a thread."""
    requests: int = 256
    """Requests that are under way, with those whose bodies are still coming."""
    head_seconds: float = 15.0
    """For the first line and the headers to arrive."""
    connections: int = 512
    """Open at once, of which many ask nothing at the moment."""


@dataclass(frozen=True)
class Form:
    """What a form holds: its fields as text, and the picture that was chosen, if one was."""

    fields: dict[str, list[str]]
    picture: bytes | None

    def one(self, name: str) -> str | None:
        """Return the last value of a field, as browsers and `dict` have it; None without one."""
        values = self.fields.get(name)
        return values[-1] if values else None


class _InMemory(MultiPartParser):
    """Keeps files in memory: what is sent is never stored."""

    spool_max_size = 0  # which means: without bound; the bound is that of the body

    def close(self) -> None:
        """Close all files, those as well whose end did not come."""
        for file in self._files_to_close_on_error:
            file.close()


class Reader:
    """Reads requests within bounds.

    Parameters
    ----------
    limits
        The bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pictures = asyncio.Semaphore(limits.pictures)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a place for a picture in memory: around its reading, and its search.

        Raises
        ------
        Refused
            None is free for too long.
        """
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                await self._pictures.acquire()
        except TimeoutError:
            said = "too many pictures wait; ask again later"
            raise Refused(503, "busy", said, retry_after="1") from None
        try:
            yield
        finally:
            self._pictures.release()

    async def json(self, request: Request) -> bytes:
        """Return the body of a request that says it is JSON; `Refused`."""
        if kind_of(request) != "application/json":
            raise Refused(415, "unsupported_body", "send JSON as application/json")
        return await self._whole(request, self._limits.json_bytes)

    async def picture(self, request: Request) -> bytes:
        """Return the body that is the bytes of an image file; `Refused`."""
        return await self._whole(request, self._limits.picture_bytes)

    async def form(self, request: Request) -> Form:
        """Return what an HTML form sent, with at most one file, whose field is ``picture``.

        Raises
        ------
        Refused
            It is no form, or one that can't be read, is too large or comes too slowly.
        """
        kind = kind_of(request)
        if kind == "multipart/form-data":
            _refuse_charset(request)
            stream = self._pieces(request, self._limits.picture_bytes + FIELD_BYTES)
            parser = _InMemory(
                request.headers,
                stream,
                max_files=1,
                max_fields=FIELDS,
                max_part_size=FIELD_BYTES,
            )
            with closing(parser):
                return await self._parsed(parser)
        if kind == "application/x-www-form-urlencoded":
            stream = self._pieces(request, FIELD_BYTES)
            return await self._parsed(FormParser(request.headers, stream, max_fields=FIELDS))
        raise Refused(415, "unsupported_body", "send a form as multipart/form-data")

    async def fields(self, request: Request) -> Form:
        """Return what a small HTML form without a file sent; `Refused`."""
        if kind_of(request) != "application/x-www-form-urlencoded":
            said = "send a form as application/x-www-form-urlencoded"
            raise Refused(415, "unsupported_body", said)
        stream = self._pieces(request, SMALL_BYTES)
        return await self._parsed(FormParser(request.headers, stream, max_fields=FIELDS))

    async def _parsed(self, parser: MultiPartParser | FormParser) -> Form:
        try:
            async with asyncio.timeout(self._limits.seconds):
                form = await parser.parse()
        except MultiPartException as error:
            raise Refused(400, "bad_request", f"the form can't be read: {error.message}") from None
        except TimeoutError:
            raise self._late() from None
        return await self._form(form)

    async def _form(self, form: FormData) -> Form:
        fields: dict[str, list[str]] = {}
        picture = None
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                data = await value.read(self._limits.picture_bytes + 1)
                if len(data) > self._limits.picture_bytes:
                    raise too_large(self._limits.picture_bytes)
                if name == "picture" and data:  # a form without a choice sends an empty file
                    picture = data
            else:
                fields.setdefault(name, []).append(value)
        return Form(fields, picture)

    async def _whole(self, request: Request, most: int) -> bytes:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return b"".join([piece async for piece in self._pieces(request, most)])
        except TimeoutError:
            raise self._late() from None

    async def _pieces(self, request: Request, most: int) -> AsyncGenerator[bytes, None]:
        """Yield a body as it comes; refuse it as soon as it is too large, or says so."""
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > most:
            raise too_large(most)
        size = 0
        stream = request.stream()
        while (piece := await self._next(stream)) is not None:
            size += len(piece)
            if size > most:
                raise too_large(most)
            yield piece

    async def _next(self, stream: AsyncGenerator[bytes, None]) -> bytes | None:
        """Return the next piece of a body, None at its end: who is silent holds up others."""
        async with asyncio.timeout(self._limits.silence):
            return await anext(stream, None)

    def _late(self) -> Refused:
        seconds, silence = self._limits.seconds, self._limits.silence
        late = f"the body did not arrive within {seconds:g} s, or stopped for {silence:g} s"
        return Refused(408, "too_slow", late, connection="close")


def kind_of(request: Request) -> str:
    """Return the type that the body has by its header, in small letters and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _refuse_charset(request: Request) -> None:
    """Refuse a form that is not in UTF-8: some of Python's decoders take minutes for a megabyte."""
    _, options = parse_options_header(request.headers.get("content-type"))
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in ("utf-8", "utf8"):
        raise Refused(415, "unsupported_body", "send the form in UTF-8")


def is_json(request: Request) -> bool:
    """Return whether the body is JSON; False for the bytes of an image file.

    Raises
    ------
    Refused
        The request says neither.
    """
    kind = kind_of(request)
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


def too_large(most: int) -> Refused:
    """Return the refusal of a body of more than so many bytes."""
    said = f"the body has more than {most:,} bytes"
    return Refused(413, "too_large", said, connection="close")
