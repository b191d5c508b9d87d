"""Weights: published ones, a file's, or seeded random ones, and the digest that tells them apart.

Nothing here unpickles code: torch files are read with ``weights_only=True``.
"""

import argparse
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from extractor import hub
from extractor.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, Lightning...
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\.")  # heads that only training uses
_COUNTER = "num_batches_tracked"
# The published DenseNet files still have the key names of 2017 (torchvision/models/densenet.py).
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
_SHOWN = 5
_DRAWING = threading.RLock()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weights of a network of torchvision come from.

    Attributes
    ----------
    preset
        Member of the architecture's ``WeightsEnum`` whose preprocessing and input size apply.
    path
        A weights file, if they come from one.
    seed
        The seed, if they are random.
    """

    preset: Any
    path: str | None = None
    seed: int | None = None

    @property
    def published(self) -> bool:
        """Whether they are neither a file's nor random."""
        return self.path is None and self.seed is None


def weights_file(text: str) -> str | None:
    """Return the absolute path if ``--weights`` names a file, else None.  Needs no torch."""
    if text.lower().endswith(_SUFFIXES) or os.sep in text or os.path.isfile(text):
        return os.path.abspath(os.path.expanduser(text))
    return None


def random_seed(text: str) -> int | None:
    """Return the seed if ``--weights`` asks for ``random[:SEED]``, else None."""
    kind, _, seed = text.partition(":")
    return int(seed or 0) if kind.lower() == "random" and (not seed or seed.isdecimal()) else None


def parse(text: str, architecture: str) -> Origin:
    """Understand ``DEFAULT | IMAGENET1K_V1 | ... | FILE | random[:SEED]``.

    A file takes the preprocessing of the published weights whose file name it bears, else that of
    ``IMAGENET1K_V1``, the field's standard; so do random weights.

    Raises
    ------
    WeightsError
        Neither a name, nor a file, nor ``random``; lists what there is.
    """
    from torchvision.models import get_model_weights

    enum = get_model_weights(architecture)
    members = dict(enum.__members__)
    standard = members.get("IMAGENET1K_V1", enum.DEFAULT)
    path = weights_file(text)
    if path is not None:
        named = {hub.file_name(member.url): member for member in enum}
        return Origin(named.get(os.path.basename(path), standard), path=path)
    seed = random_seed(text)
    if seed is not None:
        return Origin(standard, seed=seed)
    member = members.get(text.rpartition(".")[2].upper())
    if member is None:
        raise WeightsError(
            f"{architecture} has no weights {text!r}: use {', '.join(members)}, "
            "a .pth, .pt or .safetensors file, or random[:SEED]"
        )
    return Origin(member)


def read(origin: Origin) -> "dict[str, torch.Tensor]":
    """Read the state dict of a file or of published weights, its keys as torchvision names them.

    Raises
    ------
    WeightsError
        The file is missing, broken or no state dict, or the weights can't be downloaded.
    """
    return read_file(origin.path or hub.published(origin.preset.url))


def read_file(path: str) -> "dict[str, torch.Tensor]":
    """Read the state dict of a file, without what training scripts wrap around it.

    Raises
    ------
    WeightsError
        The file is missing, broken or no state dict.
    """
    return _state_dict(_load(path), path)


def build(make: "Callable[[], nn.Module]", seed: int) -> "nn.Module":
    """Return ``make()`` with weights drawn from ``seed``; torch's own generator stays as it was."""
    import torch

    # All threads draw from torch's one generator.
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network: nn.Module = make()
    return network


def assign(network: "nn.Module", state: "Mapping[str, torch.Tensor]", name: str) -> None:
    """Give a skeleton the values of ``state``, copied to float32.

    Raises
    ------
    WeightsError
        Keys are missing or too many, or a shape differs; names the first of them.
    """
    import torch

    wanted = network.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith(_COUNTER)]
    extra = [k for k in state if k not in wanted and not k.endswith(_COUNTER)]
    extra = [k for k in extra if not _AUXILIARY.match(k)]
    odd = [
        f"{k} is {list(state[k].shape)}, not {list(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    lists = {"missing": missing, "unexpected": extra, "of another shape": odd}
    if any(lists.values()):
        said = "; ".join(f"{what}: {_first(keys)}" for what, keys in lists.items() if keys)
        raise WeightsError(f"the weights do not fit {name}: {said}")
    values = {}
    for key, like in wanted.items():
        value = state.get(key)
        kind = torch.float32 if like.is_floating_point() else like.dtype
        values[key] = (
            torch.zeros(like.shape, dtype=kind)
            if value is None
            else value.detach().to(kind, copy=True)
        )
    network.load_state_dict(values, assign=True)


def digest(network: "nn.Module") -> str:
    """Return the SHA-256 of a network's values, whatever precision the file had: 64 hex digits.

    Sorted keys, each with its shape; floats as little-endian float32, integers as int64.
    """
    import torch

    total = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if key.endswith(_COUNTER):
            continue
        kind, order = (torch.float32, "<f4") if value.is_floating_point() else (torch.int64, "<i8")
        array = value.detach().to(kind).contiguous().numpy().astype(order, copy=False)
        total.update(f"{key}\0{order}\0{list(array.shape)}\0".encode())
        total.update(array.data)
    return total.hexdigest()


def _load(path: str) -> Any:
    """Read a weights file, memory-mapped where its format allows."""
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        return _torch_load(path)
    except Exception as error:  # a foreign file can make the readers raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # torch's text advises to run its code
            first = "it holds other objects than weights, or is none"
        raise WeightsError(f"{path}: this is no readable weights file ({first[:200]})") from error


def _torch_load(path: str) -> Any:
    import torch

    # torchvision's own training scripts keep their arguments in the file: a Namespace runs no code.
    with torch.serialization.safe_globals([argparse.Namespace]):
        mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 can't be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _state_dict(loaded: Any, path: str) -> "dict[str, torch.Tensor]":
    """Take off the wrappers and prefixes of training scripts."""
    import torch

    while isinstance(loaded, Mapping):
        inner = next((k for k in _WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path}: holds no state dict")
    state = {str(k): v for k, v in loaded.items()}
    foreign = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if foreign:
        raise WeightsError(f"{path}: holds no state dict (not tensors: {_first(foreign)})")
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return {_OLD_DENSENET.sub(r"\1\2", k): v for k, v in state.items()}


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
