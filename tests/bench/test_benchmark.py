"""Whole benchmarks of a tiny store, each engine in a process of its own."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.benchmark import Benchmark
from edgemoe.bench.control_group import MemoryGroup
from edgemoe.bench.measure import Settings
from edgemoe.bench.peers import LLAMA_CPP, Peer, open_peer
from edgemoe.bench.protocol import Start
from edgemoe.bench.report import Report
from edgemoe.bench.startup import command_seconds
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import BudgetError, EdgemoeError, SourceError, UsageError
from edgemoe.kernels.select import describe_backend
from edgemoe.process import ControlGroup
from edgemoe.session.default_model import find_model

SETTINGS = Settings(prompt_tokens=5, decode_tokens=8, prefill_tokens=20, repeats=2)


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, (int, float)) else []


def check_sums(report: Report) -> None:
    """Check sums loosely: in a model this small the calls take a share. Other tests hold the bundled model to 3 %."""
    for ledger in (report.decode_ledger, report.prefill_ledger):
        assert 0.5 < sum(ledger.parts_ms.values()) / ledger.wall_ms <= 1.001
        assert min(ledger.parts_ms.values()) >= 0
        assert {"attention", "experts", "head", "python"} <= ledger.parts_ms.keys()


@pytest.mark.slow
@pytest.mark.alone
def test_a_report_beside_another_engine(store: Path, gguf: Path, fake_llama_cpp: Path) -> None:
    with open_peer(store, gguf, 2, SETTINGS.context_tokens, mmap=False) as peer:
        report = Benchmark(store, SETTINGS, describe_backend(2), EngineOptions(), peer).run()
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
    assert report.limits is report.guesses is None
    assert report.forecast is not None
    assert report.forecast.routing == "all experts in memory"
    check_sums(report)
    data = json.loads(json.dumps(report.to_json()))
    assert data["settings"] == {
        "prompt_tokens": 5, "decode_tokens": 8, "prefill_tokens": 20, "repeats": 2, "seed": 0,
        "peer_decode_tokens": None, "room_tokens": None,
    }  # fmt: skip
    assert all(number == number and abs(number) != float("inf") for number in numbers(data))
    # what edgemoe ran in a round llama.cpp ran too: prompts and tokens of 1 + 2 rounds, before 1 + 2 starts
    ids = [len(json.loads(line)["ids"]) for line in fake_llama_cpp.read_text().splitlines()]
    assert ids[:-3] == ([5] + [1] * 8 + [20]) * 3


@pytest.mark.slow
@pytest.mark.alone
def test_a_model_without_text_is_measured_at_the_floor(store_without_text: Path) -> None:
    report = Benchmark(store_without_text, SETTINGS, describe_backend(1), EngineOptions("floor")).run()
    assert report.edgemoe.startup_s is None
    assert report.peer is report.ratios is None
    check_sums(report)


@pytest.mark.slow
@pytest.mark.alone
def test_a_model_that_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.bench.benchmark.has_tokenizer", lambda folder: False)  # no start-up, to be quick
    report = Benchmark(
        find_model(None), Settings(4, 12, 8, 1, room_tokens=20), describe_backend(), EngineOptions("floor")
    ).run()
    memory = report.edgemoe.about["memory"]
    assert memory["slots"] < memory["total_experts"]
    assert memory["context_tokens"] == 20
    assert report.edgemoe.peak_rss_bytes <= memory["budget_bytes"]
    assert report.experts is not None
    assert report.experts.hit_rate is not None
    assert report.experts.hit_rate < 1
    assert report.experts.disk_bytes_per_token > 0
    assert report.decode_ledger.parts_ms["disk_wait"] > 0
    limits, guesses, forecast = report.limits, report.guesses, report.forecast
    assert limits is not None
    assert limits.missed_bytes_per_token.median > 0
    assert limits.disk_tokens_per_s is not None
    assert limits.share is not None
    assert limits.share.min > 0
    assert guesses is not None
    assert guesses.recall is not None
    assert 0 < guesses.recall <= 1
    assert forecast is not None
    assert forecast.hit_rates.likely == 0.0  # fewer slots than a token uses experts
    assert forecast.tokens_per_s.low < forecast.tokens_per_s.likely < forecast.tokens_per_s.high
    error = forecast.tokens_per_s.likely / report.edgemoe.decode_tokens_per_s.median - 1
    assert forecast.error_percent == pytest.approx(100 * error)
    json.dumps(report.to_json(), allow_nan=False)
    for ledger in (report.decode_ledger, report.prefill_ledger):
        assert sum(ledger.parts_ms.values()) == pytest.approx(ledger.wall_ms, rel=0.03)


def test_kernels_that_cannot_read_plainly_have_no_roofline_and_a_model_without_text_no_start_up(
    store_without_text: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", "reference")
    report = Benchmark(store_without_text, Settings(3, 3, 3, 1), describe_backend(), start=start).run()
    assert report.roofline is report.forecast is None
    assert report.edgemoe.startup_s is None
    assert report.peer is report.ratios is None
    assert report.edgemoe.about["kernels"]["backend"] == "reference"
    check_sums(report)


@pytest.mark.slow
@pytest.mark.alone
def test_engines_run_in_groups_of_their_own(
    store: Path, gguf: Path, fake_llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are made up here: what is entered is a folder."""
    made: list[str] = []

    def make(group: MemoryGroup) -> None:
        group._folder.mkdir()
        made.append(str(group._folder))

    def close(group: MemoryGroup) -> None:
        entered = group._folder / "cgroup.procs"
        if entered.exists():
            made.append(f"entered by {entered.read_text().strip()}")
            entered.unlink()
            group._folder.rmdir()

    monkeypatch.setattr(MemoryGroup, "_make", make)
    monkeypatch.setattr(MemoryGroup, "close", close)
    monkeypatch.setattr("edgemoe.bench.control_group.control_groups", lambda controller: [ControlGroup(tmp_path, 2)])
    settings = Settings(3, 4, 20, 1, peer_decode_tokens=2)
    with open_peer(store, gguf, 1, settings.context_tokens, mmap=True) as peer:
        report = Benchmark(store, settings, describe_backend(1), EngineOptions("1GiB"), peer, limit_bytes=2 << 30).run()
    folders, entered = made[:2], made[2:]
    assert len(set(folders)) == 2
    assert len(set(entered)) == 2  # the last to enter, which was a start of each engine
    assert report.peer is not None
    for engine in (report.edgemoe, report.peer):
        assert engine.limit is not None
        assert engine.limit.limit_bytes == 2 << 30
        assert engine.startup_s is not None
    decoded = [json.loads(line)["ids"] for line in fake_llama_cpp.read_text().splitlines()]
    assert [len(ids) for ids in decoded[:-2]] == [3, 1, 1, 20] * 2
    assert list(tmp_path.glob("edgemoe-bench-*")) == []


def test_another_engine_starts_up_with_room_for_the_prompt(
    store: Path, gguf: Path, fake_llama_cpp: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    asked: list[tuple[int, int]] = []

    def seconds(name: str, command: Sequence[str], options: Mapping[str, Any], ids: Sequence[int], _: Start) -> float:
        asked.append((options["context"], len(ids)))
        return 1.0

    monkeypatch.setattr("edgemoe.bench.benchmark.worker_seconds", seconds)
    monkeypatch.setattr("edgemoe.bench.benchmark.command_seconds", lambda *arguments: 1.0)
    for tokens in (2, 30):
        settings = Settings(1, 1, tokens, 1)
        with open_peer(store, gguf, 1, settings.context_tokens, mmap=False) as peer:
            Benchmark(store, settings, describe_backend(1), EngineOptions(), peer, start=start).run()
    (least, prompt), (most, _) = asked[0], asked[-1]
    assert (least, most) == (prompt, 30)
    assert 2 < prompt < 30


def test_a_budget_above_the_limit_is_refused(store: Path) -> None:
    with pytest.raises(UsageError, match=r"`ram=3GiB`: expected at most `limit=2\.00 GiB`"):
        Benchmark(store, SETTINGS, describe_backend(1), EngineOptions("3GiB"), limit_bytes=2 << 30)
    for ram in ("auto", "floor", "2GiB", None):
        Benchmark(store, SETTINGS, describe_backend(1), EngineOptions(ram), limit_bytes=2 << 30)


@pytest.mark.slow
@pytest.mark.alone
def test_options_of_the_engine_reach_it(store_without_text: Path) -> None:
    settings = Settings(2, 2, 2, 1)
    options = EngineOptions("floor", prefetch="off", policy="lfu", direct_reads=False)
    report = Benchmark(store_without_text, settings, describe_backend(1), options).run()
    assert report.edgemoe.about["memory"]["slots"] > 0
    assert not report.edgemoe.about["memory"]["direct_reads"]


def test_another_model_s_file_is_refused(store: Path, tmp_path: Path, fake_llama_cpp: Path, start: Start) -> None:
    other = tmp_path / "other.gguf"
    other.write_text(json.dumps({"vocab_size": 101, "layers": 3, "hidden_size": 64}))
    with open_peer(store, other, 1, SETTINGS.context_tokens, mmap=False) as peer:
        benchmark = Benchmark(store, Settings(2, 2, 2, 1), describe_backend(1), EngineOptions(), peer, start=start)
        with pytest.raises(SourceError, match="expected layers 2, found 3"):
            benchmark.run()


def test_what_cannot_be_measured_is_refused(store: Path, start: Start) -> None:
    with pytest.raises(UsageError, match="would have 300 tokens: expected at most 256"):
        Benchmark(store, Settings(100, 200, 5, 1), describe_backend(1))
    with pytest.raises(BudgetError, match="at least"):
        Benchmark(store, Settings(2, 2, 2, 1), describe_backend(1), EngineOptions("1MiB"), start=start).run()


def test_a_command_that_fails_is_told(store_without_text: Path) -> None:
    with pytest.raises(EdgemoeError, match="no tokenizer"):
        command_seconds(store_without_text, None, 1)


def test_an_engine_that_dies_is_told(store: Path, tmp_path: Path) -> None:
    peer = Peer(LLAMA_CPP, [sys.executable, "-c", "raise SystemExit('no luck')"], {})
    with pytest.raises(EdgemoeError, match=r"llama\.cpp: its process ended with code 1; .* no luck"):
        Benchmark(store, Settings(2, 2, 2, 1), describe_backend(1), EngineOptions(), peer).run()
