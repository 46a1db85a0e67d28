"""The registry process, from settings to serving."""

from functools import partial

import structlog

from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.signing import load_verifier
from services.registry.announcement import announce
from services.registry.app import create_app
from services.settings import Settings
from services.web.access.install import AccessRules
from services.web.server import serve

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve the adapters under `registry.url` until SIGTERM or SIGINT.

    Args:
        settings: the settings of the process.

    Raises:
        KeysError: the keys file cannot be used.
        RegistryAddressError: no kind of store is known for the registry's address.
        SigningKeyError: a public key of `signing.public_keys` cannot be read.
        ServeError: the address cannot be listened on.
    """
    section = settings.registry
    log.info("registry_starting", registry_url=section.url)
    access = AccessRules.from_settings(settings.limits, settings.security)
    verify = load_verifier(settings.signing)
    app = create_app(AdapterRegistry(section.url), access=access, announce=partial(announce, settings), verify=verify)
    serve(app, section.host, section.port)
