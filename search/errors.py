"""What can be wrong with a question.

::

    SearchError              2  the question can't be answered as asked
    ├── QueryError           2  a query image can't be read or decoded
    ├── VectorError          2  a query vector does not fit the space
    ├── UnknownImage         2  no image of that number has a vector in the space
    ├── UnknownPlace         2  there is no such folder
    ├── NoWords              2  the space can't be asked with words
    ├── NoMemory             2  there is no memory for a query image now
    ├── OutputError          2  an output can't be written as asked
    └── ServeError           2  a server can't listen as asked
"""


class SearchError(Exception):
    """The question can't be answered as asked.  The message is one line that says what to do."""

    exit_code = 2


class QueryError(SearchError):
    """A query image can't be read or decoded."""


class VectorError(SearchError):
    """A query vector does not fit the space; the message names both."""


class UnknownImage(SearchError):
    """No image of that number has a vector in the space."""


class UnknownPlace(SearchError):
    """There is no such folder, or it has no path to search in."""


class NoWords(SearchError):
    """The space can't be asked with words here; the message says how to get one that can."""


class NoMemory(SearchError):
    """There is no memory for a query image now; the same one may go well another time."""


class OutputError(SearchError):
    """An output can't be written as asked."""


class ServeError(SearchError):
    """A server can't listen as asked."""
