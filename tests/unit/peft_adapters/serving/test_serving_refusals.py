"""Bundles that the model builder refuses; the served model is not changed by the attempt."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learnt_chain import Publications, catalogue_of
from tiny_model import tiny_encoder, titled

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.errors import BundleBaseMismatchError, BundleFormatError
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.ranking.outcomes import INPUTS
from peft_adapters.registry.bundle import Bundle
from peft_adapters.serving.model_builder import build_model
from peft_adapters.serving.served_model import ServedModel

ITEMS = titled(12)


class Served:
    """A served version 1, and the delta to version 2."""

    def __init__(self, directory: Path) -> None:
        publications = Publications(directory)
        publications.learner.add_items(ITEMS)
        publications.learn(32)
        self.encoder: Encoder = tiny_encoder()
        self.catalogue: Catalogue = catalogue_of(self.encoder, ITEMS)
        self.full = publications.read(publications.full(1))
        self.model: ServedModel = self.build(self.full, None)
        publications.learn(32)
        self.delta = publications.read(publications.delta(2))

    def build(self, bundle: Bundle, previous: ServedModel | None) -> ServedModel:
        return build_model([bundle], previous=previous, catalogue=self.catalogue, encoder=self.encoder)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def not_a_number(bundle: Bundle) -> None:
    bundle.groups["heads"]["weights"][3] = torch.nan


def infinite_adapter(bundle: Bundle) -> None:
    next(iter(bundle.groups["adapter_model"].values()))[0, 0] = torch.inf


def a_probability_of_other_inputs(bundle: Bundle) -> None:
    bundle.groups["heads"]["click"] = torch.zeros(3)


def a_probability_that_is_none(bundle: Bundle) -> None:
    bundle.groups["heads"] |= {"click": torch.zeros(INPUTS), "purchase": torch.full((INPUTS,), torch.nan)}


def residual_of_no_item(bundle: Bundle) -> None:
    bundle.groups["residuals"]["query.rows"][0] = 12


def residuals_of_another_width(bundle: Bundle) -> None:
    bundle.groups["residuals"]["query.values"] = bundle.groups["residuals"]["query.values"][:, :-1]


def residuals_without_a_scale(bundle: Bundle) -> None:
    bundle.groups["residuals"]["candidate.scales"] = bundle.groups["residuals"]["candidate.scales"][:-1]


def no_counters(bundle: Bundle) -> None:
    del bundle.groups["counters"]


def counters_of_another_catalogue(bundle: Bundle) -> None:
    for name in ("events", "popularity"):
        bundle.groups["counters"][name] = bundle.groups["counters"][name][..., :-1]


def count_of_no_item(bundle: Bundle) -> None:
    bundle.groups["counters"]["transition.row"][0] = 99


def session_in_no_slot(bundle: Bundle) -> None:
    bundle.groups["session_neighbours"]["slots"][0] = 50_000


def session_of_no_item(bundle: Bundle) -> None:
    bundle.groups["session_neighbours"]["items"][0] = 12


def session_of_more_items_than_there_are(bundle: Bundle) -> None:
    bundle.groups["session_neighbours"]["lengths"][0] += 1


def session_longer_than_a_slot(bundle: Bundle) -> None:
    sessions = bundle.groups["session_neighbours"]
    missing = 65 - int(sessions["lengths"][0])
    sessions["lengths"][0] = 65
    sessions["items"] = torch.nn.functional.pad(sessions["items"], (missing, 0))


def sessions_without_a_time(bundle: Bundle) -> None:
    bundle.groups["session_neighbours"]["last_ms"] = bundle.groups["session_neighbours"]["last_ms"][1:]


def an_item_twice(bundle: Bundle) -> None:
    bundle.item_ids.append("item-0")


def too_few_heads(bundle: Bundle) -> None:
    bundle.groups["heads"]["weights"] = bundle.groups["heads"]["weights"][:-1]


@pytest.mark.parametrize(
    "damage",
    [
        not_a_number,
        infinite_adapter,
        residual_of_no_item,
        a_probability_of_other_inputs,
        a_probability_that_is_none,
        residuals_of_another_width,
        residuals_without_a_scale,
        no_counters,
        counters_of_another_catalogue,
        count_of_no_item,
        session_in_no_slot,
        session_of_no_item,
        session_of_more_items_than_there_are,
        session_longer_than_a_slot,
        sessions_without_a_time,
        an_item_twice,
        too_few_heads,
    ],
)
def test_parts_that_do_not_fit_are_refused_and_nothing_served_changes(
    served: Served, damage: Callable[[Bundle], None]
) -> None:
    context = served.model.context([1, 2], [0, 1])
    before = served.model.ranker.score(context)
    damage(served.delta)
    with pytest.raises(BundleFormatError, match="version 2 of 'home': its parts do not fit together"):
        served.build(served.delta, served.model)
    torch.testing.assert_close(served.model.ranker.score(context), before, atol=0, rtol=0)


def test_another_base_is_refused(served: Served) -> None:
    other = served.full._replace(manifest=served.full.manifest.model_copy(update={"base_digest": "f" * 64}))
    with pytest.raises(BundleBaseMismatchError, match="use it with the encoder it was trained on"):
        served.build(other, served.model)


def test_an_adapter_of_another_strength_is_refused_though_its_tensors_fit(served: Served) -> None:
    served.full.adapter_config["lora_alpha"] = 32
    with pytest.raises(BundleBaseMismatchError, match=r"expected `lora_alpha` 16 .* found 32"):
        served.build(served.full, None)


def test_an_adapter_with_other_tensors_is_refused(served: Served) -> None:
    served.full.groups["adapter_model"].popitem()
    with pytest.raises(BundleBaseMismatchError, match="do not fit this encoder's LoRA configuration"):
        served.build(served.full, None)


def test_a_delta_is_refused_without_the_version_it_builds_on(served: Served) -> None:
    with pytest.raises(BundleFormatError, match="expected to build on version 1, found nothing"):
        served.build(served.delta, None)
    second = served.build(served.delta, served.model)
    with pytest.raises(BundleFormatError, match="expected to build on version 1, found version 2"):
        served.build(served.delta, second)


def test_a_full_bundle_replaces_whatever_is_served(served: Served) -> None:
    second = served.build(served.delta, served.model)
    assert served.build(served.full, second).version == 1


def test_no_bundle_is_a_fault_of_the_caller(served: Served) -> None:
    with pytest.raises(ValueError, match="at least one bundle"):
        build_model([], previous=None, catalogue=served.catalogue, encoder=served.encoder)
