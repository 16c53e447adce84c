"""Steps with drafts against steps of one token: what is measured, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.bench.drafts import DraftsMeasurement
from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
from edgemoe.bench.speed import MachineRates
from edgemoe.cli.company import drafts_table
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.select import describe_backend
from edgemoe.lab.trace import write_trace
from tests.lab.traces import make_shape, random_trace
from tests.support.checkpoints import SMALL_MIXTRAL

SETTINGS = Settings(prompt_tokens=4, decode_tokens=5, prefill_tokens=4, repeats=2)


def test_a_measurement(store_without_text: Path, tmp_path: Path, start: Start) -> None:
    layers, experts = SMALL_MIXTRAL["num_hidden_layers"], SMALL_MIXTRAL["num_local_experts"]
    write_trace(tmp_path / "r", random_trace(make_shape(layers, experts, 1), 4, 60))
    for ram, routing in ((None, None), ("floor", tmp_path / "r")):
        report = DraftsMeasurement(
            store_without_text, SETTINGS, describe_backend(1), EngineOptions(ram), [1, 3], routing=routing, start=start,
            draft=None if ram else str(store_without_text), rates_of=lambda store, resident: MachineRates(1e10, 1e9),
        ).run()  # fmt: skip
        assert report.none.against_none.samples == report.none.step_cost.samples == [1.0, 1.0]
        for one in report.drafted:
            for gain, cost in zip(one.against_none.samples, one.step_cost.samples, strict=True):
                assert gain * cost == pytest.approx(1 + one.drafts)
            assert one.against_bytes.samples == one.against_none.over(one.by_bytes).samples
        none, (single, triple) = report.none, report.drafted
        assert none.by_bytes.samples == [1.0, 1.0]
        assert (
            none.distinct_experts
            == (1 if routing else SMALL_MIXTRAL["num_experts_per_tok"])
            < triple.distinct_experts
            <= experts
        )
        assert none.distinct_experts <= single.distinct_experts <= triple.distinct_experts
        assert 1 < single.by_bytes.median <= 2
        if ram is None:
            assert report.draft == "no-text"
            assert report.memory["draft_model_bytes"] > 0
            assert triple.missed_experts.max == 0
        else:
            assert 0 < none.missed_experts.median <= triple.missed_experts.median <= triple.distinct_experts
        assert json.loads(json.dumps(report.to_json()))["drafted"][1]["drafts"] == 3
        assert ("drafts" in dict(drafts_table(report)[1])["decode"]) == (ram is None)
        title, rows = drafts_table(report)
        assert [name for name, _ in rows] == ["kernels", "budget", "decode", "no drafts", "1 draft", "3 drafts"]
        assert title == "no-text, drafts that are verified: 2 rounds, medians (least to most)"


def test_numbers_out_of_range_are_refused(store_without_text: Path) -> None:
    for counts in ([], [0], [32]):
        with pytest.raises(UsageError, match="`speculate`: expected numbers"):
            DraftsMeasurement(store_without_text, SETTINGS, describe_backend(1), EngineOptions(), counts)
    with pytest.raises(UsageError, match="would have"):
        DraftsMeasurement(store_without_text, Settings(4, 5000, 4, 1), describe_backend(1), EngineOptions(), [3])
