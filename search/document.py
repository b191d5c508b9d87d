"""The API's document: OpenAPI, made of the routes, with what they share said once."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from search.api import Retry
from search.api_questions import QUESTIONS
from search.api_values import schemas

VERSION = "1"
"""Of the API; a change that breaks clients raises it."""

_SAID = (
    "Search one collection of images by likeness.  Images and folders go by numbers, never by"
    " paths.  Every error has one shape."
)
_KEYS = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "LOOKALIKE_TOKEN of the server, where it has one.",
    },
}


def document(app: FastAPI, *, token: bool) -> dict[str, Any]:
    """Return the OpenAPI document of an application.

    Parameters
    ----------
    app
        With all of its routes.
    token
        Whether the server asks for one.
    """
    made = get_openapi(title="lookalike", version=VERSION, description=_SAID, routes=app.routes)
    for operations in made["paths"].values():
        for operation in operations.values():
            operation["summary"] = operation.pop("description")
    components = made.setdefault("components", {})
    components["schemas"] = {**components["schemas"], **schemas(Retry, *QUESTIONS)}
    if token:
        components["securitySchemes"] = _KEYS
        made["security"] = [{"token": []}]
        made["paths"]["/healthz"]["get"]["security"] = []
    return made
