"""By what a person tells the runs in Prefect apart: their names and their tags."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, time
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run

from flows.job.loop import IndexOptions
from flows.job.parameters import safe
from flows.job.spaces import find_spaces
from storage.catalog import Catalog
from storage.errors import RootError, StorageError
from storage.roots import find_root, list_roots
from storage.space_names import recipe_name

OURS = "lookalike"
"""Tag of every run."""
SHOWN = 3
"""Roots in a name; a tag there is for each of the first ``TAGGED``."""
TAGGED = 20
LONGEST = 24
"""Characters of a glob in a name."""


def run_name(kind: str) -> str:
    """Return the name of the run that begins: its deployment or kind, what it is about, its date.

    What it is about are its roots and its space; of a back-fill also which files.
    """
    asked = flow_run.get_parameters()
    how = asked.get("space") or recipe_name(asked)
    roots = _short(asked.get("roots") or ())
    return " ".join(filter(None, [_deployment() or kind, *roots, how, *_only(asked), _date()]))


def _short(roots: Sequence[str]) -> list[str]:
    names = [os.path.basename(root.rstrip("/")) or root for root in roots[:SHOWN]]
    return [*names, "..."] if len(roots) > SHOWN else names


def _only(asked: Mapping[str, Any]) -> Iterator[str]:
    if asked.get("failed"):
        yield "failed"
    globs = asked.get("globs") or ()
    if globs:
        glob = globs[0] if len(globs[0]) <= LONGEST else f"{globs[0][: LONGEST - 3]}..."
        yield glob if len(globs) == 1 else f"{glob} ..."
    since, until = _moment(asked.get("since")), _moment(asked.get("until"))
    if since or until:
        yield f"{since}..{until}"


def _moment(text: str | None) -> str:
    """Return a moment as it was typed, or where it is a date and a time, to the minute."""
    with suppress(ValueError):
        when = datetime.fromisoformat(text or "")
        return when.strftime("%Y-%m-%dT%H:%M" if when.time() != time() else "%Y-%m-%d")
    return text or ""


def _deployment() -> str | None:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return None
    with suppress(Exception):  # a run is not refused for want of a name
        return deployment.get_name()
    return None


def _date() -> str:
    """Return when a scheduled run was to begin, else what time it is, by this machine's clock."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled or run.expected_start_time is None:
        return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return run.expected_start_time.astimezone().strftime("%Y-%m-%d %H:%M")


def tags_of(options: IndexOptions, catalog: Catalog) -> Iterator[str]:
    """Yield the tags of a run by what the catalog knows: its spaces, its roots."""
    for space in find_spaces(catalog, options.choice):
        yield f"space:{space.name}"
    if not options.roots:
        yield from (f"root:{root.display}" for root in list_roots(catalog)[:TAGGED])
    for path in options.roots[:TAGGED]:
        with suppress(RootError):  # known later, or never
            yield f"root:{find_root(catalog, os.fsencode(path)).display}"


class Tagging:
    """Adds tags to the run of the flow that it is used in."""

    def __init__(self, kind: str, known: Callable[[], Iterable[str]]) -> None:
        self._kind = kind
        self._known = known
        self._sent: set[str] = set()

    def send(self) -> None:
        """Add the tags that are known by now.  A run is none the worse where that fails."""
        tags = {OURS, self._kind}
        with suppress(StorageError):  # the job itself will say it
            tags.update(map(safe, self._known()))
        if tags <= self._sent:
            return
        with suppress(Exception):  # whatever Prefect's client raises: tags are a view
            self._add(tags)
            self._sent = tags

    @staticmethod
    def _add(tags: set[str]) -> None:
        run_id: Any = flow_run.get_id()
        with get_client(sync_client=True) as client:
            there = client.read_flow_run(run_id).tags
            new = sorted(tags.difference(there))
            if new:
                client.update_flow_run(run_id, tags=[*there, *new])
