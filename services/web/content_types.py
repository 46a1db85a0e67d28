"""JSON bodies of requests: refusal of other content types, and parsing in one pass."""

import inspect
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from services.settings.origins import ANY_ORIGIN
from services.web.bodies import BODILESS_METHODS, replay
from services.web.http import ProblemError

JSON = "application/json"
BEACON = "text/plain"  # the type that `navigator.sendBeacon` sends for a string


def json_route(*, beacon_origins: Collection[str] | None = None) -> type[APIRoute]:
    """Return a class of routes that answer 415 to a body whose content type is not JSON.

    A coroutine whose only parameter is the body, and which returns a response, is called with the body as pydantic
    parses it, without FastAPI's resolution of dependencies, which takes some 80 microseconds more. A body that pydantic
    refuses still goes that way, so that errors are reported alike.

    A `text/plain` body from a page is accepted only if the page's origin is allowed or the same: browsers let any page
    post that type anywhere without a preflight.

    Args:
        beacon_origins: origins of pages whose `text/plain` is read as JSON; None refuses all `text/plain`.
    """

    class JsonRoute(APIRoute):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._body_model = _only_body(self.endpoint)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] in BODILESS_METHODS or scope["method"] not in (self.methods or ()):
                return await super().handle(scope, receive, send)
            request = Request(scope, receive)
            body = await request.body()
            if body:
                _require_json(request, beacon_origins)
            try:
                parsed = self._body_model.model_validate_json(body) if self._body_model else None
            except ValidationError:
                parsed = None
            if parsed is None:
                return await super().handle(scope, replay(body, receive), send)
            response: Response = await self.endpoint(parsed)
            await response(scope, receive, send)

    return JsonRoute


def _only_body(endpoint: Callable[..., Any]) -> type[BaseModel] | None:
    """Return the model of the body if it is all that a coroutine takes, and a response what it returns; else None."""
    signature = inspect.signature(endpoint)
    parameters = [parameter.annotation for parameter in signature.parameters.values()]
    if not inspect.iscoroutinefunction(endpoint) or signature.return_annotation is not Response or len(parameters) != 1:
        return None
    return parameters[0] if inspect.isclass(parameters[0]) and issubclass(parameters[0], BaseModel) else None


def _require_json(request: Request, beacon_origins: Collection[str] | None) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if _is_json(media_type):
        return
    if media_type == BEACON and beacon_origins is not None:
        return _require_known_page(request, beacon_origins)
    named = "none" if not media_type else repr(media_type[:100])
    detail = f"`Content-Type` must be {JSON}, got {named}; with curl, add -H 'content-type: {JSON}'"
    accepted = JSON if beacon_origins is None else f"{JSON}, {BEACON}"
    raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept": accepted})


def _is_json(media_type: str) -> bool:
    return media_type == JSON or (media_type.startswith("application/") and media_type.endswith("+json"))


def _require_known_page(request: Request, origins: Collection[str]) -> None:
    origin = request.headers.get("origin")
    if origin is None or origin in origins or ANY_ORIGIN in origins:
        return
    if urlsplit(origin).netloc == request.headers.get("host"):
        return
    detail = f"{BEACON} from a page of another origin must come from one of `cors_origins`, got {origin[:200]!r}"
    raise ProblemError(HTTPStatus.FORBIDDEN, f"{detail}; add it to the setting, or send {JSON} from no browser")
