"""Refusal of bodies whose content type is not JSON."""

from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute

from services.settings.origins import ANY_ORIGIN
from services.web.bodies import BODILESS_METHODS
from services.web.http import ProblemError

JSON = "application/json"
BEACON = "text/plain"  # the type that `navigator.sendBeacon` sends for a string


def json_route(*, beacon_origins: Collection[str] | None = None) -> type[APIRoute]:
    """Return a class of routes that answer 415 to a body whose content type is not JSON.

    A `text/plain` body from a page is accepted only if the page's origin is allowed or the same: browsers let any page
    post that type anywhere without a preflight.

    Args:
        beacon_origins: origins of pages whose `text/plain` is read as JSON; None refuses all `text/plain`.
    """

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            answer = super().get_route_handler()

            async def checked(request: Request) -> Response:
                if request.method not in BODILESS_METHODS and await request.body():
                    _require_json(request, beacon_origins)
                return await answer(request)

            return checked

    return JsonRoute


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
