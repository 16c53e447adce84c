"""From answers to figures."""

import pytest

from edgemoe.bench.report import experts_report, ledger_report
from edgemoe.bench.spread import Spread
from edgemoe.model.blocks import Attention, GatedFfn, Moe, RouterSpec
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec
from tests.bench.reports import made_up_report

ATTENTION = Attention(2, 2, 8, 0.3, RopeSpec(1e4, 8))
DENSE, SPARSE = LayerSpec.of(ATTENTION, GatedFfn(16)), LayerSpec.of(ATTENTION, Moe(8, 2, 16, RouterSpec(True)))


def spec(*layers: LayerSpec) -> ModelSpec:
    return ModelSpec("test", 100, 16, layers, 1e-5, 64, True)


def test_a_spread() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.min, spread.max, spread.samples) == (2.5, 1.0, 10.0, [3.0, 1.0, 2.0, 10.0])
    assert spread.over(Spread.of([1.0, 1.0, 4.0, 5.0])).samples == [3.0, 1.0, 0.5, 2.0]
    with pytest.raises(ValueError, match="shorter"):
        spread.over(Spread.of([1.0]))


def test_a_kept_report_begins_with_its_form_and_where_it_was_made() -> None:
    data = made_up_report().to_json()
    assert [*data][:4] == ["edgemoe_bench", "version", "machine", "model"]
    assert data["edgemoe_bench"] == 1
    assert data["version"] == "0"
    assert data["machine"]["cores"] == 4


def test_ledgers_of_turns_are_one_for_each_token() -> None:
    answers = [
        {"continuation_ns": {"head": 4_000_000, "python": 1_000_000, "text": 0}, "continuation_s": 0.006},
        {"continuation_ns": {"python": 3_000_000, "attention": 8_000_000}, "continuation_s": 0.012},
    ]
    ledger = ledger_report(answers, "continuation", 2, {"attention": 1000.0, "combine": 1.0})
    assert ledger.tokens == 4
    assert ledger.wall_ms == pytest.approx(4.5)
    assert list(ledger.parts_ms) == ["attention", "head", "python"]
    assert ledger.parts_ms == {"attention": 2.0, "head": 1.0, "python": 1.0}
    assert ledger.bytes_per_s == {"attention": 500_000.0}


def test_experts_are_those_of_layers_that_have_some() -> None:
    answers = [
        {"expert_hits": 6, "expert_misses": 2, "disk_bytes": 800, "distinct_experts": [0, 3, 5]},
        {"expert_hits": 8, "expert_misses": 0, "disk_bytes": 0, "distinct_experts": [0, 4, 8]},
    ]
    report = experts_report(answers, spec(DENSE, SPARSE, SPARSE), 2)
    assert report is not None
    assert (report.per_layer, report.per_token) == (8, 2)
    assert report.distinct_per_layer == [3.5, 6.5]
    assert report.hit_rate == 14 / 16
    assert report.disk_bytes_per_token == 200
    assert report.round_hit_rates == [0.75, 1.0]
    assert experts_report(answers, spec(DENSE), 2) is None
