"""Whole benchmarks of a tiny store, each engine in a process of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.benchmark import Benchmark
from edgemoe.bench.measure import Settings
from edgemoe.bench.peers import LLAMA_CPP, Peer, open_peer
from edgemoe.bench.report import Report
from edgemoe.bench.startup import command_seconds
from edgemoe.errors import BudgetError, EdgemoeError, SourceError, UsageError
from edgemoe.kernels.select import describe_backend
from edgemoe.session.default_model import find_model

SETTINGS = Settings(prompt_tokens=5, decode_tokens=8, prefill_tokens=20, repeats=2)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, (int, float)) else []


def check_sums(report: Report) -> None:
    """Of a model as small as this the calls themselves are a part; the bundled one is held to 3 %, elsewhere."""
    for ledger in (report.decode_ledger, report.prefill_ledger):
        assert 0.5 < sum(ledger.parts_ms.values()) / ledger.wall_ms <= 1.001
        assert min(ledger.parts_ms.values()) >= 0
        assert {"attention", "experts", "head", "python"} <= ledger.parts_ms.keys()


def test_a_report_beside_another_engine(store: Path, gguf: Path, fake_llama_cpp: Path) -> None:
    with open_peer(store, gguf, 2, SETTINGS.context_tokens, mmap=False) as peer:
        report = Benchmark(store, SETTINGS, describe_backend(2), None, peer).run()
    assert report.peer is not None
    assert report.ratios is not None
    assert report.ratios.startup is not None
    assert report.edgemoe.about["kernels"]["threads"] == report.peer.about["threads"] == 2
    for engine in (report.edgemoe, report.peer):
        assert len(engine.decode_tokens_per_s.samples) == len(engine.prefill_tokens_per_s.samples) == 2
        assert engine.startup_s is not None
        assert engine.startup_s.min > 0.01
        assert engine.peak_rss_bytes > 1 << 20
    paired = zip(report.edgemoe.decode_tokens_per_s.samples, report.peer.decode_tokens_per_s.samples, strict=True)
    assert report.ratios.decode.samples == [ours / theirs for ours, theirs in paired]
    assert report.roofline is not None
    assert report.roofline.share.max == pytest.approx(
        max(
            report.bytes_per_token * rate / read
            for rate, read in zip(
                report.edgemoe.decode_tokens_per_s.samples, report.roofline.read_bytes_per_s.samples, strict=True
            )
        )
    )
    assert report.experts is not None
    assert len(report.experts.distinct_per_layer) == 2
    assert 2 <= min(report.experts.distinct_per_layer) <= max(report.experts.distinct_per_layer) <= 4
    assert report.experts.hit_rate == 1.0
    check_sums(report)
    data = json.loads(json.dumps(report.to_json()))
    assert data["settings"] == {
        "prompt_tokens": 5, "decode_tokens": 8, "prefill_tokens": 20, "repeats": 2, "seed": 0
    }  # fmt: skip
    assert all(number == number and abs(number) != float("inf") for number in numbers(data))
    # what edgemoe ran in a round llama.cpp ran too: prompts and tokens of 1 + 2 rounds, before 1 + 2 starts
    ids = [len(json.loads(line)["ids"]) for line in fake_llama_cpp.read_text().splitlines()]
    assert ids[:-3] == ([5] + [1] * 8 + [20]) * 3


def test_a_model_without_text_has_no_start_up(store_without_text: Path) -> None:
    report = Benchmark(store_without_text, SETTINGS, describe_backend(1), "floor").run()
    assert report.edgemoe.startup_s is None
    assert report.peer is report.ratios is None
    check_sums(report)


def test_a_model_that_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.bench.benchmark.has_tokenizer", lambda folder: False)  # no start-up, to be quick
    report = Benchmark(find_model(None), Settings(4, 12, 8, 1), describe_backend(), "floor").run()
    memory = report.edgemoe.about["memory"]
    assert memory["slots"] < memory["total_experts"]
    assert report.edgemoe.peak_rss_bytes <= memory["budget_bytes"]
    assert report.experts is not None
    assert report.experts.hit_rate is not None
    assert report.experts.hit_rate < 1
    assert report.experts.disk_bytes_per_token > 0
    assert report.decode_ledger.parts_ms["disk_wait"] > 0
    for ledger in (report.decode_ledger, report.prefill_ledger):
        assert sum(ledger.parts_ms.values()) == pytest.approx(ledger.wall_ms, rel=0.03)


def test_kernels_that_cannot_read_plainly_have_no_roofline(
    store_without_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", "reference")
    report = Benchmark(store_without_text, Settings(3, 3, 3, 1), describe_backend()).run()
    assert report.roofline is None
    assert report.edgemoe.about["kernels"]["backend"] == "reference"
    check_sums(report)


def test_another_model_s_file_is_refused(store: Path, tmp_path: Path, fake_llama_cpp: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_text(json.dumps({"vocabulary": 101, "layers": 3, "model_width": 64}))
    with open_peer(store, other, 1, SETTINGS.context_tokens, mmap=False) as peer:
        benchmark = Benchmark(store, Settings(2, 2, 2, 1), describe_backend(1), None, peer)
        with pytest.raises(SourceError, match="expected layers 2, found 3"):
            benchmark.run()


def test_what_cannot_be_measured_is_refused(store: Path) -> None:
    with pytest.raises(UsageError, match="300 tokens in one sequence were asked for; this model has 256"):
        Benchmark(store, Settings(100, 200, 5, 1), describe_backend(1))
    with pytest.raises(BudgetError, match="at least"):
        Benchmark(store, Settings(2, 2, 2, 1), describe_backend(1), "1MiB").run()


def test_a_command_that_fails_is_told(store_without_text: Path) -> None:
    with pytest.raises(EdgemoeError, match="no tokenizer"):
        command_seconds(store_without_text, None, 1)


def test_an_engine_that_dies_is_told(store: Path, tmp_path: Path) -> None:
    peer = Peer(LLAMA_CPP, [sys.executable, "-c", "raise SystemExit('no luck')"], {})
    with pytest.raises(EdgemoeError, match=r"llama\.cpp: its process ended with code 1, saying: no luck"):
        Benchmark(store, Settings(2, 2, 2, 1), describe_backend(1), None, peer).run()
