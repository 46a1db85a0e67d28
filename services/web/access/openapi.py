"""What OpenAPI says of keys, where they are asked for: a client generated from it sends one."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from services.web.access.key_check import OPEN_PATHS, Needs
from services.web.problems import problems

SCHEME = "key"
REFUSALS = {
    HTTPStatus.UNAUTHORIZED.value: "no key, or one that is not known",
    HTTPStatus.FORBIDDEN.value: "the key is not good for this call",
}


def state_keys(app: FastAPI, needs: Needs) -> None:
    """Adds to what an application says of itself which scope of key each call needs.

    Args:
        app: The application.
        needs: The scope that a call needs, by method and path; None where it needs none.
    """
    told = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = told()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes[SCHEME] = {"type": "http", "scheme": "bearer", "description": "made by `headwater keys new`"}
            for path, calls in document["paths"].items():
                for method, call in calls.items():
                    scope = None if path in OPEN_PATHS else needs(method.upper(), path)
                    if scope is not None:
                        call["security"] = [{SCHEME: [scope.value]}]
                        call["responses"] |= {str(status): refusal for status, refusal in problems(REFUSALS).items()}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
