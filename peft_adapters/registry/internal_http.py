"""HTTP clients for calls between Headwater's own processes.

They ignore the proxies of the environment (`HTTP_PROXY`, `ALL_PROXY` and the like), which are meant for the internet: a
proxy cannot reach a process on this host. Certificates of `SSL_CERT_FILE` and `SSL_CERT_DIR` are still trusted.
"""

import json
from typing import Any

import httpx

from peft_adapters.registry.http_deadline import DeadlineTransport

DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)  # httpx's own


def internal_client(*, retries: int = 0, limits: httpx.Limits = DEFAULT_LIMITS, **options: Any) -> httpx.Client:
    """Open a client that connects directly, whatever the environment says, and keeps to the deadlines of its requests.

    Args:
        retries: How often a connection that cannot be opened is tried again.
        limits: Bounds of the connection pool.
        options: Keyword arguments of `httpx.Client`.
    """
    tls = httpx.create_ssl_context(trust_env=True)
    transport = DeadlineTransport(retries=retries, verify=tls, limits=limits)
    return httpx.Client(transport=transport, trust_env=False, **options)


def get(url: str, **options: Any) -> httpx.Response:
    """Send one GET over a direct connection.

    Args:
        url: Where to.
        options: Keyword arguments of `httpx.Client`, such as `timeout` and `headers`.
    """
    with internal_client(**options) as client:
        return client.get(url)


def error_detail(body: bytes) -> str:
    """The reason in the body of an error response (RFC 9457), or the beginning of whatever the body is.

    >>> error_detail(b'{"detail": "no such version"}')
    'no such version'
    """
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason is given"
