"""A replay's report: what is recommended and why, its JSON, its picture, and the rates it goes by."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench import replay_rates
from edgemoe.bench.rates import DiskRate
from edgemoe.bench.replay_plot import draw_replay
from edgemoe.bench.replay_rates import find_rates
from edgemoe.bench.replay_report import (
    ReplayReport,
    parse_capacities,
    parse_policies,
    recommend,
    replay_report,
    work_of_trace,
)
from edgemoe.bench.roofline import ReadRate
from edgemoe.bench.speed import MachineRates
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.lab.replay import Replay, ReplayResult
from edgemoe.lab.trace import read_trace
from tests.lab.traces import make_shape, random_trace
from tests.support.shared_data import shared_file

RATES = MachineRates(memory_bytes_per_s=1e6, disk_bytes_per_s=1e5)


def small_report(rates: MachineRates | None = RATES, decode_tokens: int = 40) -> ReplayReport:
    trace = random_trace(make_shape(4, 16, 2), 10, decode_tokens)
    return replay_report(Replay(trace), Path("some.csv"), ["lru", "lfu", "belady"], [10, 50, 100], rates, "as given")


def result(policy: str, capacity: float, hits: int) -> ReplayResult:
    return ReplayResult(policy, capacity, int(capacity), int(capacity) << 20, 0, 0, 1000, hits, 1.0, 1, np.ones((1, 1)))


def curve(policy: str, *hits: int) -> list[ReplayResult]:
    return [result(policy, capacity, hit) for capacity, hit in zip((10, 20, 30, 50, 100), hits, strict=True)]


def test_the_bend_of_the_curve_is_recommended() -> None:
    chosen = recommend(curve("lru", 500, 720, 840, 900, 910))
    assert chosen is not None
    assert (chosen.policy, chosen.capacity_percent, chosen.slots, chosen.budget_bytes) == ("lru", 30, 30, 30 << 20)
    assert "20 % more of the experts added 34.0 points, and another 70 % would add 7.0" in chosen.reasons[0]
    assert chosen.reasons[1] == "only lru was replayed"


def test_another_policy_must_be_worth_it() -> None:
    lru = curve("lru", 500, 720, 840, 900, 910)
    chosen = recommend([*lru, *curve("lfu", 600, 760, 849, 901, 910)])
    assert chosen is not None
    assert (chosen.policy, "no policy beats the hit rate of lru by 1 point" in chosen.reasons[1]) == ("lru", True)
    chosen = recommend([*lru, *curve("lfu", 600, 760, 849, 901, 910), *curve("lruf", 600, 760, 860, 901, 910)])
    assert chosen is not None
    assert (chosen.policy, "lruf is 2.0 points above that of lru" in chosen.reasons[1]) == ("lruf", True)


def test_the_optimum_is_never_recommended() -> None:
    chosen = recommend([*curve("lru", 500, 720, 840, 900, 910), *curve("belady", 700, 850, 900, 910, 910)])
    assert chosen is not None
    assert chosen.policy == "lru"
    assert recommend(curve("belady", 700, 850, 900, 910, 910)) is None


def test_where_nothing_bends_the_largest_is_taken() -> None:
    chosen = recommend(curve("lru", 100, 200, 300, 500, 1000))
    assert chosen is not None
    assert (chosen.capacity_percent, "rises with every step" in chosen.reasons[0]) == (100, True)
    chosen = recommend(curve("lru", 500, 720, 840, 900, 910)[:2])
    assert chosen is not None
    assert (chosen.capacity_percent, "three or more" in chosen.reasons[0]) == (20, True)


def test_the_report_is_plain_json_with_the_optimum_beside() -> None:
    report = small_report()
    data = json.loads(json.dumps(report.to_json()))
    assert [(row["policy"], row["capacity_percent"]) for row in data["results"]] == [
        (policy, capacity) for policy in ("lru", "lfu", "belady") for capacity in (10, 50, 100)
    ]
    for row in data["results"]:
        assert 0 <= row["hit_rate"] <= row["optimum_hit_rate"] <= 1
        assert row["slots"] == {10: 6, 50: 32, 100: 64}[row["capacity_percent"]]
        assert row["budget_bytes"] == row["slots"] * 1003
        assert row["below_cycle"] == (row["capacity_percent"] == 10)
        assert row["tokens_per_s"]["low"] <= row["tokens_per_s"]["likely"] <= row["tokens_per_s"]["high"]
    assert data["model"]["total_experts"] == 64
    assert data["routing"]["accesses"] == 50 * 4 * 2
    assert data["routing"]["accesses_per_s"] > 0
    assert data["rates"] == {"memory_bytes_per_s": 1e6, "disk_bytes_per_s": 1e5}
    assert data["recommendation"]["policy"] in ("lru", "lfu")


def test_more_memory_is_no_slower() -> None:
    rows = small_report().rows_of("lru")
    speeds = [row.tokens_per_s.likely for row in rows if row.tokens_per_s is not None]
    assert speeds == sorted(speeds)
    assert len(speeds) == 3


def test_no_speeds_without_rates_or_generated_tokens() -> None:
    assert all(row.tokens_per_s is None for row in small_report(rates=None).rows)
    data = small_report(decode_tokens=0).to_json()
    for row in data["results"]:
        assert row["tokens_per_s"] is row["bytes_per_decode_token"] is row["decode_hit_rate"] is None
        assert row["prompt_hit_rate"] == row["hit_rate"]


def test_a_tokens_work_is_that_of_its_layers() -> None:
    work = work_of_trace(Replay(read_trace(shared_file("traces/qwen3-30b-a3b.csv"))))
    assert (work.layers, work.moe_layers, work.experts_per_token) == (48, 48, 6)
    assert 2654208 < work.expert_bytes < 3059712
    assert work.rest_bytes > 48 * 11e6


@pytest.mark.slow
def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = small_report()
    for drawn in (report, replace(report, recommendation=None)):
        draw_replay(drawn, tmp_path / "curve.svg")
        assert (tmp_path / "curve.svg").stat().st_size > 1000


def test_lists_of_policies_and_capacities() -> None:
    assert parse_capacities("10%, 20,33.3 %,10") == [10, 20, 33.3]
    assert parse_policies("lru, lfu:4,belady,lru") == ["lru", "lfu:4", "belady"]
    for wrong in ("", "10%,", "ten", "10%%"):
        with pytest.raises(UsageError, match="`capacity`: expected percentages"):
            parse_capacities(wrong)
    for wrong in ("", "lru,", "lru;lfu", "lfu:x"):
        with pytest.raises(UsageError, match="policy"):
            parse_policies(wrong)


def test_rates_are_measured_where_they_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_rates, "measure_memory", lambda kernels: ReadRate(2e9, 1 << 30))
    monkeypatch.setattr(replay_rates, "measure_folder_disk", lambda folder, size: DiskRate(size * 1e3, size, 2, False))
    rates, basis = find_rates(4096, None, None)
    assert rates == MachineRates(2e9, 4096e3)
    assert re.match(r"memory measured with \d+ threads; disk measured in .* \(reads through the page cache", basis)
    assert find_rates(4096, 1e9, 5e9) == (MachineRates(5e9, 1e9), "memory as given; disk as given")


def test_what_cannot_be_measured_leaves_speeds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> None:
        raise error

    monkeypatch.setattr(replay_rates, "measure_folder_disk", lambda *_: fails(OSError(28, "No space left on device")))
    rates, basis = find_rates(4096, None, 5e9)
    assert rates is None
    assert basis.endswith("cannot be measured (No space left on device): give `disk_rate`")
    monkeypatch.setattr(replay_rates, "measure_memory", lambda *_: fails(EdgemoeError("There is not enough memory.")))
    assert find_rates(4096, 1e9, None) == (None, "There is not enough memory. Give `disk_rate` and `memory_rate`.")
