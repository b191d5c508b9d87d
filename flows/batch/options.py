"""From what was typed to what a batch run is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from extractor.models import ModelRequest
from flows.errors import FlowError
from flows.job.spaces import request_of
from flows.settings import Settings, load_settings
from storage.sources.opening import SourceOptions
from storage.sources.shard import Shard, parse_shard

SETTINGS = frozenset(Settings.model_fields)
SOURCE = ("labels", "height", "width", "channels", "values", "columns")
"""Options that say what a source does not."""


@dataclass(frozen=True)
class BatchOptions:
    """Where images come from, where the output goes, and how the work is done."""

    source: str
    out: str
    source_options: SourceOptions = field(default_factory=SourceOptions)
    shard: Shard | None = None
    device: str = "auto"
    engine: str = "torch"
    batch_size: int | None = None
    workers: int | None = None
    chunk_size: int | None = None
    max_failures: float | None = None
    """Share of the images that may fail; None for no limit."""
    restart: bool = False
    """Throw away unfinished work."""
    overwrite: bool = False
    """Replace an output that is there."""


@dataclass(frozen=True)
class ExtractOptions:
    """What one run of ``extract`` is asked to do."""

    batch: BatchOptions
    request: ModelRequest
    layers: tuple[str, ...] = ()
    """Several layers in one pass; empty or one for the model's own, or that of the request."""
    normalize: bool = True
    format: str | None = None
    """As ``storage.exports`` names it; None for what the suffix of the output means."""


def batch_options(asked: Mapping[str, Any], settings: Settings) -> BatchOptions:
    """Return what was typed about source, output and work, over the settings.

    Raises
    ------
    SourceError
        ``shard`` names no part.
    """
    given = {name: asked[name] for name in SOURCE if asked.get(name) is not None}
    shard = asked.get("shard")
    return BatchOptions(
        source=asked["source"],
        out=asked["out"],
        source_options=SourceOptions(**given),
        shard=parse_shard(shard) if shard else None,
        device=settings.device,
        engine=settings.engine,
        batch_size=settings.batch_size,
        workers=settings.workers,
        chunk_size=settings.chunk_size,
        max_failures=settings.max_failures,
        restart=asked.get("restart", False),
        overwrite=asked.get("overwrite", False),
    )


def extract_options(asked: Mapping[str, Any]) -> ExtractOptions:
    """Return what was typed for ``extract``, by the options' names, over the settings.

    Raises
    ------
    SettingsError
        A value does not fit.
    SourceError
        ``shard`` names no part.
    FlowError
        A layer is there twice.
    """
    settings = settings_of(asked)
    layers = tuple(asked.get("layers", ())) or tuple(filter(None, [settings.layer]))
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        raise FlowError(f"--layer {twice[0]} is there twice")
    layer = layers[0] if len(layers) == 1 else None
    request = replace(request_of(settings), layer=layer)
    return ExtractOptions(
        batch=batch_options(asked, settings),
        request=request,
        layers=layers,
        normalize=asked.get("normalize", True),
        format=asked.get("format"),
    )


def settings_of(asked: Mapping[str, Any]) -> Settings:
    """Return the settings with what was typed; ``SettingsError`` where a value does not fit."""
    typed = {name: value for name, value in asked.items() if name in SETTINGS}
    return load_settings(typed).settings
