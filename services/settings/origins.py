"""Setting of the origins of web pages that may call a process. Imports nothing heavy."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

ANY_ORIGIN = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}


def _checked(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != ANY_ORIGIN and origin != _canonical(origin):
            raise ValueError(
                f"an origin must be scheme://host[:port] as browsers send it, in lower case, without a path or the "
                f"scheme's own port, got {origin!r}; write {_canonical(origin) or 'https://shop.example'!r}"
            )
    if ANY_ORIGIN in origins and len(origins) > 1:
        raise ValueError(f"'*' must stand alone, got {', '.join(origins)}; leave it out, or leave the others out")
    return origins


Origins = Annotated[
    tuple[str, ...],
    AfterValidator(_checked),
    Field(
        description="origins of pages whose scripts may call, such as https://shop.example; `*` alone means all pages"
    ),
]


def _canonical(origin: str) -> str | None:
    """Return an origin in the form that browsers send; None if the text is not an origin."""
    try:
        parts = urlsplit(origin.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not host or not host.isascii() or any(c in host for c in " *,@"):
        return None
    shown_host = f"[{host}]" if ":" in host else host
    shown_port = "" if port in (None, DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{shown_host}{shown_port}"
