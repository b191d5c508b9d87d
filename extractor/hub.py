"""Published weights: found in torch's own cache, or fetched into it."""

import contextlib
import hashlib
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from http.client import HTTPException
from typing import Any
from urllib.parse import urlparse

from extractor.errors import WeightsError

Watcher = Callable[[str, int, int | None], None]
"""Told the file's name, the bytes that have come and the size, or None where that is unknown."""

_TIMEOUT_S = 10
_BLOCK_BYTES = 1 << 18

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher`` follow the downloads of this thread; what it raises ends them."""
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


def file_name(url: str) -> str:
    """Return the last part of an address: what torch's cache calls the file."""
    return os.path.basename(urlparse(url).path)


def published(url: str) -> str:
    """Return the path of published weights in torch's own cache; download them if need be."""
    import torch

    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    name = file_name(url)
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        try:
            download(url, path)
        except (OSError, HTTPException, ValueError) as error:
            raise WeightsError(
                f"the weights {name} are not here and could not be downloaded ({error}): fetch "
                f"{url} elsewhere and put it into {folder}, or use --weights FILE, or "
                "--weights random for a try without real weights"
            ) from error
    return path


def from_hugging_face(repository: str, names: Sequence[str]) -> str:
    """Return the path of the first of some files in Hugging Face's own cache, or fetch it there.

    Parameters
    ----------
    repository
        ``owner/name``, or ``owner/name@revision``.
    names
        What the file may be called, the best first.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where, _, revision = repository.partition("@")
    at = revision or None
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(where, name, revision=at)
        if isinstance(found, str):
            return found
    url = f"{huggingface_hub.constants.ENDPOINT}/{where}"
    try:
        _ask(url)  # Hugging Face's own code goes on trying for a minute
        for name in names:
            try:
                return huggingface_hub.hf_hub_download(
                    where, name, revision=at, tqdm_class=_told(name)
                )
            except LocalEntryNotFoundError:  # no connection
                raise
            except EntryNotFoundError:
                continue
        raise ValueError(f"there is no {' or '.join(names)}")
    except (OSError, HTTPException, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"the weights {where} are not here and could not be downloaded ({first}): fetch "
            f"{names[0]} from {url} elsewhere and use --weights FILE, or use --weights random for "
            "a try without real weights"
        ) from error


def _ask(url: str) -> None:
    """Raise ``OSError`` where there is no way to an address; any answer is one."""
    with contextlib.suppress(urllib.error.HTTPError):
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - huggingface_hub's own
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()  # noqa: S310


def _told(name: str) -> Any:
    """Return a progress bar that shows nothing and tells who follows the downloads."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    watcher = _watcher.get() or _nobody

    class Told(tqdm):  # type: ignore[misc]
        def display(self, *_args: Any, **_options: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            watcher(name, int(self.n), int(self.total) if self.total else None)

    return Told


def download(url: str, path: str) -> None:
    """Fetch a weights file and check it against the hash in its name, as torch's hub does.

    Who has asked to be told of it, by `watched`, is.

    Raises
    ------
    OSError
        No connection, or the disk is full.
    ValueError
        What came is not what the name promises.
    """
    name, watcher = file_name(url), _watcher.get() or _nobody
    os.makedirs(os.path.dirname(path), exist_ok=True)
    total = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
    try:
        with (
            os.fdopen(handle, "wb") as out,
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,  # noqa: S310 - torchvision's own
        ):
            size = int(answer.headers.get("Content-Length", 0)) or None
            watcher(name, 0, size)
            while block := answer.read1(_BLOCK_BYTES):  # waits for no more than comes at once
                total.update(block)
                out.write(block)
                watcher(name, out.tell(), size)
        promised = re.search(r"-([0-9a-f]{8,})\.", name)
        if promised and not total.hexdigest().startswith(promised.group(1)):
            raise ValueError("the file that came does not have the hash in its name")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _nobody(_name: str, _done: int, _size: int | None) -> None:
    """Let a download go on that nobody follows."""
