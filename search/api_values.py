"""What stands in addresses: read strictly, as the API's document tells it."""

import re
from typing import Any, Final

from fastapi import Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from search.api_questions import QUESTIONS, Options
from search.refusals import Refused
from search.thumbnails import SIZES

MOST_NUMBER: Final = (1 << 63) - 1
SMALLEST: Final = SIZES[1]
"""Longer side of a thumbnail, where none is asked for."""

_DIGITS: Final = re.compile(r"([0-9]{1,19})(?:\.0{1,9})?")
_NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": MOST_NUMBER}


def image_number(request: Request) -> int:
    """Return the number of the image that an address names; `Refused`."""
    return _number("image_id", request.path_params["image_id"])


def size_of(request: Request) -> int:
    """Return the size of the thumbnail that is asked for; `Refused`."""
    size = option(request, "size")
    if size is None:
        return SMALLEST
    if size not in SIZES:
        said = f"size: one of {', '.join(str(each) for each in SIZES)} is meant"
        raise Refused(400, "bad_request", said)
    return size


def option(request: Request, name: str) -> int | None:
    """Return a number of the query string; None where it is left out; `Refused`."""
    texts = request.query_params.getlist(name)
    return _number(name, ",".join(texts)) if texts else None


def _number(name: str, text: str) -> int:
    """Return a whole number; 4.0 is one, as in JSON."""
    found = _DIGITS.fullmatch(text)
    if found is None or int(found[1]) > MOST_NUMBER:
        said = f"{name}: a whole number from 0 to {MOST_NUMBER:,} is meant"
        raise Refused(400, "bad_request", said)
    return int(found[1])


def _in_query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    said = schema.pop("description", None)
    value: dict[str, Any] = {"name": name, "in": "query", "required": False, "schema": schema}
    return value if said is None else {**value, "description": said}


def _options() -> list[dict[str, Any]]:
    """Return the options of a question as parameters; in a query string nothing is null."""
    fields = Options.model_json_schema()["properties"]
    for schema in fields.values():
        schema.pop("title", None)
        if "anyOf" in schema:
            schema |= next(one for one in schema.pop("anyOf") if one["type"] != "null")
            schema.pop("default", None)
    return [_in_query(name, schema) for name, schema in fields.items()]


def schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """Return the schemas of models by their names, for the document's components."""
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    named: dict[str, Any] = found["$defs"]
    return named


_BYTES: Final = {"schema": {"type": "string", "format": "binary", "minLength": 1}}

IMAGE_ID: Final = {"name": "image_id", "in": "path", "required": True, "schema": _NUMBER}
SIZE: Final = _in_query(
    "size",
    {
        "type": "integer",
        "enum": list(SIZES),
        "default": SMALLEST,
        "description": "The longer side in pixels; a smaller picture keeps its own.",
    },
)
PLACE: Final = {
    "name": "place",
    "in": "path",
    "required": True,
    "description": "A folder, as /api/folders names it: r1, f12-3.",
    "schema": {"type": "string", "minLength": 1},
}
LISTED: Final = [
    _in_query(name, {**_NUMBER, "description": f"`{name}` of a page before: gives {what} alone."})
    for name, what in (("after", "the next pictures"), ("folders_after", "the next folders"))
]
QUESTION: Final = {
    "parameters": _options(),
    "requestBody": {
        "required": True,
        "description": "A picture as its bytes, or a question as JSON.  Options may stand in the"
        " query string beside either; those in the JSON come first.",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": f"#/components/schemas/{model.__name__}"} for model in QUESTIONS
                    ]
                },
                "examples": {
                    "image": {"value": {"image_id": 12, "k": 3}},
                    "several": {"value": {"image_id": 12, "plus": [40], "minus": [7]}},
                },
            },
            "image/*": _BYTES,
            "application/octet-stream": _BYTES,
        },
    },
}
RETRY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Retry"}},
        },
    },
}
