"""What can go wrong before a picture is read.  Each class has its exit code and says what to do.

::

    ExtractorError                2  vectors can't be made as asked
    ├── UnknownModel              2  no network of that name
    ├── UnknownLayer              2  the network has no layer of that name
    ├── WeightsError              2  the weights can't be had or don't fit the network
    ├── InputSizeError            2  the network takes no pictures of that size
    ├── WhiteningError            2  a whitening can't be learnt or read, or fits no such vectors
    ├── DeviceError               2  the device is unknown or not there
    └── EngineError               2  the engine for forward passes is not there, or not for this

A bad picture is not among them: it is data, and ``extractor.loader`` reports it as a ``Failure``.
"""


class ExtractorError(Exception):
    """Vectors can't be made as asked.  The message is one line that says what to do."""

    exit_code = 2


class UnknownModel(ExtractorError):
    """No network has that name; the message lists the nearest ones."""


class UnknownLayer(ExtractorError):
    """The network has no layer of that name; the message lists the right ones."""


class WeightsError(ExtractorError):
    """The weights can't be had or don't fit the network; the message names file and keys."""


class InputSizeError(ExtractorError):
    """The network takes no pictures of that size; the message says which it takes."""


class WhiteningError(ExtractorError):
    """A whitening can't be learnt or read, or is for other vectors; the message says which."""


class DeviceError(ExtractorError):
    """The device is unknown, or this machine has none of its kind."""


class EngineError(ExtractorError):
    """The engine that was asked for is not there, or does not take the network or the device."""
