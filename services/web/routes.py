"""Route templates of an application."""

from fastapi import FastAPI
from fastapi.routing import APIRoute

_API_PREFIX = "/v1/"


def api_routes(app: FastAPI) -> list[str]:
    """Return the templates of the application's documented API routes, such as `/v1/rank`."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    return list(dict.fromkeys(route.path for route in routes if route.path.startswith(_API_PREFIX)))
