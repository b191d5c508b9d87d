"""Keep what libraries say about broken files and networks off the terminal.

What the image libraries warn of (large pictures, broken metadata) is decided in
``extractor.decode``; what a network's translation loses is measured (``extractor.engines``).
Between progress bars it would only be noise, and it must not depend on how a process filters
warnings.
"""

import ctypes
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from PIL import _imaging

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr

_LOCK: Final = threading.Lock()
_HUSHED: Final = threading.RLock()
_MODULES: Final = re.compile(r"PIL\.|pillow_heif")
_FILTER: Final = ("ignore", None, Warning, _MODULES, 0)
_TRANSLATORS: Final = ("torch", "onnxscript", "onnx_ir", "onnx", "onnxruntime")


def quieten_pillow() -> None:
    """Ignore the warnings that Pillow issues, even under ``-W error``, where they would raise.

    Called before every decode, since filters come and go; ``warnings.catch_warnings`` is not safe
    among threads.
    """
    if warnings.filters[:1] != [_FILTER]:  # the first that fits decides
        with _LOCK:
            warnings.filterwarnings("ignore", module=_MODULES.pattern)


@cache
def quieten_libtiff() -> None:
    """Stop libtiff from writing to stderr; its errors reach Pillow as return codes all the same.

    Pillow has no call for it, so this one asks the library that Pillow has loaded, where its
    symbols can be found.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.argtypes = [ctypes.c_void_p]
        library.TIFFSetErrorHandler(None)
    except (AttributeError, OSError):  # linked in without symbols, as on Windows
        return


def quieten_translators() -> None:
    """Ignore what torch, its exporter and ONNX say while they translate a network."""
    with _LOCK:
        for name in _TRANSLATORS:
            warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")
        warnings.filterwarnings("ignore", module=r"extractor\.(onnx|compile)_pass$|copyreg$")
    for name in _TRANSLATORS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def hushed(package: str) -> Iterator[None]:
    """Drop what a package says to the root logger inside, which it would set up by that.

    What others say meanwhile goes where it always goes.
    """
    root = logging.getLogger()
    part = f"{os.sep}{package}{os.sep}"

    def others(record: logging.LogRecord) -> bool:
        return part not in record.pathname

    with _HUSHED:
        # Without any handler the first word to the root logger would give it one for good.
        usual = None if root.handlers else logging.lastResort
        root.addFilter(others)
        if usual is not None:
            root.addHandler(usual)
        try:
            yield
        finally:
            root.removeFilter(others)
            if usual is not None:
                root.removeHandler(usual)
