"""The command `headwater registry`."""

from services.options import Config, Host, LogLevel, Port, RegistryUrl, Servers, settings_from


def registry(
    registry_url: RegistryUrl = None,
    host: Host = None,
    port: Port = None,
    config: Config = None,
    bootstrap_servers: Servers = None,
    log_level: LogLevel = None,
) -> None:
    """Serve published adapters over HTTP, and control rollouts.

    Workers read manifests and bundles here, and report which version they serve; operators pin, roll back and start
    canaries.

    Example: headwater registry --registry-url ./registry --port 8084
    """
    section = {"url": registry_url, "host": host, "port": port}
    settings = settings_from(config, bootstrap_servers, log_level, registry=section)
    from services.registry.command import run

    run(settings)
