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
from services.probe import is_healthy
from services.settings import load_settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
OURS = ("updater", "registry", "state-writer", "scorer", "collector")
ONCE = ("keys", "topics")  # they end by themselves
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
    assert "secrets:/run/headwater:ro" in service["volumes"]
    assert "HEADWATER_SECURITY__OPEN_TO_ALL" not in environment
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_its_settings_and_its_command_are_known(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{[^}]*\}", "only-for-tests", value))
    assert load_settings().security.keys_file is not None
    name, *options = service["command"]
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(options))  # parses, and would raise on what it does not know


def test_what_runs_once_is_known_too(compose: dict[str, Any]) -> None:
    name, *options = compose["services"]["topics"]["command"]
    group = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    group.commands[options[0]].make_context(options[0], options[1:])
    [script] = compose["services"]["keys"]["command"]
    keys = get_command(cli.app).commands["keys"]  # type: ignore[attr-defined]
    made = re.findall(r"^new (.*)$", script, flags=re.MULTILINE)
    for arguments in made:
        keys.commands["new"].make_context("new", arguments.split())
    assert {arguments.split()[0] for arguments in made} == {"workers", "storefront", "operators"}
    assert all(compose["services"][name]["restart"] == "no" for name in ONCE)


def test_the_keys_script_makes_each_secret_once(tmp_path: Path, compose: dict[str, Any]) -> None:
    [script] = compose["services"]["keys"]["command"]
    script = script.replace("$$", "$").replace("cd /run/headwater", f"cd {tmp_path}")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "headwater"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m services.cli "$@"\n')
    command.chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HEADWATER_SECURITY__KEYS_FILE": str(tmp_path / "keys.json"),
    }
    files = ("workers.key", "storefront.key", "operators.key", "user-id-secret", "keys.json")
    seen = []
    for _ in range(2):
        subprocess.run(["/bin/sh", "-ec", script], env=environment, check=True, timeout=120)
        seen.append({name: (tmp_path / name).read_text() for name in files})
    assert seen[0] == seen[1]
    assert seen[0]["workers.key"].startswith("hw_")
    assert len(bytes.fromhex(seen[0]["user-id-secret"].strip())) == 32


def test_kafka_keeps_its_data_on_its_volume_and_is_the_version_that_is_tested(compose: dict[str, Any]) -> None:
    kafka = compose["services"]["kafka"]
    assert kafka["image"] == "apache/kafka:4.3.1"
    assert kafka["volumes"] == [f"kafka:{kafka['environment']['KAFKA_LOG_DIRS']}"]
    assert kafka["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_everything_has_a_health_check_and_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert all(services[name]["healthcheck"]["test"][0] == "CMD" for name in (*OURS, "kafka", "valkey"))
    for name in OURS:
        for other, how in services[name]["depends_on"].items():
            assert how["condition"] == ("service_completed_successfully" if other in ONCE else "service_healthy")
    assert set(services["scorer"]["depends_on"]) == {"keys", "topics", "kafka", "registry", "state-writer"}
    assert "valkey" in services["state-writer"]["depends_on"]
    assert services["scorer"]["environment"]["HEADWATER_STATE__SOURCE"] == "redis"
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert mounted == set(compose["volumes"])


def test_health_checks_ask_the_port_that_the_process_has(service: dict[str, Any]) -> None:
    settings = load_settings()
    name = service["command"][0]
    ports = {
        "updater": settings.updater.metrics_port,
        "state-writer": settings.state.metrics_port,
        "registry": settings.registry.port,
        "scorer": settings.scorer.port,
        "collector": settings.collector.port,
    }
    *command, port, path = service["healthcheck"]["test"]
    assert command == ["CMD", "python", "-m", "services.probe"]
    assert int(port) == ports[name]
    assert path in ("/healthz", "/readyz")


def test_torch_is_the_cpu_build() -> None:
    [arguments] = [rest for name, rest in instructions() if name == "ARG"]
    assert "https://download.pytorch.org/whl/cpu" in arguments


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
            assert is_healthy(int(line[2]), "/healthz")
            assert not is_healthy(int(line[2]), "/nothing-here")
        finally:
            process.kill()
