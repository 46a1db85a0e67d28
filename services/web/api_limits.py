"""Limits that are settings, told in OpenAPI where they bind: a client generated from it knows them, too."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

Limits = Mapping[str, Mapping[str, Mapping[str, int]]]


def state_limits(app: FastAPI, limits: Limits) -> None:
    """Adds limits to what an application says of itself; to be called again for further ones.

    Args:
        app: The application.
        limits: By schema, or by path for the parameters of a GET, and by field: JSON Schema keywords.
    """
    told = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = told()
            for place, fields in limits.items():
                known = _parameters(document, place) if place.startswith("/") else _properties(document, place)
                for field, keywords in fields.items():
                    _bounded(known[field]).update(keywords)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _properties(document: dict[str, Any], schema: str) -> dict[str, Any]:
    properties: dict[str, Any] = document["components"]["schemas"][schema]["properties"]
    return properties


def _parameters(document: dict[str, Any], path: str) -> dict[str, Any]:
    return {parameter["name"]: parameter["schema"] for parameter in document["paths"][path]["get"]["parameters"]}


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a limit belongs to: of an optional field, that of the value."""
    return next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
