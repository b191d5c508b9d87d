"""A server, and clients that ask it at once in one thread, each on a connection that it keeps.

A client asks, waits for the whole answer, and asks again.  What comes is kept as it came and looked
at afterwards, so that the clients take little of a machine that the server needs.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from storage.home import Home

PATIENCE_S = 60.0
"""For one answer."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one question, by its number; times are those of ``time.monotonic``."""

    question: int
    asked_s: float
    answered_s: float
    status: int
    """Of HTTP; 0 where no answer came, and then ``body`` says why."""
    body: bytes

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.answered_s - self.asked_s


@contextlib.contextmanager
def serving(home: Home, *words: str) -> Iterator[str]:
    """Run ``lookalike serve`` in a process of its own; yield its URL.

    It must say nothing on stderr, and end with exit code 0 when it is told to.
    """
    words = words or ("-m", "flows.cli")
    command = [sys.executable, *words, "serve", "--home", home.path, "--port", "0"]
    env = dict(os.environ)
    if home.catalog_url:
        env["LOOKALIKE_CATALOG_URL"] = home.catalog_url
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=said,
        ) as process:
            try:
                url = (process.stdout or said).readline().strip()
                if not url:
                    raise SystemExit(f"the server did not start: {_said(said)}")
                yield url
                process.terminate()
                code = process.wait(60)
            finally:
                process.kill()
        if code or _said(said):
            raise SystemExit(f"the server ended with exit code {code}: {_said(said)}")


def _said(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def request(url: str, value: Any, path: str = "/api/search") -> bytes:
    """Return all bytes of a request that posts a value as JSON."""
    body = json.dumps(value).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask_at_once(
    url: str, requests: Sequence[bytes], *, clients: int, seconds: float
) -> list[Answer]:
    """Let so many clients ask for so long, each in an order of its own; return what came."""
    return asyncio.run(_ask_at_once(url, requests, clients, seconds))


async def _ask_at_once(
    url: str, requests: Sequence[bytes], clients: int, seconds: float
) -> list[Answer]:
    answers: list[Answer] = []
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for seed in range(clients):
            group.create_task(_Client(url, requests, seed).ask_until(end, answers))
    return answers


class _Client:
    def __init__(self, url: str, requests: Sequence[bytes], seed: int) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname, place.port
        self._requests = requests
        self._random = random.Random(seed)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask_until(self, end: float, answers: list[Answer]) -> None:
        try:
            while (asked := time.monotonic()) < end:
                number = self._random.randrange(len(self._requests))
                status, body = await self._ask(self._requests[number])
                answers.append(Answer(number, asked, time.monotonic(), status, body))
        finally:
            self._hang_up()

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._exchange(request)
        except (OSError, EOFError, ValueError) as error:
            self._hang_up()
            return 0, f"{type(error).__name__}: {error}".encode()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None:
            raise ValueError(f"an answer without its length: {head!r}")
        return int(head[9:12]), await reader.readexactly(int(length[1]))

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
