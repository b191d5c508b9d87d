"""What went wrong in a run without ending it, and the exit code that follows from it."""

from flows.commands.show import printable

EXIT_ORDER = (130, 5, 7, 4, 6, 3)
"""Which exit code wins where several apply."""


class Troubles:
    """The part of a report that says how the run ended; the report has the two attributes."""

    interrupted: bool
    troubles: dict[int, list[str]]
    """One line a trouble, by the exit code that it causes."""

    def trouble(self, exit_code: int, line: str) -> None:
        """Record a trouble that does not end the run, with the exit code that it causes."""
        self.troubles.setdefault(exit_code, []).append(line)

    def exit_codes(self) -> set[int]:
        """Return the exit codes that apply."""
        return {*self.troubles, *([130] if self.interrupted else [])}

    def exit_code(self) -> int:
        """Return the exit code: 0, or the first of 130, 5, 7, 4, 6, 3 that applies."""
        codes = self.exit_codes()
        return next((code for code in EXIT_ORDER if code in codes), 0)

    def trouble_lines(self) -> list[str]:
        """Return the troubles, one line each, the gravest first."""
        found = [line for code in EXIT_ORDER for line in self.troubles.get(code, [])]
        return list(map(printable, found))

    def trouble_values(self) -> dict[str, list[str]]:
        """Return the troubles for JSON, whose keys are strings."""
        return {str(code): lines for code, lines in self.troubles.items()}
