"""Every tensor of a bundle is checked before it is used: type, finite values, sign."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from learnt_chain import Publications, catalogue_of
from tiny_model import tiny_encoder, titled

from peft_adapters.errors import BundleFormatError
from peft_adapters.learning.learner import Learner
from peft_adapters.lifecycle.gate_rules import judge_candidate
from peft_adapters.lifecycle.warm_start import load_bundle_into
from peft_adapters.ranking.outcomes import INPUTS
from peft_adapters.registry.bundle import Bundle, read_bundle, write_bundle
from peft_adapters.registry.tensor_rules import COUNT, WEIGHT, fault_of
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel, require_finite_scores
from peft_adapters.settings import GateSettings, LearnerSettings

ITEMS = titled(12)
SIGNED = (
    "adapter_model.",
    "next_adapter.",
    "projections.",
    "heads.",
    "residuals.query.values",
    "residuals.candidate.values",
)


class Chain:
    """A full bundle with every possible tensor, and a delta on it."""

    def __init__(self, directory: Path) -> None:
        publications = Publications(directory, lora_ahead_batches=3)
        publications.learner.add_items(ITEMS)
        publications.learn(32)
        self.encoder = tiny_encoder()
        self.catalogue = catalogue_of(self.encoder, ITEMS)
        self.full = publications.read(publications.full(1))
        publications.learn(32)
        self.delta = publications.read(publications.delta(2))
        for bundle in (self.full, self.delta):
            bundle.groups["heads"] |= {"click": torch.zeros(INPUTS), "purchase": torch.zeros(INPUTS)}
            bundle.groups["projections"] = {"image": torch.zeros(self.encoder.dim, 4).half()}
        assert "next_adapter" in self.full.groups
        self.served = self.build(self.full, None)

    def build(self, bundle: Bundle, previous: ServedModel | None) -> ServedModel:
        return build_model([bundle], previous=previous, catalogue=self.catalogue, encoder=self.encoder)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"))


def damaged(bundle: Bundle) -> Iterator[tuple[str, Bundle]]:
    """Yield copies of a bundle, each with one forbidden value in one tensor."""
    for group, tensors in bundle.groups.items():
        for name, tensor in tensors.items():
            values = [torch.nan, torch.inf, -torch.inf] if tensor.is_floating_point() else []
            values += [] if f"{group}.{name}".startswith(SIGNED) else [-1]
            for value in values:
                for place in (0, -1):
                    copy = tensor.clone()
                    assert copy.numel(), f"{group}.{name} is empty, so that nothing is tested"
                    copy.view(-1)[place] = value
                    groups = {**bundle.groups, group: {**tensors, name: copy}}
                    yield f"{group}.{name} with {value} at {place}", bundle._replace(groups=groups)


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_a_value_that_must_not_be_there_is_refused_in_every_tensor(chain: Chain, kind: str) -> None:
    bundle, previous = (chain.full, None) if kind == "full" else (chain.delta, chain.served)
    chain.build(bundle, previous)
    accepted, messages = [], {}
    for case, bad in damaged(bundle):
        try:
            chain.build(bad, previous)
            accepted.append(case)
        except BundleFormatError as error:
            messages[case] = str(error)
    assert not accepted
    assert all(case.split()[0] in message for case, message in messages.items())


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_an_unknown_tensor_is_refused(chain: Chain, kind: str) -> None:
    bundle, previous = (chain.full, None) if kind == "full" else (chain.delta, chain.served)
    for group in ("heads", "counters", "residuals", "bonus"):
        groups = {**bundle.groups, group: {**bundle.groups.get(group, {}), "extra": torch.zeros(1)}}
        with pytest.raises(BundleFormatError, match=rf"tensor {group}.extra is unknown"):
            chain.build(bundle._replace(groups=groups), previous)


def test_a_missing_tensor_is_named(chain: Chain) -> None:
    for group in ("heads", "counters", "residuals", "adapter_model"):
        groups = {name: tensors for name, tensors in chain.full.groups.items() if name != group}
        with pytest.raises(BundleFormatError, match=rf"tensor {group}[a-z_.]* is missing"):
            chain.build(chain.full._replace(groups=groups), None)


@pytest.mark.parametrize("name", ["popularity", "events", "shown", "clicked", "bought"])
def test_counters_of_another_length_are_refused(chain: Chain, name: str) -> None:
    counters = {**chain.delta.groups["counters"], name: chain.delta.groups["counters"][name][..., :-1]}
    with pytest.raises(BundleFormatError, match="version 2 of 'home'"):
        chain.build(chain.delta._replace(groups={**chain.delta.groups, "counters": counters}), chain.served)


def test_a_warm_start_checks_the_same(chain: Chain) -> None:
    learner = Learner(chain.encoder, catalogue_of(chain.encoder, []), LearnerSettings())
    for case, bad in islice(damaged(chain.full), 0, None, 7):
        with pytest.raises(BundleFormatError, match=case.split()[0].split(".")[0]):
            load_bundle_into(learner, bad)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_bundle_is_refused_as_it_is_read(tmp_path: Path, value: float) -> None:
    groups = {"counters": {"a": torch.ones(3)}, "heads": {"b": torch.tensor([1.0, value]).half()}}
    fields: dict[str, Any] = {
        "scenario": "home",
        "version": 1,
        "kind": "full",
        "snapshot": 1,
        "base_digest": "base-1",
        "offsets": {},
    }
    fields |= {"watermark_ms": 1, "published_at_ms": 1, "events_learned": 1}
    write_bundle(tmp_path / "passed", groups=groups, adapter_config={}, item_ids=[], **fields)
    with pytest.raises(BundleFormatError, match=r"tensor heads\.b must hold finite values, got (nan|inf); publish"):
        read_bundle(tmp_path / "passed", base_digest=None)
    gate = {"decision": "refused", "reasons": ["not finite"]}
    write_bundle(tmp_path / "refused", groups=groups, adapter_config={}, item_ids=[], gate=gate, **fields)
    assert read_bundle(tmp_path / "refused", base_digest=None).groups["heads"]  # kept for inspection


def test_finite_parts_whose_scores_are_not_are_refused_before_they_are_served(chain: Chain) -> None:
    require_finite_scores(chain.served)
    weights = torch.full_like(chain.full.groups["heads"]["weights"], 3e38)
    groups = {**chain.full.groups, "heads": {**chain.full.groups["heads"], "weights": weights}}
    model = chain.build(chain.full._replace(groups=groups), None)
    with pytest.raises(BundleFormatError, match=r"expected a finite score for each of 12 items, got \d+"):
        require_finite_scores(model)


@pytest.mark.parametrize(("value", "rule"), [(torch.nan, "not_finite"), (torch.inf, "not_finite"), (-1.0, "bound")])
@pytest.mark.parametrize("name", ["events", "popularity", "transition.count", "shown"])
def test_the_gate_refuses_counters_that_cannot_be_counts(tmp_path: Path, name: str, value: float, rule: str) -> None:
    publications = Publications(tmp_path)
    publications.learner.add_items(ITEMS)
    publications.learn(32)
    groups = publications.learner.bundle_groups(full=True)
    assert judge_candidate(groups, GateSettings())["decision"] == "passed"
    counters = {**groups["counters"], name: groups["counters"][name].clone()}
    counters[name].view(-1)[0] = value
    verdict = judge_candidate({**groups, "counters": counters}, GateSettings())
    assert (verdict["decision"], verdict["rules"]) == ("refused", [rule])
    assert f"counters.{name}" in verdict["reasons"][0]


def test_a_check_of_values_finds_them_anywhere_and_in_every_type() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for place in (0, 17, 1_000, 4_098):
            for value in (torch.nan, torch.inf, -torch.inf):
                tensor = torch.ones(4_099, dtype=dtype)
                tensor[place] = value
                assert "finite" in (fault_of(tensor, WEIGHT) or "")
    assert fault_of(torch.zeros(0), COUNT) is None
    assert fault_of(torch.ones(2).double(), COUNT) == "must have type float32, got float64"
    assert fault_of(torch.ones(2, dtype=torch.float8_e4m3fn), WEIGHT)
    assert fault_of(torch.tensor([1e20]), COUNT) == "must hold values of at most 9.0072e+15, got 1e+20"
