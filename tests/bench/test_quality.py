"""The quality of lossy settings, measured with real workers, against the engines themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench import quality as quality_module
from edgemoe.bench.protocol import Start
from edgemoe.bench.quality import QualityMeasurement, Slice, cut_into_slices
from edgemoe.bench.quality_worker import QualityWorker
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.lossy import LossySettings
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.phase import DECODE
from edgemoe.errors import UsageError
from edgemoe.kernels.select import describe_backend
from edgemoe.session.default_model import find_model
from tests.engine.test_engine import CONFIG
from tests.support.checkpoints import make_routers_decided, write_checkpoint

ONE_EXPERT = LossySettings(experts_per_token=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a tokenizer."""
    folder = tmp_path_factory.mktemp("quality")
    write_checkpoint(folder / "source", CONFIG, dtype="F32", side_files={"notes.txt": b""})
    make_routers_decided(folder / "source" / "model.safetensors")
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="f32", dense="f32")


def test_the_divergence_is_what_the_engines_say(store: Path, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    monkeypatch.setattr(quality_module, "SEQUENCE_TOKENS", 90)
    options = EngineOptions(lossy=ONE_EXPERT)
    measurement = QualityMeasurement(store, describe_backend(1), options, tokens=68, start=start)
    report = measurement.run(None, None)
    ids = measurement._ids(None)
    divergences, changed = [], []
    with (
        open_engine(store, EngineOptions(threads=1)) as exact,
        open_engine(store, EngineOptions(threads=1, lossy=ONE_EXPERT)) as lossy,
    ):
        # two sequences, each after a prompt of 32, the first without the 40 that warm up
        for start, end, counted in ((0, 90, 72), (90, 172, 32)):
            logits = []
            for engine in (exact, lossy):
                engine.rewind(0)
                logits.append(engine.forward(ids[start:end], all_logits=True).astype(float)[counted:])
            for a, b in zip(*logits, strict=True):
                p, q = (np.exp(x) / np.exp(x).sum() for x in (a, b))
                divergences.append(np.sum(p * np.log(p / q)))
                changed.append(a.argmax() != b.argmax())
    assert report.positions == len(divergences) == 68
    assert report.divergence_nats == pytest.approx(np.mean(divergences), rel=1e-4)
    assert report.divergence_nats > 1e-4
    assert report.top_changed == pytest.approx(np.mean(changed))
    assert report.top_changed > 0
    assert (report.text, report.losses_nats, report.lossy_settings) == (None, None, ONE_EXPERT.to_json())
    assert json.loads(json.dumps(report.to_json()))["lossy"]["hit_rate"] == 1.0


def test_ids_are_read_as_generated_tokens_and_a_prompt_as_one(store: Path, tmp_path: Path) -> None:
    """Cache-aware routing and prefetching are for generated tokens only."""
    worker = QualityWorker()
    worker.open(str(store), EngineOptions(threads=1).to_json())
    for turn, prompt in enumerate(([1, 2, 3], [], [4])):
        worker.decode(prompt, [5, 6], str(tmp_path / "logits"))
        assert worker.engine.turn.phase == DECODE
        assert worker.engine.turn.number == (0, 0, 1)[turn]
    worker.engine.close()


@pytest.mark.slow
@pytest.mark.alone
def test_a_text_has_losses_and_a_budget_has_misses() -> None:
    model = find_model(None)
    lossy = LossySettings(cache_aware_routing=0.5, drop_cold=0.5)
    text = "The quick brown fox jumps over the lazy dog, and the sea is wide. " * 10
    report = QualityMeasurement(model, describe_backend(2), EngineOptions("floor", lossy=lossy), tokens=24).run(
        text, "a fox"
    )
    assert report.text == "a fox"
    assert report.positions == 24
    assert report.losses_nats is not None
    assert all(0 < loss < 12 for loss in report.losses_nats)
    assert report.lossless.dropped_share == 0
    assert report.lossy.dropped_share > 0.01
    assert report.lossy.disk_bytes_per_token < report.lossless.disk_bytes_per_token
    assert report.divergence_nats > 1e-4
    assert report.quality.text == "a fox"
    assert report.quality.speed_ratio == round(report.speed_ratio.median, 3)


def test_settings_that_change_nothing_are_not_measured(store: Path, start: Start) -> None:
    options = EngineOptions(lossy=LossySettings(drop_cold=0.5))
    measurement = QualityMeasurement(store, describe_backend(1), options, start=start)
    with pytest.raises(UsageError, match=r"all experts are in memory .* Give a smaller `ram`"):
        measurement.run(None, None)


def test_what_cannot_be_is_refused(store: Path) -> None:
    kernels = describe_backend(1)
    with pytest.raises(UsageError, match="no lossy setting"):
        QualityMeasurement(store, kernels, EngineOptions())
    with pytest.raises(UsageError, match="expected 1 to 3"):
        QualityMeasurement(store, kernels, EngineOptions(lossy=LossySettings(experts_per_token=4)))
    for tokens in (0, -1, 10**9):
        with pytest.raises(UsageError, match="`tokens`"):
            QualityMeasurement(store, kernels, EngineOptions(lossy=ONE_EXPERT), tokens=tokens)


def test_a_text_is_cut_into_sequences_of_slices() -> None:
    ids = list(range(1000, 1400))
    slices = cut_into_slices(ids, [1, 2], 102, 150)
    assert sum(len(one.ids) for one in slices) == 150 + 40
    assert [len(one.ids) for one in slices] == [40, 28, 40, 28, 40, 14]
    assert slices[0] == Slice([1, 2, *range(1000, 1032)], list(range(1032, 1072)), list(range(1033, 1073)))
    assert slices[1] == Slice([], list(range(1072, 1100)), list(range(1073, 1101)))
    assert slices[2].prompt == [1, 2, *range(1100, 1132)]
    # as many as there are, the last of which has no follower
    all_of_it = cut_into_slices(ids, [], 512, 10_000)
    assert all_of_it[-1].following[-1] == ids[-1]
    assert sum(len(one.ids) for one in all_of_it) == 400 - 32 - 1
    assert len(cut_into_slices(ids[:74], [], 512, 100)) == 2
    for few in (0, 1, 33, 73):
        with pytest.raises(UsageError, match=f"74 tokens or more, found {few}"):
            cut_into_slices(ids[:few], [], 512, 100)
