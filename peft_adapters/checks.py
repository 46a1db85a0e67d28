"""Contract checks: what every learner and every registry must do, for anyone's implementation.

In the manner of river's and scikit-learn's `check_estimator`: call one of them in your tests. A broken promise raises
`ContractError` with the name of the promise.

    headwater.check_learner(lambda: MyLearner(seed=0))
    headwater.check_registry("s3://bucket/scratch")
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from peft_adapters.errors import ContractError, RegistryError, VersionConflictError, VersionNotFoundError
from peft_adapters.learning.state_dicts import split_tensors
from peft_adapters.registry.bundle import Manifest, read_bundle, write_bundle
from peft_adapters.registry.registry import AdapterRegistry

ITEMS = 40
BATCH_EVENTS = 20
CUTOFF = 8  # places of a list in which an item counts as found
CHANCE_EVENTS = 2_000
BASE_DIGEST = "base-of-the-check"


class Event(NamedTuple):
    """An event of the checks' streams, as a learner gets it.

    Attributes:
        user_id: pseudonym of the shopper.
        session_id: id of the session; None where sessions end by a pause.
        item_id: id of the item clicked or bought.
        ts: event time, epoch milliseconds.
        weight: weight of the event in the loss.
        query: words that were searched for; None without a search.
    """

    user_id: str
    session_id: str | None
    item_id: str
    ts: int
    weight: float = 1.0
    query: str | None = None


class CheckedLearner(Protocol):
    """The interface of a learner that can be checked."""

    def add_items(self, items: Sequence[tuple[str, str]]) -> None:
        """Add items (id, text); columns of scores are in the order of addition."""

    def observe(self, examples: Sequence[Event], /) -> Any:
        """Return a micro-batch as of before each of its events."""

    def judge(self, batch: Any, /) -> Tensor:
        """Return scores [events, items] without learning."""

    def learn(self, batch: Any, /) -> float:
        """Take one step and return the loss before it."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the whole state."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore a state into a fresh learner."""


Make = Callable[[], CheckedLearner]


def check_learner(make: Make) -> None:
    """Check that a learner keeps its contract.

    Args:
        make: returns a new learner without items; two calls must return equal learners.

    Raises:
        ContractError: a promise is broken.
        TypeError: `make` cannot be called.
    """
    if not callable(make):
        raise TypeError(f"`make` must return a new learner when called, got {type(make).__name__}; give the class")
    methods = ("add_items", "observe", "judge", "learn", "state_dict", "load_state_dict")
    lacking = [name for name in methods if not callable(getattr(make(), name, None))]
    _require(not lacking, f"a learner has the methods {', '.join(methods)} (lacks {', '.join(lacking)})")
    for check in LEARNER_CHECKS:
        check(make)


def judging_changes_nothing(make: Make) -> None:
    """Check that `judge` is repeatable and leaves no trace in what is learnt later."""
    judged, unjudged = _with_items(make), _with_items(make)
    for examples in _batches(_paired_stream(80, seed=1)):
        batch = judged.observe(examples)
        before = _fingerprint(judged)
        scores = judged.judge(batch)
        _require(torch.equal(judged.judge(batch), scores), "judging a batch twice gives the same scores")
        _require(_fingerprint(judged) == before, "judging changes no state")
        same = judged.learn(batch) == unjudged.learn(unjudged.observe(examples))
        _require(same, "judging does not change what is learnt")
    _require(_fingerprint(judged) == _fingerprint(unjudged), "judging does not change what is learnt")


def events_are_judged_by_what_came_before(make: Make) -> None:
    """Check that the score of an event does not depend on later events of its micro-batch."""
    learner, other = _with_items(make), _with_items(make)
    for each in (learner, other):
        _learn(each, _paired_stream(100, seed=1))
    events = _paired_stream(BATCH_EVENTS, seed=2)
    half = BATCH_EVENTS // 2
    replaced = [Event("stranger", None, "item-3", event.ts) for event in events[half:]]
    scores = learner.judge(learner.observe(events))[:half]
    changed = other.judge(other.observe([*events[:half], *replaced]))[:half]
    _require(torch.allclose(scores, changed, atol=1e-5), "scores do not depend on later events of the micro-batch")


def the_same_stream_gives_the_same_learner(make: Make) -> None:
    """Check that learning is deterministic, whatever the global random state is."""
    learners = [_with_items(make), _with_items(make)]
    for seed, learner in enumerate(learners):
        torch.manual_seed(seed)
        _learn(learner, _paired_stream(200, seed=1))
    _require(_fingerprint(learners[0]) == _fingerprint(learners[1]), "the same stream gives the same learner")


def a_restored_learner_goes_on_bit_for_bit(make: Make) -> None:
    """Check that a learner restored from its state continues as if it had never stopped."""
    events = _paired_stream(300, seed=1)
    uninterrupted = _with_items(make)
    _learn(uninterrupted, events[:140])
    restored = make()
    restored.load_state_dict(copy.deepcopy(dict(uninterrupted.state_dict())))
    for learner in (uninterrupted, restored):
        learner.add_items([("item-new", "an item that came later")])
    losses = [_learn(learner, events[140:]) for learner in (uninterrupted, restored)]
    _require(losses[0] == losses[1], "a restored learner has the losses of one that never stopped")
    _require(_fingerprint(uninterrupted) == _fingerprint(restored), "a restored learner continues bit for bit")


def a_new_item_can_be_ranked_and_learnt(make: Make) -> None:
    """Check that an item added between micro-batches gets a finite score at once."""
    learner = _with_items(make)
    _learn(learner, _paired_stream(60, seed=1))
    learner.add_items([("item-new", "an item that came later")])
    batch = learner.observe([Event("ann", None, "item-new", 10**9)])
    scores = learner.judge(batch)
    _require(tuple(scores.shape) == (1, ITEMS + 1), "a new item has a column of its own")
    _require(bool(torch.isfinite(scores).all()), "a new item has a finite score")
    learner.learn(batch)


def an_unknown_item_is_refused(make: Make) -> None:
    """Check that an event of an item that was never added raises KeyError and changes nothing."""
    learner = _with_items(make)
    before = _fingerprint(learner)
    try:
        learner.observe([Event("ann", None, "item-1", 0), Event("ann", None, "item-nobody-added", 1)])
    except KeyError:
        _require(_fingerprint(learner) == before, "a refused micro-batch changes nothing")
        return
    raise ContractError("an event of an unknown item raises KeyError: it was accepted")


def nothing_beats_chance_on_random_items(make: Make) -> None:
    """Check that no event leaks into its own judgement: items drawn at random cannot be foreseen."""
    learner, found = _with_items(make), 0
    rng = np.random.default_rng(7)
    pairs = zip(rng.integers(40, size=CHANCE_EVENTS), rng.integers(ITEMS, size=CHANCE_EVENTS), strict=True)
    events = [Event(f"user-{user}", None, f"item-{item}", 60_000 * n) for n, (user, item) in enumerate(pairs)]
    for examples in _batches(events, 100):
        batch = learner.observe(examples)
        scores = learner.judge(batch)
        rows = torch.tensor([int(event.item_id.removeprefix("item-")) for event in examples])
        own = scores.gather(1, rows[:, None])
        found += int(((scores >= own).sum(dim=1) <= CUTOFF).sum())
        learner.learn(batch)
    chance = CUTOFF / ITEMS
    limit = CHANCE_EVENTS * chance + 4 * (CHANCE_EVENTS * chance * (1 - chance)) ** 0.5  # 4 standard deviations
    _require(found <= limit, f"random items are not found more often than by chance ({found} of {CHANCE_EVENTS})")


LEARNER_CHECKS: tuple[Callable[[Make], None], ...] = (
    judging_changes_nothing,
    events_are_judged_by_what_came_before,
    the_same_stream_gives_the_same_learner,
    a_restored_learner_goes_on_bit_for_bit,
    a_new_item_can_be_ranked_and_learnt,
    an_unknown_item_is_refused,
    nothing_beats_chance_on_random_items,
)


def check_registry(url: str, *, scenario: str | None = None) -> None:
    """Check that a store can hold a registry: publish three versions and read them back.

    The versions stay in the store, under a scenario of their own: use a scratch directory or bucket.

    Args:
        url: address of the registry, a path or any fsspec URL.
        scenario: name of the scenario; None takes a fresh one.

    Raises:
        ContractError: a promise is broken.
        RegistryError: the store cannot be reached.
    """
    name = scenario or f"check-{uuid.uuid4().hex[:8]}"
    registry = AdapterRegistry(url)
    _require(registry.latest(name) is None, "a scenario without publications has no latest version")
    with TemporaryDirectory(prefix="headwater-") as directory:
        bundles = [_bundle(Path(directory, str(version)), name, version) for version in (1, 2, 3)]
        for path, manifest in bundles:
            registry.publish(path, manifest)
            latest = registry.latest(name)
            _require(latest is not None and latest.digest == manifest.digest, "a published version is the latest")
        _require(registry.versions(name) == [1, 2, 3], "published versions are listed, oldest first")
        for _, manifest in bundles:
            fetched = read_bundle(registry.fetch(name, manifest.version, Path(directory, "read")), base_digest=None)
            _require(fetched.manifest.digest == manifest.digest, "a version is read back as it was published")
        other = _bundle(Path(directory, "other"), name, 3, seed=1)
        _require(_raises(VersionConflictError, lambda: registry.publish(*other)), "a version is never overwritten")
        missing = _raises(VersionNotFoundError, lambda: registry.manifest(name, 9))
        _require(missing, "a version that was never published is an error of its own")


def _bundle(directory: Path, scenario: str, version: int, *, seed: int = 0) -> tuple[Path, Manifest]:
    rng = np.random.default_rng([version, seed])
    manifest = write_bundle(
        directory,
        groups={"adapter_model": {"lora_A.weight": torch.from_numpy(rng.normal(size=(2, 3)))}},
        adapter_config={"peft_type": "LORA"},
        item_ids=[f"item-{version}"],
        version=version,
        kind="full",
        scenario=scenario,
        parent=None,
        snapshot=version,
        base_digest=BASE_DIGEST,
        offsets={},
        watermark_ms=version,
        published_at_ms=version,
        events_learned=version,
    )
    return directory, manifest


def _raises(kind: type[RegistryError], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def _require(holds: bool, promise: str) -> None:
    if not holds:
        raise ContractError(promise)


def _with_items(make: Make) -> CheckedLearner:
    learner = make()
    learner.add_items([(f"item-{number}", f"a thing numbered {number}") for number in range(ITEMS)])
    return learner


def _learn(learner: CheckedLearner, events: Sequence[Event]) -> list[float]:
    return [learner.learn(learner.observe(examples)) for examples in _batches(events)]


def _batches(events: Sequence[Event], size: int = BATCH_EVENTS) -> Iterator[Sequence[Event]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]


def _paired_stream(events: int, *, seed: int) -> list[Event]:
    """Return sessions of two events in which item 2k is followed by item 2k + 1."""
    rng = np.random.default_rng(seed)
    stream = []
    for number in range(events // 2):
        first, user = 2 * int(rng.integers(ITEMS // 2)), int(rng.integers(20))
        for step in (0, 1):
            ts = 3_600_000 * number + 60_000 * step
            stream.append(Event(f"user-{user}", f"session-{number}", f"item-{first + step}", ts))
    return stream


def _fingerprint(learner: CheckedLearner) -> tuple[dict[str, bytes], str]:
    """Return a learner's state as bytes, for comparison bit for bit."""
    tensors, rest = split_tensors(learner.state_dict())
    parts = {name: tensor.detach().contiguous().cpu().numpy().tobytes() for name, tensor in tensors.items()}
    return parts, json.dumps(rest, sort_keys=True, default=str)
