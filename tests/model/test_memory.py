"""The memory plan: what sizes mean, that the parts never exceed the budget, and what is refused."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgemoe.errors import BudgetError, UsageError
from edgemoe.model.memory import ModelSizes, format_size, parse_size, plan_memory
from edgemoe.model.spec import AttentionSpec, LayerSpec, ModelSpec, MoeSpec, RopeSpec

MIB = 1 << 20
ATTENTION = AttentionSpec(query_heads=8, kv_heads=2, head_width=64, scale=0.125)
SPEC = ModelSpec(
    family="test",
    vocabulary=32_000,
    model_width=512,
    layers=tuple(LayerSpec(ATTENTION, MoeSpec(16, 2, 1024, True)) for _ in range(12)),
    norm_epsilon=1e-5,
    rope=RopeSpec(10_000.0),
    max_positions=32_768,
    tied_embeddings=True,
)
SIZES = ModelSizes(resident_bytes=80 * MIB, slot_bytes=900 * 1024, total_experts=16 * 12, kv_element_bytes=2)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 * MIB),
        ("6GiB", 6 << 30),
        ("6GB", 6 * 10**9),
        ("1.5g", 3 << 29),
        ("1000000", 10**6),
        (" 2 kb ", 2000),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "lots", "-5GiB", "5 GiBs", "1e9", "0x10", "٣GiB", "9" * 40, "1.GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (5 << 20, "5.0 MiB"), (6 << 30, "6.00 GiB"), (2048, "2 KiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(extra=st.integers(0, 3 << 30))
def test_parts_fill_but_never_exceed_the_budget(extra: int) -> None:
    floor = plan_memory(SPEC, SIZES, "floor").floor_bytes
    plan = plan_memory(SPEC, SIZES, floor + extra + 4 * MIB)
    assert plan.planned_bytes <= plan.budget_bytes
    assert plan.slots >= 4  # two tokens' worth of a layer
    assert plan.all_resident or plan.budget_bytes - plan.planned_bytes < plan.slot_bytes
    assert plan.context_length >= 512


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_more_memory_never_means_less(first: int, second: int) -> None:
    assume(first < second)
    floor = plan_memory(SPEC, SIZES, "floor").floor_bytes + 8 * MIB
    smaller, larger = plan_memory(SPEC, SIZES, floor + first), plan_memory(SPEC, SIZES, floor + second)
    assert smaller.context_length <= larger.context_length
    assert smaller.chunk_tokens <= larger.chunk_tokens
    assert smaller.all_resident <= larger.all_resident


def test_below_the_floor_is_refused_with_the_floor() -> None:
    floor = plan_memory(SPEC, SIZES, "floor")
    with pytest.raises(BudgetError, match=r"needs at least .* MiB of memory; the budget is 100\.0 MiB.*--ram \d+MiB"):
        plan_memory(SPEC, SIZES, "100MiB")
    assert floor.budget_bytes == floor.floor_bytes
    assert floor.slots == 4


@pytest.mark.parametrize("ram", ["0", 0, -5, "0GiB"])
def test_a_budget_of_nothing(ram: str | int) -> None:
    with pytest.raises(UsageError, match="cannot be met"):
        plan_memory(SPEC, SIZES, ram)


def test_all_resident_where_it_fits_and_a_long_context_then() -> None:
    plan = plan_memory(SPEC, SIZES, "2GiB")
    assert plan.all_resident
    assert plan.slots == SIZES.total_experts
    assert plan.context_length == 4096


def test_an_asked_for_context_is_kept_or_refused() -> None:
    assert plan_memory(SPEC, SIZES, "2GiB", context_length=20_000).context_length == 20_000
    with pytest.raises(UsageError, match="1 to 32768"):
        plan_memory(SPEC, SIZES, "2GiB", context_length=40_000)
    with pytest.raises(BudgetError):
        plan_memory(SPEC, SIZES, plan_memory(SPEC, SIZES, "floor").floor_bytes, context_length=20_000)


def test_a_dense_model_needs_no_slots() -> None:
    plan = plan_memory(SPEC, dataclasses.replace(SIZES, slot_bytes=0, total_experts=0), "floor")
    assert plan.slots == 0
    assert plan.all_resident
