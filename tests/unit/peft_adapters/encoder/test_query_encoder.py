"""A query has the vector of an item with the same text, under the serving adapter, from any thread."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_families import tiny_model_of
from tiny_model import tiny_encoder
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from peft_adapters.encoder.encoder import Encoder, MergedSuffix
from peft_adapters.encoder.query_encoder import QueryEncoder
from peft_adapters.settings import EncoderSettings

QUERIES = ["red mug", "a very large round glass vase with a red bird on it", "lamp", "oak"]


def adapted(encoder: Encoder, seed: int) -> MergedSuffix:
    generator = torch.Generator().manual_seed(seed)
    encoder.load_lora(
        {name: torch.randn(value.shape, generator=generator) for name, value in encoder.lora_state().items()}
    )
    return encoder.merged()


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "Llama", "Gemma3Text"])
def test_a_query_has_the_vector_that_an_item_of_the_same_text_has(family: str) -> None:
    settings: dict[str, Any] = {"cache_dir": None, "activations": "float32", "lora_rank": 4}
    encoder = Encoder(EncoderSettings(model=str(tiny_model_of(family)), **settings))
    suffix, queries = adapted(encoder, 1), QueryEncoder(encoder)
    of_items = normalize(suffix(encoder.prefix(QUERIES)), dim=1)
    torch.testing.assert_close(torch.stack([queries(query, suffix) for query in QUERIES]), of_items, atol=1e-5, rtol=0)
    bits = [states.numpy().tobytes() for states in encoder.prefix(QUERIES)]
    assert [states.numpy().tobytes() for states in encoder.prefix(QUERIES)] == bits, "the encoder is as it was"


def test_a_query_is_never_answered_with_the_vector_of_another_adapter() -> None:
    encoder = tiny_encoder()
    one, other = adapted(encoder, 1), adapted(encoder, 2)
    queries = QueryEncoder(encoder)
    first = queries("red mug", one)
    second = queries("red mug", other)
    assert not torch.allclose(first, second, atol=0.01)
    assert torch.equal(queries("red mug", one), first)
    assert torch.equal(QueryEncoder(encoder)("red mug", other), second)
    assert (queries.hits, queries.misses) == (2, 1), "the frozen part ran once"


def test_a_known_query_is_not_encoded_again_and_spaces_make_no_other_query() -> None:
    encoder = tiny_encoder()
    suffix, queries = adapted(encoder, 1), QueryEncoder(encoder)
    vector = queries("red mug", suffix)
    assert queries("  red   mug ", suffix) is vector
    assert len(queries) == 1


def test_the_queries_asked_for_longest_ago_are_forgotten_first() -> None:
    encoder = tiny_encoder()
    suffix, queries = adapted(encoder, 1), QueryEncoder(encoder, max_queries=2)
    for query in ("a", "b", "a", "c"):
        queries(query, suffix)
    queries("a", suffix)
    assert (queries.hits, queries.misses, len(queries)) == (2, 3, 2)
    queries("b", suffix)
    assert queries.misses == 4


def test_threads_do_not_mix_queries_up() -> None:
    encoder = tiny_encoder()
    suffix, queries = adapted(encoder, 1), QueryEncoder(encoder, max_queries=3)
    numbered = [f"{query} {number}" for number in range(5) for query in QUERIES]
    alone = [QueryEncoder(encoder)(query, suffix) for query in numbered]

    def ask(_: int) -> list[Tensor]:
        return [queries(query, suffix) for query in numbered]

    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(ask, range(4)):
            assert all(torch.equal(one, other) for one, other in zip(answers, alone, strict=True))


def test_quantised_it_is_near_and_leaves_the_encoder_alone() -> None:
    encoder = Encoder(EncoderSettings(model=str(tiny_model_of("Bert")), lora_rank=4, cache_dir=None))
    suffix = adapted(encoder, 1)
    bits = [states.numpy().tobytes() for states in encoder.prefix(QUERIES)]
    exact, quantised = QueryEncoder(encoder), QueryEncoder(encoder, int8=True)
    pairs = [(exact(query, suffix), quantised(query, suffix)) for query in QUERIES]
    assert all(float(cosine_similarity(one, other, dim=0)) > 0.95 for one, other in pairs)
    assert not all(torch.equal(one, other) for one, other in pairs)
    assert [states.numpy().tobytes() for states in encoder.prefix(QUERIES)] == bits
