"""The cache returns what the encoder would compute, computes it once, and stays within its bound."""

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from tiny_model import tiny_bert, tiny_encoder

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import EncoderError

TEXTS = ["red mug", "a large glass vase", "lamp"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


# Fills a cache in a separate process, after a line on its standard input.
_FILLER = """
import sys
from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.settings import EncoderSettings
encoder = Encoder(EncoderSettings(model=sys.argv[1], lora_rank=4, cache_dir=None))
print("ready", flush=True)
sys.stdin.readline()
cache = PrefixCache(encoder, __import__("pathlib").Path(sys.argv[2]))
for number in range(60):
    cache.get([f"plate {number}"])
print(cache.hits + cache.misses)
"""


def stored_bytes(path: Path) -> int:
    with sqlite3.connect(path) as db:
        total: int = db.execute("SELECT coalesce(sum(length(hidden)), 0) FROM prefix").fetchone()[0]
    db.close()
    return total


def test_computed_once_and_equal_to_the_encoder(encoder: Encoder, tmp_path: Path) -> None:
    cache = PrefixCache(encoder, tmp_path / "deep" / "prefix.sqlite")
    computed = cache.get(TEXTS)
    assert (cache.hits, cache.misses) == (0, 3)
    read = cache.get(list(reversed(TEXTS)))
    assert (cache.hits, cache.misses) == (3, 3)
    expected = encoder.prefix(TEXTS)
    for one, other, direct in zip(computed, reversed(read), expected, strict=True):
        assert torch.equal(one, direct)
        assert torch.equal(other, direct)
        assert other.dtype == torch.float16
    cache.close()


def test_survives_the_process(encoder: Encoder, tmp_path: Path) -> None:
    first = PrefixCache(encoder, tmp_path / "prefix.sqlite")
    first.get(TEXTS)
    first.close()
    second = PrefixCache(encoder, tmp_path / "prefix.sqlite")
    second.get(TEXTS)
    assert (second.hits, second.misses) == (3, 0)
    second.close()


def test_without_a_path_nothing_is_written(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = PrefixCache(encoder, None)
    cache.get(TEXTS)
    cache.get(TEXTS)
    assert (cache.hits, cache.misses) == (3, 3)
    assert list(tmp_path.iterdir()) == []
    cache.close()


def test_a_text_given_twice_is_computed_once(encoder: Encoder) -> None:
    cache = PrefixCache(encoder, None)
    first, second = cache.get(["lamp", "lamp"])
    assert torch.equal(first, second)
    assert cache.misses == 1
    cache.close()


def test_another_base_never_meets_old_entries(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "prefix.sqlite"
    cache = PrefixCache(encoder, path)
    (of_first,) = cache.get(["lamp"])
    cache.close()
    deeper = PrefixCache(tiny_encoder(lora_layers=2), path)
    (of_second,) = deeper.get(["lamp"])
    assert (deeper.hits, deeper.misses) == (0, 1)
    assert not torch.equal(of_first, of_second)
    deeper.close()


def test_oldest_go_first_above_the_bound(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "prefix.sqlite"
    texts = [f"mug number {number}" for number in range(40)]
    one = encoder.prefix(texts[:1])[0].numel() * 2  # bytes of fp16
    cache = PrefixCache(encoder, path, max_bytes=10 * one)
    for text in texts:
        cache.get([text])
        assert stored_bytes(path) <= 10 * one
    before = cache.hits
    cache.get(texts[-8:])
    assert cache.hits - before == 8
    before = cache.misses
    cache.get(texts[:8])
    assert cache.misses - before == 8
    cache.close()


def test_more_texts_than_the_bound_are_still_all_given(encoder: Encoder, tmp_path: Path) -> None:
    cache = PrefixCache(encoder, tmp_path / "prefix.sqlite", max_bytes=1)
    given = cache.get(TEXTS)
    assert all(torch.equal(a, b) for a, b in zip(given, encoder.prefix(TEXTS), strict=True))
    assert stored_bytes(tmp_path / "prefix.sqlite") == 0
    cache.close()


def test_more_texts_than_one_statement_takes(encoder: Encoder) -> None:
    cache = PrefixCache(encoder, None)
    texts = [f"mug {number}" for number in range(1_100)]
    given = cache.get(texts)
    assert cache.misses == 1_100
    again = cache.get(texts)
    assert cache.hits == 1_100
    assert all(torch.equal(a, b) for a, b in zip(given, again, strict=True))
    cache.close()


def test_a_disk_that_refuses_costs_computing_again_and_is_logged(encoder: Encoder, tmp_path: Path) -> None:
    cache = PrefixCache(encoder, tmp_path / "prefix.sqlite")
    with sqlite3.connect(tmp_path / "prefix.sqlite") as db:
        db.execute("CREATE TRIGGER full_disk BEFORE INSERT ON prefix BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    with capture_logs() as lines:
        for _ in range(2):
            (hidden,) = cache.get(["lamp"])
    assert torch.equal(hidden, encoder.prefix(["lamp"])[0])
    (line,) = lines
    assert (line["event"], line["problem"]) == ("prefix_cache_failed", "not written: disk full")
    assert line["path"] == str(tmp_path / "prefix.sqlite")
    db.execute("DROP TRIGGER full_disk")
    db.close()
    cache.get(["lamp"])
    assert stored_bytes(tmp_path / "prefix.sqlite") > 0
    cache.close()


@pytest.mark.parametrize("content", [b"torn" * 2_000, None])
def test_a_file_that_cannot_be_opened_is_named_with_a_remedy(
    encoder: Encoder, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "prefix.sqlite"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(EncoderError, match=rf"the cache {path} cannot be used: .*; make room .* or name another"):
        PrefixCache(encoder, path)


def test_a_file_torn_while_it_is_used_costs_computing_again(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "prefix.sqlite"
    cache = PrefixCache(encoder, path)
    cache.get([f"lamp {number}" for number in range(200)])
    cache._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * (path.stat().st_size - 4_096))
    cache._db.execute("PRAGMA cache_size=0")
    fresh = PrefixCache(encoder, None)
    texts = [f"lamp {number}" for number in range(200)]
    with capture_logs():
        found = cache.get(texts)
    assert all(torch.equal(a, b) for a, b in zip(found, fresh.get(texts), strict=True))
    cache.close()


def test_opened_by_many_at_the_same_moment(encoder: Encoder, tmp_path: Path) -> None:
    """SQLite does not wait while another connection switches a new file to write-ahead mode."""
    openers = 4
    barrier = threading.Barrier(openers)

    def open_and_fill(path: Path) -> int:
        barrier.wait()
        cache = PrefixCache(encoder, path)
        cache.get(["lamp"])
        cache.close()
        return cache.misses

    with ThreadPoolExecutor(openers) as pool:
        for round_ in range(40):
            paths = [tmp_path / f"{round_}.sqlite"] * openers
            assert all(misses <= 1 for misses in pool.map(open_and_fill, paths))


def test_two_processes_share_one_file(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "prefix.sqlite"
    arguments = [sys.executable, "-c", _FILLER, str(tiny_bert()), str(path)]
    texts = [f"plate {number}" for number in range(60)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        other.stdin.write(b"go\n")
        other.stdin.flush()
        cache = PrefixCache(encoder, path)
        for text in texts:  # at the same time as the other process, in the same order
            cache.get([text])
        assert other.communicate(timeout=120) == (b"60\n", b"")
    before = cache.hits
    given = cache.get(texts)
    assert cache.hits - before == 60
    assert all(torch.equal(a, b) for a, b in zip(given, encoder.prefix(texts), strict=True))
    cache.close()
