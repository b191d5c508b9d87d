"""open_clip's towers and tokenizers, made by its own code."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from extractor.clip_catalog import package
from extractor.errors import UnknownModel, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

_NO_TEXTS = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
"""The least text tower, where the image tower alone is looked at."""

Tokenizer = Callable[[Sequence[str]], "torch.Tensor"]
"""Texts to the numbers that a text tower reads, shape (N, length), int64."""


def maker(
    full_name: str, side: int | None, pretrained: str | None = None, **options: Any
) -> "Callable[[], nn.Module]":
    """Return a function that builds both towers, for another input size if asked.

    Parameters
    ----------
    pretrained
        A file whose weights open_clip's own code brings into its form.
    options
        As ``open_clip.create_model`` takes them.

    The function raises ``UnknownModel`` where open_clip can't build the network, as without what a
    text tower of Hugging Face's needs.
    """
    open_clip = package()
    from extractor.quiet import hushed

    architecture = full_name.partition(".")[0]
    options |= {"force_image_size": side, "pretrained_text": False, "weights_only": True}

    def make() -> "nn.Module":
        try:
            with hushed("open_clip"):
                network: nn.Module = open_clip.create_model(architecture, pretrained, **options)
        except Exception as error:  # open_clip, timm and transformers raise all kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnknownModel(
                f"open_clip can't build clip:{architecture} ({first[:200]})"
            ) from error
        return network

    return make


def image_maker(architecture: str) -> "Callable[[], nn.Module]":
    """Return a function that builds an architecture with next to no text tower, on no device."""
    return maker(architecture, None, device="meta", text_cfg=dict(_NO_TEXTS))


def tokenizer(full_name: str) -> Tokenizer:
    """Return what makes numbers of texts for an architecture's text tower.

    Raises
    ------
    WeightsError
        It is one of Hugging Face's, and not here.
    """
    open_clip = package()
    from extractor.quiet import hushed

    architecture = full_name.partition(".")[0]
    try:
        with hushed("open_clip"):
            found: Tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # transformers and the hub raise all kinds
        raise WeightsError(
            f"the tokenizer of clip:{architecture} is not here ({_first_line(error)}): "
            "pip install transformers sentencepiece, and let it be downloaded once"
        ) from error
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
