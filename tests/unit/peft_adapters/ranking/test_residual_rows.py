"""Quantised residuals: exactness, selection of rows, and refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_adapters.ranking.residual_rows import dequantise_rows, quantise_rows, row_norms

SIZES = st.floats(min_value=1e-6, max_value=10.0, allow_nan=False)


@given(seed=st.integers(0, 10_000), sizes=st.lists(SIZES, min_size=1, max_size=6))
def test_a_number_is_off_by_half_a_step_of_its_own_row_at_most(seed: int, sizes: list[float]) -> None:
    table = torch.randn(len(sizes), 16, generator=torch.Generator().manual_seed(seed)) * torch.tensor(sizes)[:, None]
    rows, found = dequantise_rows(quantise_rows("query", table, range(len(table))), "query")
    assert rows.tolist() == list(range(len(table)))
    step = table.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((found - table).abs() <= 0.5001 * step).all())


def test_rows_are_sent_in_order_and_zeros_stay_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_adapters.ranking.residual_rows._CHUNK", 2)
    table = torch.zeros(9, 4)
    table[7], table[3] = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.full((4,), 1e-3)
    group = quantise_rows("candidate", table, {7, 0, 3, 8, 5})
    rows, found = dequantise_rows(group, "candidate")
    assert rows.tolist() == [0, 3, 5, 7, 8]
    torch.testing.assert_close(found, table[rows], rtol=0, atol=1 / 127)
    assert not found[[0, 2, 4]].any()
    torch.testing.assert_close(row_norms(group, "candidate"), torch.linalg.vector_norm(found, dim=1))


def test_no_rows_at_all() -> None:
    group = quantise_rows("query", torch.zeros(3, 4), set())
    rows, found = dequantise_rows(group, "query")
    assert (rows.shape, found.shape, row_norms(group, "query").shape) == ((0,), (0, 4), (0,))


def test_parts_of_different_lengths_are_refused() -> None:
    group = quantise_rows("query", torch.ones(3, 4), range(3))
    group["query.scales"] = group["query.scales"][:2]
    with pytest.raises(ValueError, match="3 rows, 3 values and 2 scales"):
        dequantise_rows(group, "query")
