"""Networks of one's own: ``package.module:function``, which returns a network."""

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from extractor import sizes, weights
from extractor.errors import UnknownLayer, UnknownModel, WeightsError
from extractor.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn

    from extractor.hooked import Hooked
    from extractor.layers import Layer

_digests: dict[str, str] = {}  # of the files as they were when this process read them
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """What a function of one's own made.

    Attributes
    ----------
    path
        A file whose weights replace those that the function gave.
    """

    name: str
    code: str
    preprocess: Preprocess
    hooked: "Hooked"
    path: str | None

    @property
    def network(self) -> "nn.Module":
        """The network, with the weights that it has so far."""
        return self.hooked.network

    def layer(self, name: str | None, *, relu: bool, pool: str | None) -> "Layer":
        """Find a layer by its name; None is what the last linear module reads."""
        return self.hooked.layer(name, relu=relu, pool=pool)

    def loaded(self) -> Self:
        """Return the network with the weights of the file, if there is one."""
        if self.path is not None:
            weights.assign(self.network, weights.read_file(self.path), self.name)
        return replace(self, hooked=self.hooked.on(self.network.eval()))

    def try_scales(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> None:
        """Raise ``UnknownLayer`` where the network takes no pictures of these scales."""
        self.hooked.try_scales(chosen, scales)

    def cut(self, chosen: "Sequence[Layer]", scales: Sequence[float]) -> "nn.Module":
        """Return a module that gives the layers' features side by side."""
        return self.hooked.cut(chosen, scales)


def is_own(model: str) -> bool:
    """Whether a name is ``package.module:function``."""
    others = model.lower().startswith(("timm:", "clip:"))
    return not others and _NAME.fullmatch(model) is not None


def sketch(model: str, weights_text: str, side: int | None) -> OwnNetwork:
    """Call the function that makes the network.

    The weights are those that it gives; what it draws by chance is drawn from seed 0, or from that
    of ``random:SEED``.

    Raises
    ------
    UnknownModel
        Module or function is not there, fails, or makes something else.
    WeightsError, InputSizeError
        There are no such weights, or the network can't take pictures of that size.
    """
    path = weights.weights_file(weights_text)
    seed = weights.random_seed(weights_text)
    if path is None and seed is None and weights_text.upper() != "DEFAULT":
        raise WeightsError(
            f"{model} has no weights {weights_text!r}: use DEFAULT (those that the function gives),"
            " a .pth, .pt or .safetensors file, or random[:SEED]"
        )
    with _current_folder():
        network, preprocess, code = _made(model, seed or 0)
    hooked = _probed(model, network, preprocess.crop_size)
    if side is not None and (side, side) != preprocess.crop_size:
        usual = preprocess.crop_size[0]
        sizes.check(model, side, usual, lambda asked: _probed(model, network, (asked, asked)))
        hooked = _probed(model, network, (side, side))
        preprocess = resized(preprocess, side)
    return OwnNetwork(model, code, preprocess, hooked, path)


def resized(preprocess: Preprocess, side: int) -> Preprocess:
    """Return a preprocessing for another input size, its proportions kept."""
    height, width = preprocess.crop_size
    resize = preprocess.resize
    if isinstance(resize, int):
        return replace(preprocess, resize=round(side * resize / min(height, width)), crop=side)
    scaled = (round(side * resize[0] / height), round(side * resize[1] / width))
    return replace(preprocess, resize=scaled, crop=side)


def signature(model: str) -> list[Any] | None:
    """Return what tells the file that makes the network from what it was before, or None.

    Imports nothing of it, but for the packages around it.
    """
    with _current_folder():
        path = _file(model.partition(":")[0])
    if path is None or not os.path.exists(path):
        return None
    stat = os.stat(path)
    return [path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def file_digest(model: str) -> str | None:
    """Return the digest of the file that makes the network, None where there is none.

    Nothing of it is run.
    """
    with _current_folder():
        path = _file(model.partition(":")[0])
    return _digest(path) if path is not None and os.path.isfile(path) else None


def _made(model: str, seed: int) -> "tuple[nn.Module, Preprocess, str]":
    """Import and call; every trouble is said in one line."""
    from torch import nn

    module_name, _, function_name = model.partition(":")
    try:
        module, code = _module(module_name)
        function = getattr(module, function_name, None)
        if not callable(function):
            raise UnknownModel(f"{model}: {module_name} has no function {function_name!r}")
        made = weights.build(function, seed)
        network, values = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
        preprocess = _preprocess(values)
    except UnknownModel:
        raise
    except (Exception, SystemExit) as error:  # foreign code can raise anything
        first = (str(error).strip() or "no message").splitlines()[0]
        raise UnknownModel(f"{model}: {type(error).__name__}: {first[:200]}") from error
    if not isinstance(network, nn.Module):
        raise UnknownModel(
            f"{model} returns {type(network).__name__}: it has to return a torch.nn.Module, or "
            "that and a dict of resize, crop, interpolation, mean, std"
        )
    return network.eval(), preprocess, code


def _module(name: str) -> tuple[ModuleType, str]:
    """Return a module as its file is now, and the file's digest."""
    module = importlib.import_module(name)
    code = _digest(module.__file__)
    if _digests.setdefault(name, code) != code:
        module = importlib.reload(module)
        _digests[name] = code
    return module, code


def _preprocess(values: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing that a function's dict describes."""
    tuples: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return Preprocess(**tuples)


def _probed(model: str, network: "nn.Module", size: tuple[int, int]) -> "Hooked":
    from extractor import hooked

    try:
        return hooked.probe(network, size)
    except Exception as error:  # foreign code can raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnknownLayer(
            f"{model} does not run with pictures of {size[0]}x{size[1]}: {first[:200]}"
        ) from error


def _digest(path: str | None) -> str:
    if path is None:
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(module: str) -> str | None:
    """Return the file of a module, found without running it."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        name = top
        for part in below:
            name = f"{name}.{part}"
            folders = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(name, folders) if folders else None
    except (ImportError, ValueError, KeyError):
        return None
    return spec.origin if spec else None


@contextmanager
def _current_folder() -> Iterator[None]:
    """Look for modules in the current folder first."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
