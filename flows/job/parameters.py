"""From what was asked, on the command line or as the flow's parameters, to the job's options."""

import os
from collections.abc import Mapping
from typing import Any

from flows.errors import FlowError
from flows.job.dates import moment_ns, moment_text
from flows.job.loop import IndexOptions
from flows.job.spaces import RECIPE, SpaceChoice
from flows.settings import LoadedSettings, Settings, load_settings
from storage.pending import Scope

SETTINGS = frozenset(Settings.model_fields)


def safe(text: str) -> str:
    r"""Return text that can be sent: the odd bytes of a file name become ``\xff``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def options_for(asked: Mapping[str, Any], kind: str = "index") -> tuple[IndexOptions, str]:
    """Return the options of a run, what was asked over the settings, and the setting ``prefect``.

    ``asked`` holds settings, fields of ``IndexOptions`` and conditions of a back-fill by their
    names; what was not asked for is not in it, or None.  A recipe that was asked for does not mix
    with the settings' one; a space that was asked for goes by its own, and by the settings' one
    only if it is new.  Without any the space that is current decides.

    Parameters
    ----------
    asked
        What was typed.
    kind
        ``index``, or ``backfill``: work on what the catalog knows, without walking the roots.

    Raises
    ------
    FlowError
        A value does not fit, or not to another.
    """
    asked = {name: value for name, value in asked.items() if value not in (None, "", (), [])}
    flags = {name: value for name, value in asked.items() if name in SETTINGS}
    loaded = load_settings(flags)
    settings = loaded.settings
    options = IndexOptions(
        home=settings.home,
        catalog_url=settings.catalog_url,
        roots=tuple(os.path.abspath(root) for root in asked.get("roots", ())),
        choice=_choice(asked, loaded),
        excludes=tuple(asked.get("excludes", ())),
        confirm_missing=asked.get("confirm_missing", False),
        device=settings.device,
        engine=settings.engine,
        batch_size=settings.batch_size,
        workers=settings.workers,
        chunk_size=settings.chunk_size,
        index_spec=asked.get("index_spec"),
        max_failures=settings.max_failures,
        kind=kind,
        only=_only(asked),
        runner=settings.runner,
        cluster=_cluster(asked, settings),
    )
    return options, settings.prefect


def _only(asked: Mapping[str, Any]) -> Scope:
    since, until = (
        moment_ns(asked[name]) if name in asked else None for name in ("since", "until")
    )
    if since is not None and until is not None and since >= until:
        raise FlowError(
            f"no file is modified since {asked['since']} and before {asked['until']}: "
            "since has to be earlier than until"
        )
    return Scope(None, tuple(asked.get("globs", ())), since, until, bool(asked.get("failed")))


def _cluster(asked: Mapping[str, Any], settings: Settings) -> str | None:
    if settings.runner == "dask":
        return settings.cluster
    if "cluster" in asked:
        raise FlowError("a cluster is for the runner dask: add --runner dask")
    return None


def _choice(asked: Mapping[str, Any], loaded: LoadedSettings) -> SpaceChoice:
    typed = {name: getattr(loaded.settings, name) for name in RECIPE if name in asked}
    told = {
        name: getattr(loaded.settings, name) for name in RECIPE if loaded.origins[name] != "default"
    }
    space = asked.get("space")
    if typed or not told or space is None:
        return SpaceChoice(space=space, **(typed or told))
    return SpaceChoice(space=space, otherwise=SpaceChoice(**told))


def _shown(value: Any) -> Any:
    """Return a value of a recipe as JSON knows it."""
    if isinstance(value, str):
        return safe(value) or None
    return list(value) or None if isinstance(value, tuple) else value


def parameters_of(options: IndexOptions) -> dict[str, Any]:
    """Return the flow's parameters that show what was asked for; no URL, which holds a password."""
    choice = {name: getattr(options.choice, name) for name in ("space", *RECIPE)}
    shared = {
        **{name: _shown(value) for name, value in choice.items()},
        "roots": [safe(root) for root in options.roots] or None,
        "device": options.device,
        "engine": options.engine,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "chunk_size": options.chunk_size,
        "max_failures": options.max_failures,
        "runner": options.runner,
        "cluster": safe(options.cluster) if options.cluster else None,
        "home": safe(options.home),
    }
    if options.kind == "backfill":
        only = options.only
        return {
            **shared,
            "globs": [safe(glob) for glob in only.globs] or None,
            "since": None if only.since_ns is None else moment_text(only.since_ns),
            "until": None if only.until_ns is None else moment_text(only.until_ns),
            "failed": only.failed,
        }
    return {
        **shared,
        "excludes": [safe(glob) for glob in options.excludes] or None,
        "index_spec": options.index_spec,
        "confirm_missing": options.confirm_missing,
    }
