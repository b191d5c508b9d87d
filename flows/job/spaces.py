"""From what the user asked for to the space that a run works in."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from extractor.models import ModelRequest, request_key
from extractor.weights import weights_file
from flows.settings import Settings
from storage.catalog import Catalog
from storage.errors import SpaceError
from storage.space_names import recipe_name
from storage.spaces import SpaceInfo, ensure_space, get_space, list_spaces, space_for_key

if TYPE_CHECKING:
    from extractor.models import Model

DEFAULT_MODEL = "resnet50"
ALL = "all"
"""What ``--space`` takes for every space; no space has this name."""
RECIPE = ("model", "layer", "weights", "input_size", "pool", "scales", "relu", "dtype")
"""Settings that say how vectors are made."""


@dataclass(frozen=True)
class SpaceChoice:
    """How vectors are made and stored, as asked for; None where the user said nothing."""

    space: str | None = None
    model: str | None = None
    layer: str | None = None
    weights: str | None = None
    dtype: str | None = None
    input_size: int | None = None
    pool: str | None = None
    scales: tuple[float, ...] | None = None
    relu: bool | None = None
    otherwise: "SpaceChoice | None" = field(default=None, compare=False)
    """Recipe of the settings, for a ``space`` that is not there yet; it yields to one that is."""

    def __post_init__(self) -> None:
        """Refuse what says of every space how one is made.  Raises ``SpaceError``."""
        if self.space == ALL and self.names_a_model:
            raise SpaceError(
                f"--space {ALL} takes every space as it was made: leave out what says how vectors "
                f"are made (--model, --layer, ...), or leave out --space {ALL}"
            )

    @property
    def names_a_model(self) -> bool:
        """Whether anything was said that decides how vectors are made."""
        return any(getattr(self, name) is not None for name in RECIPE)

    @property
    def name(self) -> str | None:
        """Name that a space is asked for by; None where none or every one was meant."""
        return None if self.space == ALL else self.space

    @property
    def to_make(self) -> "SpaceChoice":
        """The choice for a space that has to be made: with the settings' recipe, if any."""
        return self if self.otherwise is None else replace(self.otherwise, space=self.name)


def find_spaces(catalog: Catalog, choice: SpaceChoice) -> list[SpaceInfo]:
    """Return the spaces that ``choice`` means, as far as the catalog knows them already.

    Needs no torch.  Empty where the space has to be made first.

    Raises
    ------
    SpaceError
        There is no space of the name and nothing says how to make it, or it has another name.
    """
    if not choice.names_a_model:
        spaces = list_spaces(catalog)
        if choice.space is None:
            return [space for space in spaces if space.current]
        found = [space for space in spaces if choice.space in (ALL, space.name)]
        if found or not spaces:
            return found
        choice = choice.to_make
    if not choice.names_a_model:
        return [get_space(catalog, choice.space)]  # says which ones there are
    known = space_for_key(catalog, _key(choice))
    if known is None:
        return []
    _same_name(known, choice)
    return [known]


def make_space(catalog: Catalog, choice: SpaceChoice) -> tuple[SpaceInfo, "Model"]:
    """Open the model that ``choice`` names and record its space; return both.  Imports torch.

    The space remembers model and layer by the names that people use, and is called by them.
    """
    from extractor.models import open_model

    choice = choice.to_make
    request = request_of(choice)
    model = open_model(request)
    spec = {**model.spec.to_json(), "dtype": choice.dtype or "float32"}
    named = replace(request, model=model.spec.architecture, layer=model.layer_name)
    space = ensure_space(
        catalog,
        name=choice.name,
        spec=spec,
        request=named.to_json(),
        key=_key(choice),
    )
    _same_name(space, choice)
    return space, model


def request_of(recipe: SpaceChoice | Settings) -> ModelRequest:
    """Return the request for the model of a recipe; a weights file's path becomes absolute."""
    weights = recipe.weights or "DEFAULT"
    return ModelRequest(
        model=recipe.model or DEFAULT_MODEL,
        layer=recipe.layer,
        weights=weights_file(weights) or weights,  # a night starts in another folder
        input_size=recipe.input_size,
        pool=recipe.pool,
        scales=recipe.scales or (),
        relu=recipe.relu is not False,
    )


def _key(choice: SpaceChoice) -> str:
    return f"{request_key(request_of(choice))} dtype={choice.dtype or 'float32'}"


def _same_name(space: SpaceInfo, choice: SpaceChoice) -> None:
    if choice.name not in (None, space.name):
        raise SpaceError(
            f"these vectors are already the space '{space.name}', not '{choice.space}'; "
            f"leave out --space, or use --space {space.name}"
        )


def new_space_name(choice: SpaceChoice) -> str:
    """Return what is known of a new space's name before its model is."""
    choice = choice.to_make
    return choice.name or recipe_name(request_of(choice).to_json())


def new_space_dim(catalog: Catalog, choice: SpaceChoice) -> int | None:
    """Return the dimension of a new space if another one, e.g. of another dtype, tells it."""
    choice = choice.to_make
    asked = request_of(choice).to_json()
    same = (space.dim for space in list_spaces(catalog) if dict(space.request) == asked)
    return next(same, None)


def disk_needed_bytes(space: SpaceInfo, images: int) -> int:
    """Return about what ``images`` more vectors take on disk, their index included."""
    return vectors_need_bytes(space.dim, space.dtype, images)


def vectors_need_bytes(dim: int, dtype: str, images: int) -> int:
    """Return about what ``images`` vectors take on disk, their index included."""
    item = 2 if dtype == "float16" else 4
    vector, digest, index = dim * item, 32, dim + 8
    return images * (vector + digest + index)
