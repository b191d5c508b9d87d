"""Settings: flags win over ``LOOKALIKE_*``, which win over a TOML file, which wins over defaults.

The file is ``LOOKALIKE_SETTINGS`` where that is set, else ``settings.toml`` in the home.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from platformdirs import user_data_dir
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from flows.errors import SettingsError
from storage.home import Home

PREFIX = "LOOKALIKE_"

Scale = Annotated[float, Field(gt=0, le=4, allow_inf_nan=False)]
"""Size of a picture as a part of the network's input."""


class Settings(BaseSettings):
    """Everything that can be set, with its default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    home: str = Field(
        default_factory=lambda: user_data_dir("lookalike", appauthor=False),
        min_length=1,
        description="Directory of the catalog, the vectors and the indexes.",
    )
    catalog_url: str | None = Field(
        None, description="SQLAlchemy URL of a Postgres catalog; without it SQLite in the home."
    )
    model: str = Field(
        "resnet50",
        description="Network of the space that `index` maintains, whichever one is current; "
        "where neither it nor another setting of a space is set, the current one is maintained.",
    )
    layer: str | None = Field(
        None, description="Layer of the space that `index` maintains; None: the model's own."
    )
    weights: str = Field("DEFAULT", description="Weights of the space that `index` maintains.")
    input_size: int | None = Field(
        None, ge=1, description="Side of the network's input, pixels; None: the network's own."
    )
    pool: Literal["avg", "max", "gem"] | None = Field(
        None,
        description="How feature maps become a vector; where a layer is not set either, the last "
        "maps. None: the layer's average.",
    )
    scales: Annotated[tuple[Scale, ...], NoDecode] = Field(
        (), description="Sizes at which maps are looked at and averaged: 1,0.7071,0.5."
    )
    relu: bool = Field(True, description="Whether a layer's ReLU is applied; false: before it.")
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="How the space that `index` maintains stores its vectors."
    )
    device: str = Field(
        "auto",
        description="Where forward passes run: auto (every GPU that is there), cpu, cuda, cuda:1, "
        "or several: cuda:0,cuda:1.",
    )
    engine: Literal["auto", "torch", "compile", "onnx"] = Field(
        "auto",
        description="What runs forward passes on a CPU; auto: torch, or where so much is pending "
        "that making it ready pays for itself, ONNX Runtime (the extra onnx) or compiled code.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Images in one forward pass; None: by the device's memory."
    )
    workers: int | None = Field(
        None, ge=1, description="Threads that read and decode; None: usable cores, at least 2."
    )
    chunk_size: int | None = Field(
        None, ge=1, le=8192, description="Most images of one commit; None: about 30 s of work."
    )
    max_failures: float | None = Field(
        None, ge=0.0, le=1.0, description="Share of a run's images that may fail (else exit 7)."
    )
    runner: Literal["thread", "dask"] = Field(
        "thread", description="What works on chunks: this process, or a Dask cluster by Prefect."
    )
    cluster: str | None = Field(
        None,
        min_length=1,
        description="With the runner dask: a scheduler's address, a number of local workers, or "
        "a YAML file; None: local workers.",
    )
    prefect: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether runs go through Prefect; auto: where its API is configured."
    )

    @field_validator("scales", mode="before")
    @classmethod
    def _parted(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("scales")
    @classmethod
    def _in_order(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        scales = tuple(sorted(set(value), reverse=True))  # their order changes no vector
        return () if scales == (1.0,) else scales

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return os.path.abspath(os.path.expanduser(value))

    def home_(self) -> Home:
        """Return the home with its catalog's URL."""
        return Home(path=self.home, catalog_url=self.catalog_url)


@dataclass(frozen=True)
class LoadedSettings:
    """Settings, and for each one where its value came from."""

    settings: Settings
    origins: dict[str, str]


def load_settings(flags: Mapping[str, Any] | None = None) -> LoadedSettings:
    """Merge flags, environment and TOML file.

    Parameters
    ----------
    flags
        What was typed, by the setting's name; None values count as not typed.

    Raises
    ------
    SettingsError
        Unknown key in the file, unreadable file, or a value that does not fit; with its origin.
    """
    typed = {name: value for name, value in (flags or {}).items() if value is not None}
    environment = EnvSettingsSource(Settings)()
    path = _toml_path(typed, environment)
    sources = (
        (typed, lambda name: "flag"),
        (environment, lambda name: f"{PREFIX}{name.upper()}"),
        (_read_toml(path), lambda name: path),
    )
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    for found, origin in reversed(sources):
        values.update(found)
        origins.update({name: origin(name) for name in found})
    try:
        return LoadedSettings(Settings(**values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise SettingsError(
            f"{name} = {first['input']!r} ({origins.get(name, 'flag')}): {first['msg']}"
        ) from None


def shown(settings: Settings) -> dict[str, Any]:
    """Return the values for display, the catalog's password hidden."""
    values = settings.model_dump()
    if settings.catalog_url:
        values["catalog_url"] = hide_password(settings.catalog_url)
    return values


def hide_password(url: str) -> str:
    """Return the URL with ``***`` in the place of its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def _toml_path(typed: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    named = os.environ.get(f"{PREFIX}SETTINGS")
    if named:
        if not os.path.isfile(named):
            raise SettingsError(f"{PREFIX}SETTINGS names {named!r}, which is not a file")
        return named
    home = typed.get("home") or environment.get("home") or Settings.model_construct().home
    return os.path.join(os.path.abspath(os.path.expanduser(home)), "settings.toml")


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        if not os.access(os.path.dirname(path), os.X_OK):
            return {}  # it is the home that can't be used, and whoever opens the store says so
        raise SettingsError(f"{path}: {error.strerror}; mend or delete it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    unknown = sorted(set(values) - set(Settings.model_fields))
    if unknown:
        known = ", ".join(Settings.model_fields)
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}; the known ones are {known}")
    if "home" in values and not os.environ.get(f"{PREFIX}SETTINGS"):
        raise SettingsError(f"{path}: 'home' can't be set in the home's own file")
    return values
