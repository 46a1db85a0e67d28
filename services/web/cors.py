"""Let scripts of web pages call an application and read its answers (CORS)."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST")
REQUEST_HEADERS = ("Authorization", "Content-Type", "Content-Encoding")
ANSWER_HEADERS = ("Retry-After", "WWW-Authenticate")


def allow_origins(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Let pages of other origins call an application.

    This is the outermost layer: preflights are answered before a key is asked for or a place is taken, and errors of
    any layer carry the headers without which a page could not read them. Cookies are never asked for
    (`Access-Control-Allow-Credentials` is not sent): a page shows its key in `Authorization`.

    Args:
        app: The application.
        origins: Allowed origins; none changes nothing.
    """
    if not origins:
        return
    build = app.build_middleware_stack

    def stack() -> ASGIApp:
        return CORSMiddleware(
            build(),
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
        )

    app.build_middleware_stack = stack  # type: ignore[method-assign]
