"""CORS: scripts of web pages may call an application and read its answers."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST")
REQUEST_HEADERS = ("Authorization", "Content-Type", "Content-Encoding")
ANSWER_HEADERS = ("Retry-After", "WWW-Authenticate")


def allow_origins(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Let pages of other origins call an application.

    This is the outermost layer: preflights are answered without a key and outside the limit of concurrent requests, and
    errors of any layer carry the headers that let a page read them. Cookies are not used
    (`Access-Control-Allow-Credentials` is not sent): a page sends its key in `Authorization`.

    Args:
        app: the FastAPI application.
        origins: allowed origins; without any, nothing is installed.
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
