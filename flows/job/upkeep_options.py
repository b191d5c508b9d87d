"""What a maintenance is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.settings import load_settings
from storage.catalog import Catalog
from storage.home import Home


@dataclass(frozen=True)
class UpkeepOptions:
    """What one maintenance was asked to do."""

    home: str
    catalog_url: str | None = None
    repair: bool = False
    """Mend what can be mended, instead of only saying what is wrong."""
    verify: bool = True
    """Read every byte of catalog, vectors and indexes first."""
    workers: int | None = None
    """Threads that read files again; None: one for each usable core, at least 2."""
    flow_run: str | None = None
    """Id of the flow run in Prefect that carries it out."""


def upkeep_options(
    flags: Mapping[str, Any], *, repair: bool = False, verify: bool = True
) -> UpkeepOptions:
    """Return the options, with the store and the workers that flags and settings name.

    Raises
    ------
    CatalogError
        Nothing was indexed there yet: opening it for writing would make a store.
    """
    settings = load_settings(flags).settings
    home = Home(settings.home, settings.catalog_url)
    if not home.is_made():
        Catalog.open(home, write=False).close()
    return UpkeepOptions(
        home=settings.home,
        catalog_url=settings.catalog_url,
        repair=repair,
        verify=verify,
        workers=settings.workers,
    )
