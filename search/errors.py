"""What can be wrong with a question.

::

    SearchError          2  the question can't be answered as asked
    └── QueryError       2  a query image can't be read or decoded
"""


class SearchError(Exception):
    """The question can't be answered as asked.  The message is one line that says what to do."""

    exit_code = 2


class QueryError(SearchError):
    """A query image can't be read or decoded."""
