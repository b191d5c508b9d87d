"""Questions as they come, as JSON or in a query string: read strictly, as the document has them."""

import json
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams

from search.api_questions import ByExamples, ByImage, ByText, ByVector, Options
from search.refusals import Refused, bad_request

Model = TypeVar("Model", bound=BaseModel)

LISTS: Final = ("within", "plus", "minus")


def asked_in_json(body: bytes, params: QueryParams) -> Options:
    """Return what a JSON body asks; what it leaves open the query string may say.

    Raises
    ------
    Refused
        It is no question.
    """
    given = asked_in_query(params).model_dump(exclude_unset=True) | parsed(body)
    return valid(_meant(given), given)


def parsed(body: bytes) -> dict[str, Any]:
    """Return the object that a JSON body is; `Refused`."""
    try:
        values = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "bad_request", f"this is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise Refused(400, "bad_request", "the JSON must be an object")
    return values


def asked_in_query(params: QueryParams) -> Options:
    """Return the options that stand in a query string; raises as `asked_in_json`."""
    values: dict[str, Any] = {}
    for name in params:
        read = [text if name == "within" else _scalar(text) for text in params.getlist(name)]
        values[name] = read if name in LISTS or len(read) > 1 else read[0]
    return valid(Options, values)


def valid(model: type[Model], values: Any) -> Model:
    """Return the values as a model has them; `Refused` names the first that makes no sense."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise Refused.of(bad_request(first["loc"], first["msg"])) from None


def _meant(values: dict[str, Any]) -> type[Options]:
    """Return which of the questions it is: by what is searched for."""
    subjects = [kind for kind in (ByImage, ByVector, ByText) if kind.by in values]
    if len(subjects) == 1:
        return subjects[0]
    if not subjects and values.get("plus"):
        return ByExamples
    raise Refused(400, "bad_request", "give one of image_id, vector, text and plus")


def _scalar(text: str) -> Any:
    """Return the number or the truth value that a word stands for, as in JSON; else the text."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")
