"""From what was typed, and a file, to the detector that is asked for."""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from extractor.detectors import DetectorRequest
from flows.batch.options import BatchOptions, batch_options
from flows.errors import SettingsError
from flows.settings import load_settings

WORK = ("device", "batch_size", "workers", "chunk_size", "max_failures")


@dataclass(frozen=True)
class RegionsOptions:
    """What one run of ``regions`` is asked to do."""

    batch: BatchOptions
    request: DetectorRequest


def regions_options(asked: Mapping[str, Any]) -> RegionsOptions:
    """Return what was typed for ``regions``, by the options' names, over file and settings.

    Raises
    ------
    SettingsError
        A value does not fit, or the file can't be read.
    SourceError
        ``shard`` names no part.
    """
    stores = {name: asked[name] for name in ("home", "catalog_url") if name in asked}
    settings = load_settings({**stores, **{name: asked.get(name) for name in WORK}}).settings
    said = read_config(asked["config_file"]) if asked.get("config_file") else {}
    typed = {name: asked[name] for name in REQUEST if asked.get(name) is not None}
    values = {**said, **typed}
    request = {name: values.pop(name) for name in REQUEST if name in values}
    return RegionsOptions(
        batch=batch_options(asked, settings),
        request=DetectorRequest(**request, options=values),
    )


def read_config(path: str) -> dict[str, Any]:
    """Read a YAML or TOML file of a detector; `KEYS` says what may stand there.

    Raises
    ------
    SettingsError
        The file can't be read, a key is unknown or a value does not fit.
    """
    said = _parsed(path)
    found: dict[str, Any] = {}
    for key, value in said.items():
        if key not in KEYS:
            raise SettingsError(
                f"{path}: unknown key {key!r}; the known ones are {', '.join(KEYS)}"
            )
        try:
            found[key] = KEYS[key](value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{path}: {key} = {value!r}: {error}") from error
    weights = found.get("weights", "")
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), weights)
    if weights and os.path.isfile(beside):
        found["weights"] = beside
    return found


def _parsed(path: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        with open(path, "rb") as file:
            text = file.read().decode()
        said = tomllib.loads(text) if path.lower().endswith(".toml") else yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"--config-file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        kind = "TOML" if path.lower().endswith(".toml") else "YAML"
        raise SettingsError(f"{path}: no {kind}: {' '.join(str(error).split())}") from error
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise SettingsError(f"{path}: holds no keys; it takes {', '.join(KEYS)}")
    return said


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _whole(value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"not a whole number from {least} on")
    return value


def _classes(value: Any) -> int:
    return _whole(value, 2)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("not a number from 0 to 1")
    return float(value)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise TypeError("not a list")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(name) for name in _listed(value))


def _three(value: Any) -> list[float]:
    numbers = [float(number) for number in _listed(value)]
    if len(numbers) != 3:
        raise ValueError("not three numbers")
    return numbers


def _deviations(value: Any) -> list[float]:
    numbers = _three(value)
    if min(numbers) <= 0:
        raise ValueError("not three numbers above 0")
    return numbers


def _ratios(value: Any) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in _listed(value))
    if min(numbers) <= 0:
        raise ValueError("a ratio is not above 0")
    return numbers


def _sizes(value: Any) -> tuple[tuple[int, ...], ...]:
    sizes = tuple(tuple(_whole(side) for side in _listed(of_map)) for of_map in _listed(value))
    if len({len(of_map) for of_map in sizes}) > 1:
        raise ValueError("each feature map needs as many sizes as the others")
    return sizes


KEYS: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "weights": _text,
    "num_boxes": _whole,
    "min_score": _share,
    "nms": _share,
    "num_classes": _classes,
    "class_names": _names,
    "anchor_sizes": _sizes,
    "aspect_ratios": _ratios,
    "min_size": _whole,
    "max_size": _whole,
    "image_mean": _three,
    "image_std": _deviations,
    "rpn_pre_nms_top_n_test": _whole,
    "rpn_post_nms_top_n_test": _whole,
    "rpn_nms_thresh": _share,
    "rpn_score_thresh": _share,
}
"""What a file of a detector may say, and how each value is checked.

The first nine are the attributes of ``DetectorRequest``; the others are the arguments of
torchvision's ``FasterRCNN``, by its names.
"""
REQUEST = tuple(KEYS)[:9]
