"""A decoder, for pictures that begin with ``POISON``, that does to its process what they say."""

import ctypes
import os
import re
import signal
import threading
import time

import numpy as np
from PIL import Image, ImageFile

from extractor import decode

EATEN = 1536 * 2**20
"""Bytes after which the system would end the process that eats them."""
decoded = []
"""What this process has decoded so far."""
released = threading.Event()
"""Ends the hanging of this process's threads, once the test is over."""


def poison(what, n=0):
    return b"POISON %s %d" % (what.encode(), n)


def crash():
    ctypes.string_at(0)


def hang():
    released.wait()


def nap():
    time.sleep(0.4)


def doze():
    time.sleep(1.6)


def eat():
    eaten = []
    while len(eaten) << 26 < EATEN:
        eaten.append(np.empty(1 << 26, np.uint8))
    die()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def crash_unless_alone():
    if decoded:
        crash()


DOES = {
    "crash": crash,
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "hang": hang,
    "nap": nap,
    "doze": doze,
}
DOES |= {"memory": eat, "die": die, "alone": crash_unless_alone}


class Poison(ImageFile.ImageFile):
    format = "POISON"

    def _open(self):
        self._mode, self._size, self.tile = "RGB", (40, 30), []
        _, what, n = self.fp.read().split()
        self.what, self.n = what.decode(), int(n)
        self.made = False

    def load(self):
        if self.made:
            return self.im.pixel_access(self.readonly)
        DOES.get(self.what, lambda: None)()
        decoded.append(self.what)
        self.made = True
        self.im = Image.new("RGB", self._size, (self.n % 256, self.n // 256, 77)).im
        return self.im.pixel_access(self.readonly)


def install():
    """Put the decoder beside the real ones."""
    if any(name == "POISON" for _, name, _ in decode._FORMATS):
        return
    Image.register_open("POISON", Poison, lambda head: head.startswith(b"POISON"))
    known = (re.compile(rb"POISON"), "POISON", __name__)
    decode._FORMATS = (*decode._FORMATS, known)
