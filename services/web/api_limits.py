"""OpenAPI documentation of limits that are settings, so that generated clients know them."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

Limits = Mapping[str, Mapping[str, Mapping[str, int]]]


def document_limits(app: FastAPI, limits: Limits) -> None:
    """Add limits to an application's OpenAPI document. Call it again to add more.

    Args:
        app: the FastAPI application.
        limits: JSON Schema keywords by field, by schema name or by path for the parameters of a GET.
    """
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
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
    """Return the schema that a limit belongs to: for an optional field, that of the value."""
    return next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
