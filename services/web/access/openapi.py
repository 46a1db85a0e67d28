"""OpenAPI documentation of API keys, so that generated clients send one."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from services.web.access.scope_rules import OPEN_PATHS, ScopeRule
from services.web.problems import problems

SCHEME = "key"
REFUSALS = {
    HTTPStatus.UNAUTHORIZED.value: "no key, or an unknown one",
    HTTPStatus.FORBIDDEN.value: "the key does not allow this call",
}


def document_keys(app: FastAPI, required_scope: ScopeRule) -> None:
    """Add the key scope of each call to an application's OpenAPI document.

    Args:
        app: the FastAPI application.
        required_scope: the scope that a call needs, by method and path; None where it needs none.
    """
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes[SCHEME] = {"type": "http", "scheme": "bearer", "description": "made by `headwater keys new`"}
            for path, calls in document["paths"].items():
                for method, call in calls.items():
                    scope = None if path in OPEN_PATHS else required_scope(method.upper(), path)
                    if scope is not None:
                        call["security"] = [{SCHEME: [scope.value]}]
                        call["responses"] |= {str(status): refusal for status, refusal in problems(REFUSALS).items()}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
