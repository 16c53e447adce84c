"""Steps with drafts against steps of one token: what is measured, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.bench.drafts import DraftsMeasurement
from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
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
            store_without_text, SETTINGS, describe_backend(1), EngineOptions(ram), [1, 3], routing=routing, start=start
        ).run()
        assert report.none.against_none.samples == report.none.step_cost.samples == [1.0, 1.0]
        for one in report.drafted:
            for gain, cost in zip(one.against_none.samples, one.step_cost.samples, strict=True):
                assert gain * cost == pytest.approx(1 + one.drafts)
        assert json.loads(json.dumps(report.to_json()))["drafted"][1]["drafts"] == 3
        title, rows = drafts_table(report)
        assert [name for name, _ in rows] == ["kernels", "budget", "decode", "no drafts", "1 draft", "3 drafts"]
        assert title == "no-text, drafts that are verified: 2 rounds, medians (least to most)"


def test_numbers_out_of_range_are_refused(store_without_text: Path) -> None:
    for counts in ([], [0], [32]):
        with pytest.raises(UsageError, match="`speculate`: expected numbers"):
            DraftsMeasurement(store_without_text, SETTINGS, describe_backend(1), EngineOptions(), counts)
    with pytest.raises(UsageError, match="would have"):
        DraftsMeasurement(store_without_text, Settings(4, 5000, 4, 1), describe_backend(1), EngineOptions(), [3])
