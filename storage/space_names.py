"""What a space is called and how it is told: its model, its layer, and what is unusual in both."""

import os
from collections.abc import Mapping
from typing import Any

WHITENED = "whitened"
"""What spaces are called whose vectors were whitened."""


def recipe_name(request: Mapping[str, Any]) -> str:
    """Return the name that a request gives a space: ``resnet50-maps-gem-448px-3scales``.

    Parameters
    ----------
    request
        ``model`` and what else was asked for: ``layer``, ``pool``, ``input_size``, ``scales``,
        ``relu``, ``whitening``; empty and missing ones are the usual ones.
    """
    pool, side, scales = (request.get(name) for name in ("pool", "input_size", "scales"))
    words = [
        request.get("model"),
        request.get("layer"),
        pool,
        f"{side}px" if side else None,
        f"{len(scales)}scales" if scales else None,
        "norelu" if request.get("relu") is False else None,
        WHITENED if request.get("whitening") else None,
    ]
    return "-".join(word for word in words if word)


def recipe_text(request: Mapping[str, Any]) -> str:
    """Return what a space's name leaves out or cuts short: weights, size, pooling, scales.

    Parameters
    ----------
    request
        As for `recipe_name`, with ``weights``.
    """
    weights = str(request.get("weights") or "DEFAULT")
    pool, side, scales = (request.get(name) for name in ("pool", "input_size", "scales"))
    words = [
        os.path.basename(weights) or weights,
        f"pool {pool}" if pool else None,
        f"{side} px" if side else None,
        f"scales {' '.join(f'{scale:g}' for scale in scales)}" if scales else None,
        "before the ReLU" if request.get("relu") is False else None,
        WHITENED if request.get("whitening") else None,
    ]
    return ", ".join(word for word in words if word)
