"""HTTP clients for calls between Headwater's own processes.

They ignore the proxies of the environment (`HTTP_PROXY`, `ALL_PROXY` and the like), which are meant for the internet: a
proxy cannot reach a process on this host. Certificates of `SSL_CERT_FILE` and `SSL_CERT_DIR` are still trusted.
"""

from typing import Any

import httpx

DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)  # httpx's own


def internal_client(*, retries: int = 0, limits: httpx.Limits = DEFAULT_LIMITS, **options: Any) -> httpx.Client:
    """Open a client that connects directly, whatever the environment says.

    Args:
        retries: How often a connection that cannot be opened is tried again.
        limits: Bounds of the connection pool.
        options: Keyword arguments of `httpx.Client`.
    """
    tls = httpx.create_ssl_context(trust_env=True)
    transport = httpx.HTTPTransport(retries=retries, verify=tls, limits=limits, trust_env=False)
    return httpx.Client(transport=transport, trust_env=False, **options)


def get(url: str, **options: Any) -> httpx.Response:
    """Send one GET over a direct connection.

    Args:
        url: Where to.
        options: Keyword arguments of `httpx.Client`, such as `timeout` and `headers`.
    """
    with internal_client(**options) as client:
        return client.get(url)
