"""HTTP clients for calls between Headwater's own processes.

The clients ignore the proxies of the environment (`HTTP_PROXY`, `ALL_PROXY` and the like), which are meant for the
internet: a proxy cannot reach a process on this host. Certificates of `SSL_CERT_FILE` and `SSL_CERT_DIR` are trusted.
"""

import json
from typing import Any

import httpx

from peft_adapters.registry.http_deadline import DeadlineTransport

DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)  # the defaults of httpx


def internal_client(*, retries: int = 0, limits: httpx.Limits = DEFAULT_LIMITS, **options: Any) -> httpx.Client:
    """Return a client that ignores the environment's proxies and enforces the deadlines of its requests.

    Args:
        retries: number of further attempts to connect.
        limits: limits of the connection pool.
        options: keyword arguments of `httpx.Client`.
    """
    tls = httpx.create_ssl_context(trust_env=True)
    transport = DeadlineTransport(retries=retries, verify=tls, limits=limits)
    return httpx.Client(transport=transport, trust_env=False, **options)


def internal_async_client(**options: Any) -> httpx.AsyncClient:
    """Open a client for asyncio that connects directly. Its caller sets deadlines with `asyncio.timeout`.

    Args:
        options: keyword arguments of `httpx.AsyncClient`.
    """
    return httpx.AsyncClient(verify=httpx.create_ssl_context(trust_env=True), trust_env=False, **options)


def get(url: str, **options: Any) -> httpx.Response:
    """Send one GET over a direct connection.

    Args:
        url: absolute URL of the resource.
        options: keyword arguments of `httpx.Client`, such as `timeout` and `headers`.
    """
    with internal_client(**options) as client:
        return client.get(url)


def error_detail(body: bytes) -> str:
    """Return the `detail` of an error response (RFC 9457), or the beginning of a body of any other format.

    >>> error_detail(b'{"detail": "no such version"}')
    'no such version'
    """
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason is given"
