"""From what the user asked for to the space that a run works in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from extractor.models import ModelRequest, request_key
from extractor.weights import weights_file
from storage.catalog import Catalog
from storage.errors import SpaceError
from storage.spaces import SpaceInfo, ensure_space, get_space, list_spaces, space_for_key

if TYPE_CHECKING:
    from extractor.models import Model

DEFAULT_MODEL = "resnet50"


@dataclass(frozen=True)
class SpaceChoice:
    """Model, layer, weights and dtype asked for; None where the user said nothing."""

    space: str | None = None
    model: str | None = None
    layer: str | None = None
    weights: str | None = None
    dtype: str | None = None

    @property
    def names_a_model(self) -> bool:
        """Whether anything was said that decides how vectors are made."""
        return any((self.model, self.layer, self.weights, self.dtype))


def find_spaces(catalog: Catalog, choice: SpaceChoice) -> list[SpaceInfo]:
    """Return the spaces that ``choice`` means, as far as the catalog knows them already.

    Needs no torch.  Empty where the space has to be made first.
    """
    if not choice.names_a_model:
        if choice.space == "all":
            return list_spaces(catalog)
        if choice.space is not None:
            return [get_space(catalog, choice.space)]
        return [space for space in list_spaces(catalog) if space.current]
    known = space_for_key(catalog, _key(choice))
    if known is None:
        return []
    _same_name(known, choice)
    return [known]


def make_space(catalog: Catalog, choice: SpaceChoice) -> tuple[SpaceInfo, "Model"]:
    """Open the model that ``choice`` names and record its space; return both.  Imports torch."""
    from extractor.models import open_model

    request = _request(choice)
    model = open_model(request)
    spec = {**model.spec.to_json(), "dtype": choice.dtype or "float32"}
    space = ensure_space(
        catalog,
        name=choice.space,
        spec=spec,
        request=asdict(request),
        key=_key(choice),
    )
    _same_name(space, choice)
    return space, model


def _request(choice: SpaceChoice) -> ModelRequest:
    weights = choice.weights or "DEFAULT"
    return ModelRequest(
        model=choice.model or DEFAULT_MODEL,
        layer=choice.layer,
        weights=weights_file(weights) or weights,  # absolute: a night starts in another folder
    )


def _key(choice: SpaceChoice) -> str:
    return f"{request_key(_request(choice))} dtype={choice.dtype or 'float32'}"


def _same_name(space: SpaceInfo, choice: SpaceChoice) -> None:
    if choice.space not in (None, "all", space.name):
        raise SpaceError(
            f"these vectors are already the space '{space.name}', not '{choice.space}'; "
            f"leave out --space, or use --space {space.name}"
        )


def disk_needed_bytes(space: SpaceInfo, images: int) -> int:
    """Return about what ``images`` more vectors take on disk, their index included."""
    item = 2 if space.dtype == "float16" else 4
    vector, digest, index = space.dim * item, 32, space.dim + 8
    return images * (vector + digest + index)


def describe(spec: Mapping[str, Any]) -> str:
    """Return a space's recipe in one line for people."""
    return f"{spec['architecture']} at {spec['node']}, {spec['dim']} numbers, {spec['dtype']}"
