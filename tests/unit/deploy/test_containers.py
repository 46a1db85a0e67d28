"""The container: not root, a root file system that cannot be written, keys asked for; checked without Docker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.main import get_command

from services import cli
from services.settings import load_settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
OURS = ("updater", "registry", "scorer", "collector")
ON_READ_ONLY_ROOT = (
    'mount --make-rprivate / && mount --bind / / && mount --bind "$0" "$0" && mount -o remount,ro,bind /'
)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


@pytest.fixture(params=OURS)
def service(request: pytest.FixtureRequest, compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"][request.param]
    return found


def instructions() -> list[list[str]]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_ends_as_a_user_that_is_not_root() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert [name for name, _ in instructions()][-3:] == ["USER", "ENTRYPOINT", "CMD"]


def test_the_image_holds_what_is_named_and_no_secrets() -> None:
    assert not [rest for name, rest in instructions() if name == "ADD"]
    copied = [rest for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for rest in copied for source in rest.split()[:-1]}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


def test_it_can_write_nothing_but_what_it_is_given(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]  # noqa: S108
    writable = {volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")}
    assert writable <= {"/var/lib/headwater", "/registry"}


def test_where_it_writes_belongs_to_its_user() -> None:
    made = next(rest for name, rest in instructions() if name == "RUN" and "useradd" in rest)
    assert "--owner=10001 --group=10001 --mode=0700 /var/lib/headwater /registry" in made


def test_it_asks_for_keys_and_is_seen_on_loopback_alone(service: dict[str, Any]) -> None:
    environment = service["environment"]
    assert environment["HEADWATER_SECURITY__KEYS_FILE"] == "/run/headwater/keys.json"
    assert "./secrets:/run/headwater:ro" in service["volumes"]
    assert "HEADWATER_SECURITY__OPEN_TO_ALL" not in environment
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_its_settings_and_its_command_are_known(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{[^}]*\}", "only-for-tests", value))
    assert load_settings().security.keys_file is not None
    name, *options = service["command"]
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(options))  # parses, and would raise on what it does not know


def test_no_secret_is_in_the_repository(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert re.findall(r"(?:SECRET|API_KEY): (?!\$\{)\S+", text) == []
    assert {"deploy/secrets/", "deploy/.env"} <= set((ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize(
    "command", [["registry", "--registry-url", "adapters"], ["collector", "--bootstrap-servers", "127.0.0.1:1"]]
)
def test_a_process_runs_where_nothing_but_its_directory_can_be_written(tmp_path: Path, command: list[str]) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root may mount, in a mount namespace of its own")
    script = f'{ON_READ_ONLY_ROOT} || exit 77; cd "$0" || exit 77; touch /written 2>/dev/null && exit 78; exec "$@"'
    run = [sys.executable, "-m", "services.cli", *command, "--port", "0"]
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, str(tmp_path), *run],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)},
        text=True,
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        try:
            if not line and process.wait(10) == 77:
                pytest.skip("no mount namespace can be had here")
            assert line[:1] == ["listening"]
            assert httpx.get(f"http://{line[1]}:{line[2]}/healthz", timeout=20).status_code == 200
        finally:
            process.kill()
