"""Streaming against its limits: which one binds, what was missed, what guesses were worth, and wrong prefetches."""

from __future__ import annotations

from typing import Any

import pytest

from edgemoe.bench.limits import forecast_report, guess_report, limit_report, missed_bytes
from edgemoe.bench.measure import Measured, Round
from edgemoe.bench.plan import assume_uniform
from edgemoe.bench.rates import DiskRate
from edgemoe.bench.roofline import ReadRate
from edgemoe.bench.speed import MachineRates, TokenWork, predict_speed

WORK = TokenWork(
    layers=4,
    moe_layers=4,
    experts_per_token=2,
    expert_bytes=900.0,
    record_bytes=1000.0,
    shared_bytes=0.0,
    rest_bytes=5e3,
)


def answer(seconds: float, disk_bytes: int, **counters: int) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("prefetched_reads", "prefetched_bytes", "useful_prefetches", "guessable_uses", "guessed_uses"), 0
    )
    return {"continuation_s": seconds, "disk_bytes": disk_bytes, **nothing, **counters}


def measured(*rounds: tuple[dict[str, Any], float, float | None], direct: bool = True) -> Measured:
    """Rounds of an answer, the disk's rate and the memory's."""
    taken = [
        Round(None if memory is None else ReadRate(memory, 64), DiskRate(disk, 1000, 4, direct), {"one": given}, {})
        for given, disk, memory in rounds
    ]
    return Measured(taken, 0.0, 0.0)


def test_the_lower_limit_of_each_round_is_the_one_that_counts() -> None:
    report = limit_report(
        measured(
            (answer(2.0, 4000), 2000.0, 1000.0),  # 400 bytes a token: 5/s; memory 10/s; reached 5/s
            (answer(4.0, 1000), 2000.0, 1000.0),  # 100 bytes a token: 20/s; memory binds with 10/s; reached 2.5/s
        ),
        "one", bytes_per_token=100.0, decode_tokens=10, record_bytes=100,
    )  # fmt: skip
    assert report is not None
    assert report.missed_bytes_per_token.samples == [400.0, 100.0]
    assert report.disk_tokens_per_s is not None
    assert report.disk_tokens_per_s.samples == [5.0, 20.0]
    assert report.memory_tokens_per_s is not None
    assert report.memory_tokens_per_s.samples == [10.0, 10.0]
    assert report.share is not None
    assert report.share.samples == [1.0, 0.25]
    assert (report.readers, report.read_bytes, report.direct) == (4, 1000, True)


def test_without_a_memory_rate_the_disk_is_the_limit() -> None:
    report = limit_report(measured((answer(2.0, 4000), 2000.0, None), direct=False), "one", 100.0, 10, 100)
    assert report is not None
    assert report.memory_tokens_per_s is None
    assert report.share is not None
    assert report.share.samples == [1.0]
    assert not report.direct


def test_where_nothing_was_missed_memory_is_the_limit() -> None:
    report = limit_report(measured((answer(2.0, 0), 2000.0, 1000.0)), "one", 100.0, 10, 100)
    assert report is not None
    assert report.disk_tokens_per_s is None
    assert report.share is not None
    assert report.share.samples == [0.5]
    nothing_known = limit_report(measured((answer(2.0, 0), 2000.0, None)), "one", 100.0, 10, 100)
    assert nothing_known is not None
    assert nothing_known.share is None


def test_no_disk_rate_no_limits() -> None:
    assert limit_report(Measured([Round(None, None, {"one": answer(1.0, 0)}, {})], 0.0, 0.0), "one", 1.0, 1, 1) is None


def test_what_was_read_in_vain_was_not_missed() -> None:
    assert missed_bytes(answer(1.0, 1000), 100) == 1000
    assert missed_bytes(answer(1.0, 1000, prefetched_reads=4, useful_prefetches=3), 100) == 900
    # guesses of an earlier run may be used in this one
    assert missed_bytes(answer(1.0, 1000, prefetched_reads=1, useful_prefetches=3), 100) == 1000
    assert missed_bytes(answer(1.0, 100, prefetched_reads=4, useful_prefetches=0), 100) == 0


def test_guesses() -> None:
    report = guess_report(
        [
            answer(1.0, 0, prefetched_reads=6, prefetched_bytes=600, useful_prefetches=3, guessable_uses=10,
                   guessed_uses=8),
            answer(1.0, 0, prefetched_reads=2, prefetched_bytes=200, useful_prefetches=1, guessable_uses=10,
                   guessed_uses=9),
        ],
        4,
    )  # fmt: skip
    assert (report.recall, report.reads_per_token, report.useful_share, report.bytes_per_token) == (0.85, 1, 0.5, 100)
    none = guess_report([answer(1.0, 0)], 4)
    assert (none.recall, none.reads_per_token, none.useful_share) == (None, 0, None)


def test_a_prediction_and_what_was_wrong_with_it() -> None:
    rates = MachineRates(1e6, 1e5)
    at_half = predict_speed(WORK, 0.5, rates).likely
    report = forecast_report(
        16, 32, WORK, assume_uniform(), rates, missed_bytes_per_token=0.25 * 8 * 1000, measured=2 * at_half
    )
    assert report.hit_rates.likely == 0.5
    assert report.tokens_per_s.likely == at_half
    assert report.error_percent == pytest.approx(-50)
    assert report.at_measured_hits == predict_speed(WORK, 0.75, rates)
    better = 100 * (report.at_measured_hits.likely / (2 * at_half) - 1)
    assert report.error_at_measured_hits_percent == pytest.approx(better)
    assert better > -50


def test_a_prediction_of_a_model_in_memory() -> None:
    rates = MachineRates(1e6, float("inf"))
    report = forecast_report(32, 32, WORK, assume_uniform(), rates, 0.0, 100.0)
    assert report.routing == "all experts in memory"
    assert report.tokens_per_s == report.at_measured_hits
    assert report.error_percent == report.error_at_measured_hits_percent
