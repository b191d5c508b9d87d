"""From words to a vector of a space that an image-and-text network has made."""

import importlib.util
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from search.errors import NoWords, QueryError
from search.garbage import bring
from search.query import check_same
from storage.spaces import SpaceInfo

if TYPE_CHECKING:
    from extractor.towers import TextTower

FloatArray = npt.NDArray[np.float32]

_PREFIX = "clip:"
_PROJECTION = {"node": "logits", "pooling": "none"}
"""The layer that is compared with text, as a space's spec says it."""
MOST_CHARACTERS: Final = 1000
"""A longer text is refused: of a long word it takes the tokenizer the square of its length."""
_REPEATED = 60  # characters of a text, in a message


def answers_words(space: SpaceInfo) -> bool:
    """Whether a space can be asked with words here.  Loads no torch."""
    return not why_not(space)


def why_not(space: SpaceInfo) -> str:
    """Return why a space can't be asked with words here, and how to get one that can.

    One line; nothing where it can.  Loads no torch.
    """
    get = "" if _installed() else "pip install 'lookalike[clip]', then "
    make = (
        f"{get}make one that does with `lookalike backfill --model clip:ViT-B-32`, and go over to "
        "it with `lookalike spaces use`"
    )
    spec = space.spec
    no = f"the space {space.name!r} answers no words, since"
    if not str(spec.get("architecture", "")).startswith(_PREFIX):
        return f"{no} its network knows pictures alone: {make}"
    usual = all(spec.get(name) == value for name, value in _PROJECTION.items())
    if not usual or spec.get("whitening") or spec.get("scales"):
        return f"{no} only what the network gives at its end, as it is, compares with them: {make}"
    if get:
        return f"words in the space {space.name!r} need open_clip: pip install 'lookalike[clip]'"
    return ""


class Words:
    """Makes vectors of words, to be compared with those of a space's pictures.

    Loads torch, and the text tower of the space's network, on the first words.  Threads may share
    it; they take turns.

    Parameters
    ----------
    space
        The space that the vectors are compared in.
    device
        As ``extractor.engine.Engine`` takes it.
    """

    def __init__(self, space: SpaceInfo, device: str = "auto") -> None:
        self.space = space
        self.device = device
        self._tower: TextTower | None = None
        self._turn = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the text tower was needed so far."""
        return self._tower is not None

    def open(self) -> None:
        """Open the text tower now, so that the first words do not wait for it; raises as `of`."""
        with self._turn:
            self._open()

    def of(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector for each text.

        What is longer than the tower reads (77 tokens mostly) is cut off there.

        Returns
        -------
        array
            Shape ``(n, d)``, float32, unit length.

        Raises
        ------
        NoWords
            The space can't be asked with words here; says how to get one that can.
        SpaceError
            The space's model is no longer what it was.
        QueryError
            A text is blank or too long, or the network gives no finite vector for it.
        """
        if not texts:
            return np.empty((0, self.space.dim), np.float32)
        texts = [_checked(text) for text in texts]
        from extractor.gate import passing
        from extractor.unit import normalise

        with self._turn:
            tower = self._open()
            with passing():
                features = _run(tower, texts)
        vectors, faults = normalise(features)
        if faults:
            text = texts[min(faults)][:_REPEATED]
            raise QueryError(f"{text!r}: the network gives no finite vector for these words")
        return vectors

    def _open(self) -> "TextTower":
        if self._tower is None:
            self._tower = open_tower(self.space, self.device)
        return self._tower


def open_tower(space: SpaceInfo, device: str = "auto") -> "TextTower":
    """Open the text tower of the network that made a space.  Imports torch.

    Raises
    ------
    NoWords, SpaceError
        As `Words.of`.
    """
    why = why_not(space)
    if why:
        raise NoWords(why)
    bring("torch")
    from extractor import clip_networks, weights
    from extractor.device import choose_device
    from extractor.errors import WeightsError
    from extractor.models import ModelRequest

    request = ModelRequest(**space.request)
    name = request.model[len(_PREFIX) :]
    network = clip_networks.sketch(name, request.weights, request.input_size).loaded()
    found = {"architecture": network.name, "weights_digest": weights.digest(network.network)}
    check_same(space, {**space.spec, **found})
    try:
        return network.text_tower().to(choose_device(device))
    except WeightsError as error:
        raise NoWords(str(error)) from error


def _checked(text: str) -> str:
    """Return a text as the tokenizer takes it."""
    if not text.strip():
        raise QueryError("there are no words to search for")
    if len(text) > MOST_CHARACTERS:
        raise QueryError(
            f"these words are {len(text):,} characters, and at most {MOST_CHARACTERS:,} are taken"
        )
    return text.encode("utf-8", "replace").decode()


def _run(tower: "TextTower", texts: Sequence[str]) -> FloatArray:
    """Return the features of texts, shape ``(n, d)``, float32, not of unit length."""
    import torch

    with torch.inference_mode():
        features: torch.Tensor = tower(texts)
    array: FloatArray = features.float().cpu().numpy()
    return array


def _installed() -> bool:
    return importlib.util.find_spec("open_clip") is not None
