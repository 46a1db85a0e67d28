"""Where a process may listen, and over what: loopback without keys, TLS with a certificate."""

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr, ValidationError

from services.metrics.access import AccessMetrics
from services.settings.web import SecuritySettings
from services.web.access.install import AccessRules, install_access_control
from services.web.access.keys import KeysFile
from services.web.access.scope_rules import always_read
from services.web.access.scopes import Scope
from services.web.server import ExposedError, ServeError, require_keys_beyond_loopback, running, serve

PASSWORD = "only-for-tests"  # noqa: S105


def application(security: SecuritySettings) -> FastAPI:
    app = FastAPI()
    install_access_control(
        app, AccessRules(security=security), AccessMetrics(CollectorRegistry()), required_scope=always_read
    )

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    return app


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A certificate for 127.0.0.1, its key, and the same key under a password."""
    directory = tmp_path_factory.mktemp("tls")
    made = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem "
        "-days 2 -subj /CN=tests -addext subjectAltName=IP:127.0.0.1",
        f"openssl ec -in key.pem -aes256 -passout pass:{PASSWORD} -out locked.pem",
    )
    for command in made:
        subprocess.run(command.split(), cwd=directory, check=True, capture_output=True)
    return directory / "cert.pem", directory / "key.pem", directory / "locked.pem"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    require_keys_beyond_loopback(host, SecuritySettings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "no-such-name.invalid"])  # noqa: S104
def test_beyond_loopback_keys_must_be_asked_for(host: str, tmp_path: Path) -> None:
    with pytest.raises(ExposedError, match=r"`host` must be loopback's while `security.keys_file` is not set"):
        require_keys_beyond_loopback(host, SecuritySettings())
    require_keys_beyond_loopback(host, SecuritySettings(keys_file=tmp_path / "keys.json"))
    require_keys_beyond_loopback(host, SecuritySettings(open_to_all=True))


def test_who_would_be_exposed_does_not_listen() -> None:
    with pytest.raises(ExposedError, match="headwater keys new"):
        serve(application(SecuritySettings()), "0.0.0.0", 0)  # noqa: S104


def test_beyond_loopback_with_keys_callers_are_asked_for_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    token = KeysFile(path).make("shop", [Scope.read])
    with running(application(SecuritySettings(keys_file=path)), host="0.0.0.0") as url:  # noqa: S104
        here = url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert httpx.get(f"{here}/docs").status_code == 401
        assert httpx.get(f"{here}/docs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize("locked", [False, True])
def test_with_a_certificate_it_speaks_tls_alone(certificate: tuple[Path, Path, Path], locked: bool) -> None:
    chain, key, locked_key = certificate
    password = SecretStr(PASSWORD) if locked else None
    security = SecuritySettings(tls_certificate=chain, tls_key=locked_key if locked else key, tls_key_password=password)
    with running(application(security)) as url:
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(chain))
        assert httpx.get(f"{url}/healthz", verify=trusted).json() == "ok"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{url.replace('https', 'http')}/healthz")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/healthz")
        old = ssl.create_default_context(cafile=str(chain))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz", verify=old)


def test_a_certificate_that_cannot_be_read_is_one_clear_line(certificate: tuple[Path, Path, Path]) -> None:
    chain, key, _ = certificate
    for wrong in (
        SecuritySettings(tls_certificate=chain, tls_key=chain),
        SecuritySettings(tls_certificate=key.with_name("none.pem"), tls_key=key),
    ):
        with pytest.raises(ServeError, match=r"`security.tls_certificate` .* must be a certificate in PEM"):
            serve(application(wrong), "127.0.0.1", 0)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="`tls_certificate` must come with `tls_key`"):
        SecuritySettings(tls_certificate=tmp_path / "cert.pem")
