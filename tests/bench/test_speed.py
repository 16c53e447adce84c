"""The speed model: its formula on simple numbers, and what must be so whatever the numbers are."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.bench.speed import (
    Assumptions,
    MachineRates,
    TokenWork,
    predict_speed,
    speed_limits,
    token_seconds,
    work_of_model,
)
from tests.support.engines import engine_with_slots
from tests.support.stores import small_store

WORK = TokenWork(
    layers=2,
    moe_layers=2,
    experts_per_token=2,
    expert_bytes=10.0,
    record_bytes=20.0,
    shared_bytes=0.0,
    rest_bytes=100.0,
)
RATES = MachineRates(memory_bytes_per_s=10.0, disk_bytes_per_s=4.0)
IDEAL = Assumptions(memory_share=1.0, kernel_share=1.0, disk_share=1.0, layer_s=0.0, dense_layer_s=0.0)

works = st.builds(
    TokenWork,
    layers=st.just(8),
    moe_layers=st.integers(1, 8),
    experts_per_token=st.integers(1, 16),
    expert_bytes=st.floats(1e3, 1e8),
    record_bytes=st.floats(1e3, 1e8),
    shared_bytes=st.floats(0, 1e8),
    rest_bytes=st.floats(1e5, 1e10),
)
machines = st.builds(MachineRates, st.floats(1e9, 1e12), st.floats(1e7, 1e11))
shares = st.floats(0, 1)


def test_bytes() -> None:
    assert WORK.bytes_per_token == 100 + 4 * 10
    assert WORK.missed_bytes(0.25) == 0.75 * 4 * 20
    limits = speed_limits(WORK, 0.25, RATES)
    assert limits.memory == 10 / 140
    assert limits.disk == 4 / 60
    assert limits.lower == 4 / 60
    assert speed_limits(WORK, 1.0, RATES).disk == math.inf


def test_nothing_missing_takes_what_memory_takes() -> None:
    assert token_seconds(WORK, 1.0, RATES, IDEAL) == pytest.approx(14.0)


def test_everything_missing_waits_for_all_reads_and_computes_the_last() -> None:
    # a layer: two reads of 5 s, then 1 s for the last expert; the rest takes 10 s
    assert token_seconds(WORK, 0.0, RATES, IDEAL) == pytest.approx(10 + 2 * (2 * 5 + 1))


def test_half_missing_is_the_mean_over_what_a_layer_may_miss() -> None:
    layer = 0.25 * 2 + 0.5 * (5 + 1) + 0.25 * (10 + 1)
    assert token_seconds(WORK, 0.5, RATES, IDEAL) == pytest.approx(10 + 2 * layer)


def test_reads_hide_behind_experts_that_take_longer() -> None:
    fast = MachineRates(10.0, 1000.0)
    assert token_seconds(WORK, 0.5, fast, IDEAL) == pytest.approx(14.0)
    shared = dataclasses.replace(WORK, shared_bytes=80.0)  # 4 s a layer, beside which a read of 5 s ends a second late
    assert token_seconds(shared, 1.0, RATES, IDEAL) == pytest.approx(22.0)
    assert token_seconds(shared, 0.0, RATES, IDEAL) == pytest.approx(10 + 2 * 11)


def test_kernels_slower_than_the_memory_bound_experts_alone() -> None:
    slow = dataclasses.replace(RATES, kernel_bytes_per_s=2.0)
    assert token_seconds(WORK, 1.0, RATES, IDEAL) == pytest.approx(10 + 4)
    assert token_seconds(WORK, 1.0, slow, IDEAL) == pytest.approx(10 + 20)
    assert predict_speed(WORK, 1.0, slow).high == pytest.approx(2.0 / 40)
    fast = dataclasses.replace(RATES, kernel_bytes_per_s=1e3)
    assert predict_speed(WORK, 1.0, fast) == predict_speed(WORK, 1.0, RATES)


def test_layers_cost_a_fixed_time_that_streaming_makes_longer() -> None:
    assumed = dataclasses.replace(IDEAL, layer_s=3.0, dense_layer_s=0.5)
    assert token_seconds(WORK, 1.0, RATES, assumed) == pytest.approx(14 + 6)
    assert token_seconds(WORK, 1.0, RATES, assumed, all_resident=True) == pytest.approx(14 + 1)


def test_a_model_without_experts_is_bound_by_memory_alone() -> None:
    dense = dataclasses.replace(WORK, moe_layers=0)
    estimate = predict_speed(dense, 0.0, RATES)
    assert estimate.high == 10 / 100
    assert estimate.low < estimate.likely < estimate.high


@given(works, shares, machines)
def test_estimates_are_in_order_and_below_both_limits(work: TokenWork, hit_rate: float, rates: MachineRates) -> None:
    estimate = predict_speed(work, hit_rate, rates)
    assert 0 < estimate.low <= estimate.likely * (1 + 1e-9)
    assert estimate.likely <= estimate.high * (1 + 1e-9)


@given(works, shares, shares, machines)
def test_more_hits_never_slow_down(work: TokenWork, one: float, other: float, rates: MachineRates) -> None:
    fewer, more = (predict_speed(work, hit_rate, rates) for hit_rate in sorted((one, other)))
    for name in ("low", "likely", "high"):
        assert getattr(fewer, name) <= getattr(more, name) * (1 + 1e-9)


@given(works, shares, machines, st.floats(1, 10))
def test_faster_machines_are_faster(work: TokenWork, hit_rate: float, rates: MachineRates, times: float) -> None:
    faster = MachineRates(rates.memory_bytes_per_s * times, rates.disk_bytes_per_s * times)
    slow, fast = predict_speed(work, hit_rate, rates), predict_speed(work, hit_rate, faster)
    assert slow.likely <= fast.likely * (1 + 1e-9)
    assert fast.high == pytest.approx(slow.high * times)


def test_all_in_memory_needs_no_disk() -> None:
    estimate = predict_speed(WORK, 0.1, RATES, all_resident=True)
    assert estimate == predict_speed(WORK, 0.9, MachineRates(10.0, 1e-9), all_resident=True)
    assert estimate.high == 10 / 140


def test_the_work_of_a_store_s_token(tmp_path: Path) -> None:
    store = small_store(tmp_path, experts="q4", dense="q8")
    with engine_with_slots(store.path, 8) as engine:
        work = work_of_model(engine.spec, engine.traffic, store.record_bytes, 20.5)
        assert work.bytes_per_token == pytest.approx(engine.traffic.at(20.5))
    assert (work.layers, work.moe_layers, work.experts_per_token) == (2, 2, 2)
    layout = store.layouts_of_layers[0][0].matrices
    assert work.expert_bytes == layout.gate_up_bytes + layout.down_bytes
    assert work.missed_bytes(0.0) == 4 * store.record_bytes
