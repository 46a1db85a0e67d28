"""JSON bodies of requests: refusal of other content types, and parsing in one pass."""

import inspect
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from services.settings.origins import ANY_ORIGIN
from services.web.bodies import BODILESS_METHODS
from services.web.http import ProblemError

JSON = "application/json"
BEACON = "text/plain"  # the type that `navigator.sendBeacon` sends for a string


def json_route(*, beacon_origins: Collection[str] | None = None) -> type[APIRoute]:
    """Return a class of routes that answer 415 to a body whose content type is not JSON.

    A coroutine whose only parameter is the body, and which returns a response, is called with the body as pydantic
    parses it. FastAPI's way, `json.loads` and then the resolution of dependencies, takes some 60 microseconds more; a
    body that pydantic refuses still goes that way, so that errors are reported alike.

    A `text/plain` body from a page is accepted only if the page's origin is allowed or the same: browsers let any page
    post that type anywhere without a preflight.

    Args:
        beacon_origins: origins of pages whose `text/plain` is read as JSON; None refuses all `text/plain`.
    """

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            answer, body_model = super().get_route_handler(), _only_body(self.endpoint)

            async def checked(request: Request) -> Response:
                if request.method not in BODILESS_METHODS and (body := await request.body()):
                    _require_json(request, beacon_origins)
                    if body_model is not None:
                        try:
                            parsed = body_model.model_validate_json(body)
                        except ValidationError:
                            return await answer(request)
                        response: Response = await self.endpoint(parsed)
                        return response
                return await answer(request)

            return checked

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
