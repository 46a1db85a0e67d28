"""The command `headwater registry`."""

import structlog

from peft_adapters.registry import AdapterRegistry
from services.http import serve
from services.registry.app import create_app

log = structlog.get_logger(__name__)


def run(*, registry_url: str, host: str, port: int) -> None:
    """Serve the adapters under `registry_url` until SIGTERM or SIGINT.

    Args:
        registry_url: Root of the registry: a path or any fsspec address.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, named by the line `listening HOST PORT`.

    Raises:
        RegistryAddressError: No kind of store is known for the address.
        ServeError: The address cannot be listened on.
    """
    log.info("registry_starting", registry_url=registry_url)
    serve(create_app(AdapterRegistry(registry_url)), host, port)
