"""Sequences that decode together against one alone: what is measured, shown and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
from edgemoe.bench.sequences import SequencesMeasurement, SequencesReport
from edgemoe.cli.company import sequences_table
from edgemoe.cli.main import run_command
from edgemoe.cli.options import parse_counts
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.select import describe_backend
from edgemoe.lab.trace import write_trace
from tests.lab.traces import make_shape, random_trace
from tests.support.checkpoints import SMALL_MIXTRAL

SETTINGS = Settings(prompt_tokens=4, decode_tokens=5, prefill_tokens=4, repeats=2)


def measured(store: Path, start: Start, ram: str | None = None, routing: Path | None = None) -> SequencesReport:
    kernels, options = describe_backend(1), EngineOptions(ram)
    return SequencesMeasurement(store, SETTINGS, kernels, options, [2, 3], routing=routing, start=start).run()


def test_a_measurement(store_without_text: Path, start: Start) -> None:
    report = measured(store_without_text, start)
    assert report.one.against_one.samples == [1.0, 1.0]
    assert [one.sequences for one in report.together] == [2, 3]
    for one in report.together:
        for together, alone, ratio in zip(
            one.tokens_per_s.samples, report.one.tokens_per_s.samples, one.against_one.samples, strict=True
        ):
            assert ratio == pytest.approx(together / alone)
        assert (one.hit_rate, one.disk_bytes_per_token) == (1.0, 0.0)
    assert json.loads(json.dumps(report.to_json()))["together"][1]["sequences"] == 3
    title, rows = sequences_table(report)
    names = [name for name, _ in rows]
    assert names == ["kernels", "budget", "decode", "one sequence", "2 sequences", "3 sequences"]
    assert title == "no-text, sequences that decode together: 2 rounds, medians (least to most)"


def test_sequences_that_are_streamed_on_the_routing_of_a_trace(
    store_without_text: Path, tmp_path: Path, start: Start
) -> None:
    layers, experts = SMALL_MIXTRAL["num_hidden_layers"], SMALL_MIXTRAL["num_local_experts"]
    write_trace(tmp_path / "r", random_trace(make_shape(layers, experts, 1), 4, 40))
    report = measured(store_without_text, start, "floor", tmp_path / "r")
    assert report.routing == str(tmp_path / "r")
    for one in (report.one, *report.together):
        assert 0 < one.hit_rate < 1
        assert one.disk_bytes_per_token > 0
    rows = dict(sequences_table(report)[1])
    assert "another part for each sequence; no prefetch" in rows["decode"]
    assert "of experts hit" in rows["2 sequences"]


def test_numbers_are_checked(store_without_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_counts("--beside", "1, 2,4", "processes") == [1, 2, 4]
    for text in ("", "1,", "two", "-1", "1.5", "999999"):
        with pytest.raises(UsageError, match=r"--sequences .*: expected numbers of sequences"):
            parse_counts("--sequences", text, "sequences")
    for text in ("1", "0", "2,257"):
        assert run_command(["bench", str(store_without_text), "--sequences", text]) == 2
        assert "expected numbers of 2 to 256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--limit", "1GiB"], "--sequences excludes --limit."),
        (["--prefill", "256", "--mmap"], "--sequences excludes --prefill and --mmap."),
        (["--beside", "1"], "--beside excludes"),
        (["--quality"], "--quality excludes"),
        (["--decode", "4000"], "Each sequence would have 4040 tokens"),
        (["--context", "256", "--prompt", "200", "--decode", "56"], "Each sequence would have 264 tokens"),
        (["--recall", "80"], "--recall needs --routing"),
    ],
)
def test_what_is_refused(
    arguments: list[str], says: str, store_without_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["bench", str(store_without_text), "--sequences", "2", *arguments]) == 2
    assert says in capsys.readouterr().err
