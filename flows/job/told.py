"""What every kind of run has in common: where its store is, and what it tells at its end."""

from typing import Any, Protocol


class Asked(Protocol):
    """What a run was asked for; only where its store is matters to all kinds."""

    @property
    def home(self) -> str:
        """Directory of the store."""

    @property
    def catalog_url(self) -> str | None:
        """URL of a Postgres catalog; None for SQLite in the home."""


class Ended(Protocol):
    """What a command tells when it leaves."""

    def exit_code(self) -> int:
        """Return the exit code of the command, as ``flows.cli`` lists them."""

    def to_text(self) -> str:
        """Return the report for a terminal; its first line says the whole in short."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""

    def trouble_lines(self) -> list[str]:
        """Return the troubles, one line each, the gravest first."""


class Told(Ended, Protocol):
    """The report of a run in a store."""

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its end."""

    @property
    def warnings(self) -> list[str]:
        """What a person should know though it is no trouble, one line each."""

    def to_markdown(self) -> str:
        """Return the report for a page of Prefect."""
