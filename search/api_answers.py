"""The shapes of the API's answers, for its document; the answers are made elsewhere.

They are closed: a field that is not told here is in no answer.
"""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from search.overview import RootOverview
from search.refusals import ERRORS
from storage.recall import RecallInfo


class Told(BaseModel):
    """Something that is answered."""

    model_config = ConfigDict(extra="forbid")


class FoundHit(Told):
    """One image that looks like the question, with every live path that holds it."""

    score: float = Field(description="Cosine of the angle between the two vectors, 1 at most.")
    path: str = Field(description=r"The first of the paths; a byte that is no UTF-8 is \udcXX.")
    paths: list[str]
    image_id: int
    row: int
    id: str = Field(default="", description="Where a manifest gives one.")
    label: str = Field(default="", description="Where a manifest gives one.")


class Found(Told):
    """The hits of a question, the best first."""

    space: str = Field(description="The space that was searched.")
    hits: list[FoundHit]
    more: bool = Field(description="Whether there are hits beyond these.")
    vector: list[float] = Field(default=[], description="Where want_vector asked for it.")


class ImageFile(Told):
    """A live file that holds an image."""

    path: str
    root: str
    place: str = Field(description="The folder that it lies in, as /api/folders names it.")
    id: str | None
    label: str | None
    first_seen: float


class Image(Told):
    """An image of the catalog; times are seconds since 1970."""

    image_id: int
    size_bytes: int
    width: int | None = Field(description="None where it can't be decoded now.")
    height: int | None
    first_seen: float
    copies: int = Field(description="Live files that hold it; files has the first 1,000 by path.")
    files: list[ImageFile]
    has_vector: bool = Field(description="Whether it can be searched for in the current space.")


class Folder(Told):
    """A root, or a folder in one."""

    place: str
    name: str
    cover: int | None = Field(description="An image to show of it.")


class Picture(Told):
    """A file in a folder."""

    image_id: int
    file_id: int
    name: str


class Folders(Told):
    """What lies in a folder; without a place, the roots."""

    place: str | None
    crumbs: list[Folder] = Field(description="From the root to the folder itself.")
    within: bool = Field(description="Whether a search can be kept to it.")
    folders: list[Folder]
    folders_after: int | None = Field(description="Gives the next folders; null: no more.")
    pictures: list[Picture]
    after: int | None = Field(description="Gives the next pictures; null: no more.")


class SpaceStatus(Told):
    """A space, with what it holds and lacks."""

    name: str
    fingerprint: str
    current: bool
    model: dict[str, Any]
    dim: int
    dtype: str
    vectors: int
    parts: int
    size_bytes: int
    index: str | None
    index_rows: int
    recall: RecallInfo | None
    fallen: str | None
    pending: int
    failures: dict[str, int]


class RunStatus(Told):
    """One of the last runs."""

    id: str
    kind: str
    state: str
    started_at: float
    ended_at: float | None


class Status(Told):
    """The whole store, counted."""

    store_id: str
    catalog: str
    images: int
    roots: list[RootOverview]
    spaces: list[SpaceStatus]
    runs: list[RunStatus]


class Map(Told):
    """Where images lie on a map of the space: those that look alike, near each other."""

    space: str
    generation: str | None = Field(description="The published index whose images are drawn.")
    vectors: int
    shares: list[float] = Field(description="What share of all variance each direction shows.")
    images: list[int]
    x: list[int]
    y: list[int]


class Armed(Told):
    """How many failures the next run tries again."""

    armed: int


class Health(Told):
    """The space that answers; null while there is none."""

    space: str | None
    dim: int | None
    vectors: int


class Reason(Told):
    """Why there is no answer."""

    code: str = Field(description="One word for programs; docs/http.md lists them.")
    message: str = Field(description="One line that says what to do.")


class Failure(Told):
    """The shape of every error."""

    error: Reason


EVERYWHERE: Final = (400, 401, 403, 405, 408, 413, 421, 431, 500, 503)


def responses(*more: int, **found: Any) -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer: what it finds, and its refusals.

    Parameters
    ----------
    *more
        Statuses of refusals beside those that any request can meet.
    **found
        What stands under status 200.
    """
    said: dict[int | str, dict[str, Any]] = {200: found}
    for status in sorted({*EVERYWHERE, *more}):
        said[status] = {"model": Failure, "description": ERRORS[status]}
    return said
