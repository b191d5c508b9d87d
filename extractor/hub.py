"""Published weights: found in torch's own cache, or fetched into it."""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlparse

from extractor.errors import WeightsError

LOG = logging.getLogger(__name__)

_TIMEOUT_S = 10


def file_name(url: str) -> str:
    """Return the last part of an address: what torch's cache calls the file."""
    return os.path.basename(urlparse(url).path)


def published(member: Any) -> str:
    """Return the path of published weights in torch's own cache; download them if need be."""
    import torch

    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    name = file_name(member.url)
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        try:
            download(member.url, path)
        except (OSError, HTTPException, ValueError) as error:
            raise WeightsError(
                f"the weights {name} are not here and could not be downloaded ({error}): fetch "
                f"{member.url} elsewhere and put it into {folder}, or use --weights FILE, or "
                "--weights random for a try without real weights"
            ) from error
    return path


def download(url: str, path: str) -> None:
    """Fetch a weights file and check it against the hash in its name, as torch's hub does.

    Raises
    ------
    OSError
        No connection, or the disk is full.
    ValueError
        What came is not what the name promises.
    """
    LOG.info("downloading %s", file_name(url))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    total = hashlib.sha256()
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".part")
    try:
        with (
            os.fdopen(handle, "wb") as out,
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,  # noqa: S310 - torchvision's own
        ):
            while block := answer.read(1 << 20):
                total.update(block)
                out.write(block)
        promised = re.search(r"-([0-9a-f]{8,})\.", file_name(url))
        if promised and not total.hexdigest().startswith(promised.group(1)):
            raise ValueError("the file that came does not have the hash in its name")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
