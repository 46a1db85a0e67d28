"""The demo's children: told where to listen, watched, ended, and given the very settings of the demo."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.lab.demo.errors import DemoError
from services.lab.demo.processes import Child, environment, stop_all, wait_ready
from services.settings import load_settings

START_SECONDS = 60.0


def child(directory: Path, *arguments: str, name: str = "registry") -> Child:
    return Child(name, arguments, environment=environment(load_settings()), log_dir=directory)


def registry(directory: Path) -> Child:
    return child(directory, "registry", "--registry-url", str(directory / "registry"), "--port", "0")


def gone(pid: int, within_seconds: float) -> bool:
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_child_says_where_it_listens_becomes_ready_and_ends(tmp_path: Path) -> None:
    started = registry(tmp_path).start()
    try:
        url = started.url(timeout_seconds=START_SECONDS)
        wait_ready([url], children=[started], timeout_seconds=START_SECONDS)
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        started.check()
    finally:
        stop_all([started])
    with pytest.raises(DemoError, match="the registry ended with status 0"):
        started.check()


def test_a_child_that_dies_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    started = child(tmp_path, "registry", "--registry-url", "no-such-store://x", "--port", "0").start()
    with pytest.raises(DemoError, match=r"(?s)the registry ended with status \d; its last words:.*no-such-store"):
        started.url(timeout_seconds=START_SECONDS)


def test_a_child_that_dies_ends_the_wait_for_another(tmp_path: Path) -> None:
    dead = child(tmp_path, "registry", "--registry-url", "no-such-store://x", "--port", "0", name="updater").start()
    dead.wait()
    with pytest.raises(DemoError, match="the updater ended with status"):
        wait_ready(["http://127.0.0.1:9"], children=[dead], timeout_seconds=START_SECONDS)


def test_what_is_not_ready_in_time_is_an_error() -> None:
    with pytest.raises(DemoError, match=r"http://127\.0\.0\.1:9 was not ready within 0 s"):
        wait_ready(["http://127.0.0.1:9"], children=[], timeout_seconds=0.01)


def test_a_child_that_does_not_listen_in_time_is_an_error(tmp_path: Path) -> None:
    started = registry(tmp_path).start()
    try:
        with pytest.raises(DemoError, match="the registry did not say where it listens within 0 s"):
            started.url(timeout_seconds=0.01)
    finally:
        stop_all([started])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends children")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = """
import sys, time
from pathlib import Path
from services.lab.demo.processes import Child, environment
from services.settings import load_settings
where = Path(sys.argv[1])
arguments = ["registry", "--registry-url", str(where / "registry"), "--port", "0"]
child = Child("registry", arguments, environment=environment(load_settings()), log_dir=where).start()
child.url(timeout_seconds=60)
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert gone(pid, 15)


def test_a_signal_while_a_child_is_being_started_ends_that_child_too(tmp_path: Path) -> None:
    parent = """
import multiprocessing.forkserver, os, signal, sys
from pathlib import Path
from services.lab.demo.errors import Stopped
from services.lab.demo.lifetime import stopped_by_signals
from services.lab.demo.processes import Child, environment, stop_all
from services.settings import load_settings

read = multiprocessing.forkserver.read_signed

def read_pid(descriptor):  # the child runs by now, and its parent is about to learn its process id
    multiprocessing.forkserver.read_signed = read
    os.kill(os.getpid(), signal.SIGTERM)
    return read(descriptor)

where = Path(sys.argv[1])
arguments = ["registry", "--registry-url", str(where / "registry"), "--port", "0"]
child = Child("registry", arguments, environment=environment(load_settings()), log_dir=where)
try:
    with stopped_by_signals():
        multiprocessing.forkserver.read_signed = read_pid
        child.start()
except Stopped:
    stop_all([child])
    print("stopped", child.pid, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", parent, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said.startswith("stopped ")
    assert gone(int(said.split()[1]), 0.1)


def test_children_have_the_settings_of_the_demo_wherever_those_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "headwater.toml"
    file.write_text('scenario = "ads"\n[learner]\nlora = false\nfeatures = ["repeat", "transition"]\n')
    monkeypatch.setenv("HEADWATER_CONFIG", str(tmp_path / "another.toml"))
    monkeypatch.setenv("HEADWATER_KAFKA__CLIENT_ID", "mine")
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    given = load_settings(
        file,
        encoder={"cache_dir": str(tmp_path / "cache")},
        kafka={
            "bootstrap_servers": "kafka-1:9093,kafka-2:9093",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "me",
            "sasl_password": "se cret",
            "ssl_cafile": str(ca),
        },
    )
    assert given.kafka.sasl_password == SecretStr("se cret")
    variables = environment(given)
    for name in [name for name in os.environ if name.startswith("HEADWATER_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given
