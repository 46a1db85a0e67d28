"""The key scope that each call needs, by method and path."""

from collections.abc import Callable

from services.web.access.scopes import Scope

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # for probes, which have no keys

# Maps method and path of a call to the scope it needs; None leaves the call open to everyone.
ScopeRule = Callable[[str, str], Scope | None]


def always_read(method: str, path: str) -> Scope:
    """Return `read` for every call, for applications that change nothing."""
    return Scope.read


def read_or_admin(method: str, path: str) -> Scope:
    """Return `read` for calls that only look, and `admin` for calls that change something.

    >>> read_or_admin("GET", "/v1/adapters/home").value, read_or_admin("PUT", "/v1/adapters/home").value
    ('read', 'admin')
    """
    return Scope.read if method in ("GET", "HEAD", "OPTIONS") else Scope.admin


def events_or_read(method: str, path: str) -> Scope:
    """Return `events` for calls of the API, and `read` for metrics and documentation.

    >>> events_or_read("POST", "/v1/events").value, events_or_read("GET", "/metrics").value
    ('events', 'read')
    """
    return Scope.events if path.startswith("/v1/") else Scope.read
