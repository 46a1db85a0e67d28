"""`headwater registry` as a process of its own."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from forked import ForkedCommand, run_command
from small_bundle import write_small_bundle

from peft_adapters.errors import VersionNotFoundError
from peft_adapters.registry.bundle import read_bundle
from peft_adapters.registry.registry import AdapterRegistry
from peft_adapters.registry.retention import Retention


@contextmanager
def registry_process(root: Path) -> Iterator[tuple[ForkedCommand, str]]:
    """The process and its base URL."""
    process = ForkedCommand(
        ["registry", "--registry-url", str(root), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            name, host, port = process.stdout.readline().split()
            assert name == "listening"
            yield process, f"http://{host}:{port}"
        finally:
            process.kill()


def test_a_worker_reads_over_http_what_another_process_publishes(tmp_path: Path) -> None:
    publisher = AdapterRegistry(str(tmp_path / "registry"))
    with registry_process(tmp_path / "registry") as (_, url):
        worker = AdapterRegistry(f"{url}/v1/files")
        assert worker.latest("home") is None
        for version in (1, 2, 3):
            manifest = write_small_bundle(tmp_path / str(version), version, delta=version > 1)
            publisher.publish(tmp_path / str(version), manifest)
            assert worker.latest("home") == manifest
        for version in worker.chain("home", 3):
            read_bundle(worker.fetch("home", version, tmp_path / "cache"), base_digest="base-1")
        assert worker.versions("home") == [1, 2, 3]


def test_readers_see_each_version_whole_while_others_come_and_go(tmp_path: Path) -> None:
    publisher = AdapterRegistry(str(tmp_path / "registry"))
    done = threading.Event()

    def read_on(reader: AdapterRegistry, cache: Path) -> list[int]:
        seen: list[int] = []
        while not done.is_set() or seen[-1:] != [25]:
            latest = reader.latest("home")
            if latest is not None and latest.version not in seen[-1:]:
                with suppress(VersionNotFoundError):  # pruned while it was read: the next one is there already
                    there = reader.fetch("home", latest.version, cache)
                    assert read_bundle(there, base_digest="base-1").manifest == latest
                    seen.append(latest.version)
        return seen

    with registry_process(tmp_path / "registry") as (_, url), ThreadPoolExecutor() as pool:
        readers = {"file": AdapterRegistry(str(tmp_path / "registry")), "http": AdapterRegistry(f"{url}/v1/files")}
        reading = [pool.submit(read_on, reader, tmp_path / name) for name, reader in readers.items()]
        for version in range(1, 26):
            manifest = write_small_bundle(tmp_path / str(version), version)
            publisher.publish(tmp_path / str(version), manifest)
            publisher.prune("home", Retention(versions=1 + version % 4))  # 1 takes away what is being read
        done.set()
        for seen in (future.result(60) for future in reading):
            assert seen == sorted(set(seen))
            assert len(seen) > 1


def test_told_to_end_it_answers_who_waits_and_ends_at_once(tmp_path: Path) -> None:
    manifest = write_small_bundle(tmp_path / "made", 1)
    AdapterRegistry(str(tmp_path / "registry")).publish(tmp_path / "made", manifest)
    for number in (signal.SIGTERM, signal.SIGINT):
        with registry_process(tmp_path / "registry") as (process, url), ThreadPoolExecutor() as pool:
            latest = f"{url}/v1/adapters/home/latest?wait_seconds=30"
            waiting = pool.submit(httpx.get, latest, headers={"If-None-Match": f'"{manifest.digest}"'}, timeout=40)
            time.sleep(0.5)
            assert not waiting.done()
            began = time.monotonic()
            process.send_signal(number)
            assert waiting.result().status_code == 304
            assert process.wait(10) == 0
            assert time.monotonic() - began < 5
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()


def test_killed_and_started_again_it_serves_the_same(tmp_path: Path) -> None:
    manifest = write_small_bundle(tmp_path / "made", 1)
    AdapterRegistry(str(tmp_path / "registry")).publish(tmp_path / "made", manifest)
    for _ in range(2):
        with registry_process(tmp_path / "registry") as (process, url):
            assert AdapterRegistry(f"{url}/v1/files").latest("home") == manifest
            process.kill()


def test_an_address_that_no_store_has_is_one_clear_line(tmp_path: Path) -> None:
    ended = run_command(["registry", "--registry-url", "no-such-store://x", "--port", "0"])
    assert ended.returncode in (1, 2)
    assert "no-such-store" in ended.stderr
    assert "Traceback" not in ended.stderr
