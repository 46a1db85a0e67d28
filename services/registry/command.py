"""The command `headwater registry`."""

from functools import partial

import structlog

from peft_adapters.registry import AdapterRegistry
from services.http import serve
from services.registry.announcing import announce
from services.registry.app import create_app
from services.settings import Settings

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve the adapters under `registry.url` until SIGTERM or SIGINT.

    Args:
        settings: All of them.

    Raises:
        RegistryAddressError: No kind of store is known for the address.
        ServeError: The address cannot be listened on.
    """
    own = settings.registry
    log.info("registry_starting", registry_url=own.url)
    serve(create_app(AdapterRegistry(own.url), announce=partial(announce, settings)), own.host, own.port)
