"""From a picture that was never indexed to a vector of a space."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search.errors import QueryError
from search.garbage import bring
from storage.errors import SpaceError
from storage.home import Home
from storage.spaces import SpaceInfo, fingerprint
from storage.whitenings import resolved

if TYPE_CHECKING:
    from extractor.engine import Engine
    from extractor.models import Model

FloatArray = npt.NDArray[np.float32]

ROUND = 64
"""Pictures handed to the engine at once; it makes batches of its own out of them."""


class Vectors:
    """Makes vectors as a space's own were made.  Loads torch on the first picture.

    Threads may share it; they take turns, since one forward pass keeps the device busy.

    Parameters
    ----------
    space
        The space that the vectors are compared in.
    device
        As ``extractor.engine.Engine`` takes it.
    home
        Where the space lies; a space that is whitened has a file there.
    """

    def __init__(self, space: SpaceInfo, device: str = "auto", home: Home | None = None) -> None:
        self.space = space
        self.home = home
        self.device = device
        self._engine: Engine | None = None
        self._turn = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the model was needed so far."""
        return self._engine is not None

    def open(self) -> None:
        """Open the model now, so that the first picture does not wait for it; raises as `of`."""
        with self._turn:
            self._open()

    def of(self, pixels: Sequence[npt.NDArray[np.uint8]], names: Sequence[str]) -> FloatArray:
        """Return one vector for each picture.

        Parameters
        ----------
        pixels
            Each of shape ``(3, H, W)``, uint8, as the space's preprocessing gives it.
        names
            What to call each picture in a message.

        Returns
        -------
        array
            Shape ``(n, d)``, float32, unit length.

        Raises
        ------
        SpaceError
            The space's model is no longer what it was.
        QueryError
            The network gives no finite vector for a picture.
        """
        with self._turn:
            engine = self._open()
            rounds = [
                engine.forward(np.stack(pixels[start : start + ROUND]))
                for start in range(0, len(pixels), ROUND)
            ]
        vectors: FloatArray = np.concatenate(rounds)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise QueryError(f"{names[bad[0]]}: the network gives no finite vector for this image")
        return vectors

    def _open(self) -> "Engine":
        if self._engine is None:
            bring("torch")
            self._engine = open_engine(self.space, self.device, home=self.home)
        return self._engine


def open_engine(
    space: SpaceInfo,
    device: str = "auto",
    batch_size: int | None = None,
    model: "Model | None" = None,
    home: Home | None = None,
    engine: str = "torch",
) -> "Engine":
    """Open the model that made a space (or take ``model``) for forward passes.  Imports torch.

    The others are as ``extractor.engine.Engine`` takes them.

    Raises
    ------
    SpaceError
        The space's model is no longer what it was.
    """
    from extractor.engine import Engine

    model = model or model_of(space, home)
    check_same(space, model.spec.to_json())
    return Engine(model, device=device, batch_size=batch_size, engine=engine)


def model_of(space: SpaceInfo, home: Home | None) -> "Model":
    """Open the model that made a space; ``home`` is where the space lies.  Imports torch."""
    from extractor.models import ModelRequest, open_model

    check_code(space)
    request = dict(space.request) if home is None else resolved(home, space.request)
    return open_model(ModelRequest(**request))


def check_code(space: SpaceInfo) -> None:
    """Refuse a network of one's own whose file is another one, before any of it runs.

    Raises
    ------
    SpaceError
        The module of that name, in the current folder perhaps, is not the space's.
    """
    from extractor.own_networks import file_digest

    made, name = space.spec.get("code"), str(space.request.get("model"))
    if made and file_digest(name) not in (None, made):
        raise SpaceError(
            f"the space {space.name!r} was made by another file than what {name} is now: run where "
            "that file is found first, or make a new space with `lookalike index --model`"
        )


def check_same(space: SpaceInfo, spec: Mapping[str, Any]) -> None:
    """Refuse a model whose vectors can't be compared with the space's.

    Raises
    ------
    SpaceError
        Names both fingerprints and what differs.
    """
    now = {**spec, "dtype": space.dtype}
    found = fingerprint(now)
    if found == space.fingerprint:
        return
    differing = sorted(
        key for key in now.keys() | space.spec.keys() if now.get(key) != space.spec.get(key)
    )
    raise SpaceError(
        f"the space {space.name!r} has the fingerprint {space.fingerprint[:16]}, its model now "
        f"gives {found[:16]} ({', '.join(differing)} differ); bring back the weights that it was "
        "made with, or make a new space with `lookalike index --model`"
    )
