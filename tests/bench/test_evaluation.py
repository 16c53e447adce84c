"""Evaluations, against the logits of the engine itself, and against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgemoe.bench import evaluation_pass
from edgemoe.bench.evaluation import Evaluation, Settings
from edgemoe.bench.evaluation_report import EvaluationReport, ModelResult
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.lab.divergence import Estimate
from edgemoe.session.default_model import find_model
from edgemoe.session.tokenizer import Tokenizer
from edgemoe.sizes import format_size
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4
WINDOWS = Settings(context_length=40, stride=15)
ONE_THREAD = EngineOptions(threads=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path / "cache" / "edgemoe"))


@pytest.fixture(scope="module")
def rounded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with experts in q8, which are nearer to the checkpoint's."""
    folder = tmp_path_factory.mktemp("rounded")
    write_checkpoint(folder / "tiny", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "tiny")
    return convert_checkpoint(str(folder / "tiny"), folder / "tiny-q8", experts="q8", dense="q8")


def evaluate(
    *models: Path,
    against: Path | None = None,
    save: Path | None = None,
    settings: Settings = WINDOWS,
    options: EngineOptions = ONE_THREAD,
    text: str = TEXT,
) -> EvaluationReport:
    return Evaluation(text, "a text", settings, options).run(models, against, save)


def figures(result: ModelResult) -> ModelResult:
    """The result without what differs from run to run."""
    return replace(result, seconds=0.0, peak_rss_bytes=0)


def test_figures_are_what_the_engine_says(store: Path, rounded: Path) -> None:
    report = evaluate(store, against=rounded)
    expected: dict[Path, list[np.ndarray]] = {}
    losses: dict[Path, list[float]] = {}
    tokens = report.tokens
    for path in (store, rounded):
        with open_engine(path, EngineOptions(threads=1, context_length=40)) as engine:
            rows, found = [], []
            ids = Tokenizer.load(path, 101).encode(TEXT)
            assert len(ids) == tokens
            for token in range(1, tokens):
                # the window that scores it: the first 41, then 15 each, with 39 or 40 tokens before its last one
                end = 41 if token <= 40 else min(41 + 15 * -(-(token - 40) // 15), tokens)
                engine.rewind(0)
                row = engine.forward(ids[max(0, end - 41) : token]).astype(float)
                log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
                rows.append(log_p)
                found.append(-log_p[ids[token]])
            expected[path], losses[path] = rows, found
    (result,) = report.models
    nats = [float((np.exp(p) * (p - q)).sum()) for p, q in zip(expected[rounded], expected[store], strict=True)]
    assert result.positions == tokens - 1 == len(nats)
    assert result.loss_nats.mean == pytest.approx(np.mean(losses[store]), rel=1e-9)
    assert result.perplexity.mean == pytest.approx(np.exp(np.mean(losses[store])), rel=1e-9)
    assert result.divergence is not None
    assert result.divergence.nats.mean == pytest.approx(np.mean(nats), rel=1e-6)
    assert result.divergence.nats.mean > 0
    assert result.divergence.largest == pytest.approx(max(nats), rel=1e-6)
    same = np.mean([p.argmax() == q.argmax() for p, q in zip(expected[rounded], expected[store], strict=True)])
    assert result.divergence.same_top.mean == pytest.approx(same)
    assert result.reference_loss_nats is not None
    assert result.reference_loss_nats.mean == pytest.approx(np.mean(losses[rounded]), rel=1e-9)
    assert report.reference is not None
    assert report.reference.loss_nats == result.reference_loss_nats
    assert result.divergence.nats.low is not None
    assert (report.complete, report.windows, result.windows) == (True, result.windows, 18)
    written = json.loads(json.dumps(report.to_json()))
    assert written["models"][0]["model"]["parts"]["experts"]["bits_per_weight"] > 4.4
    assert written["reference"]["model"]["path"] == str(rounded)


@pytest.mark.parametrize(
    ("top", "turned"),
    [(None, False), (20, True), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(None, True), (20, False)])],
)
def test_a_model_is_not_apart_from_itself_whatever_the_budget_and_threads(
    store: Path, rounded: Path, tmp_path: Path, top: int | None, turned: bool
) -> None:
    """Each test has two pairs of a budget and what it is held against, so that the default tests have all four."""
    run = tmp_path / "run"
    settings = replace(WINDOWS, top=top)
    first = evaluate(store, save=run, settings=settings)
    of_other = None
    pair = EngineOptions("floor", threads=1), EngineOptions(threads=2)
    for options, against in zip(reversed(pair) if turned else pair, (store, run), strict=True):
        (result,) = evaluate(store, against=against, settings=settings, options=options).models
        assert result.divergence is not None
        assert result.divergence.nats == Estimate(0.0, 0.0, 0.0)
        assert result.divergence.largest == 0.0
        assert result.divergence.same_top == Estimate(1.0, 1.0, 1.0)
        assert result.reference_loss_nats == result.loss_nats == first.models[0].loss_nats
        (result,) = evaluate(rounded, against=against, settings=settings, options=options).models
        of_other = of_other or figures(result)
        assert figures(result) == of_other


def test_several_models_are_evaluated_in_turn(store: Path, rounded: Path) -> None:
    report = evaluate(store, rounded, against=rounded)
    assert [result.model.path for result in report.models] == [str(store), str(rounded)]
    divergences = [result.divergence.nats.mean for result in report.models if result.divergence]
    assert divergences[0] > divergences[1] == 0.0
    assert report.models[0].model.bytes < report.models[1].model.bytes


def test_the_reference_decides_how_the_text_is_read(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate(store, save=run, settings=replace(WINDOWS, tokens=100))
    report = evaluate(store, against=run, settings=Settings())
    assert (report.context, report.stride, report.tokens, report.whole_text) == (40, 15, 100, False)
    for name, value in (("context_length", 50), ("stride", 16), ("tokens", 101)):
        with pytest.raises(UsageError, match=rf"`{name}`: .*run was made with \d+, found {value}"):
            evaluate(store, against=run, settings=replace(Settings(), **{name: value}))
    with pytest.raises(UsageError, match=r"different tokens for this text: number 0 .* Give the text that the run"):
        evaluate(store, against=run, text="x" + TEXT)
    with pytest.raises(UsageError, match=r"different numbers of tokens for this text: 100 and 50"):
        evaluate(store, against=run, text=TEXT[:50])


def test_models_of_other_tokens_are_refused_by_name(store: Path, tmp_path: Path) -> None:
    for name, vocab_size in (("larger", 105), ("other", 101)):
        source = tmp_path / f"{name}-source"
        write_checkpoint(source, {**SMALL_MIXTRAL, "vocab_size": vocab_size})
        write_letters_tokenizer(source)
        if name == "other":
            text = (source / "tokenizer.json").read_text()
            data = json.loads(text)
            vocab = data["model"]["vocab"]
            vocab["0"], vocab["~"] = vocab["~"], vocab["0"]
            (source / "tokenizer.json").write_text(json.dumps(data))
        convert_checkpoint(str(source), tmp_path / name, experts="q4", dense="q8")
    with pytest.raises(UsageError, match="tiny-moe and larger have different vocabularies: 101 and 105 tokens"):
        evaluate(tmp_path / "larger", against=store)
    with pytest.raises(UsageError, match="vocabularies: token 0 is '0' and '~'"):
        evaluate(store, tmp_path / "other")


def test_models_without_perplexity_are_refused(store: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL, side_files={"notes.txt": b""})
    bare = convert_checkpoint(str(tmp_path / "source"), tmp_path / "bare", experts="q4", dense="q8")
    with pytest.raises(UsageError, match="bare: this model has no tokenizer"):
        evaluate(bare)
    with pytest.raises(UsageError, match="2 tokens or more, found 1"):
        evaluate(store, text="I")
    with pytest.raises(UsageError, match=r"`context_length`: expected 8 to 256 tokens"):
        evaluate(store, settings=Settings(context_length=257))
    for name, value in (("tokens", 1), ("tokens", 150_001), ("top", 0)):
        with pytest.raises(UsageError, match=f"`{name}`: expected .*found {value}"):
            Settings(**{name: value})


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation) -> None:
    """Stops the evaluation while the `number`-th window is read, from 0 on, as a signal would."""
    windows = 0
    run = Engine.forward_each

    def forward_each(self: Engine, *arguments: object) -> None:
        nonlocal windows
        if windows == number:
            evaluation.stop()
        windows += 1
        run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "forward_each", forward_each)


def test_an_evaluation_that_is_stopped_has_the_windows_before(
    store: Path, rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(store, save=tmp_path / "whole")
    evaluation = Evaluation(TEXT, "a text", WINDOWS, ONE_THREAD)
    stop_at(10, monkeypatch, evaluation)
    report = evaluation.run([store, rounded])
    (result,) = report.models
    assert (report.complete, result.windows, result.positions) == (False, 10, 40 + 9 * 15)
    assert result.loss_nats != whole.models[0].loss_nats
    evaluation = Evaluation(TEXT, "a text", WINDOWS, ONE_THREAD)
    monkeypatch.undo()
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", "")
    stop_at(3, monkeypatch, evaluation)
    part = tmp_path / "part"
    assert evaluation.run([store], save=part).models[0].windows == 3
    monkeypatch.undo()
    report = evaluate(store, against=part)
    assert report.reference is not None
    assert (report.reference.windows, report.models[0].windows, report.models[0].positions) == (3, 3, 40 + 2 * 15)
    # in the reference: there is nothing to compare with, and the reference's own figures
    evaluation = Evaluation(TEXT, "a text", WINDOWS, ONE_THREAD)
    stop_at(2, monkeypatch, evaluation)
    report = evaluation.run([store], rounded)
    assert report.reference is None
    assert [(one.model.path, one.windows) for one in report.models] == [(str(rounded), 2)]
    evaluation = Evaluation(TEXT, "a text", WINDOWS, ONE_THREAD)
    evaluation.stop()
    assert evaluation.run([store]).models == ()


def test_what_must_not_be_replaced_is_not(store: Path, rounded: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "model.gguf"
    evaluate(store, save=run)
    before = run.read_bytes()
    evaluate(store, save=run)
    assert run.read_bytes() == before  # a run may be replaced, and is the same again
    with pytest.raises(UsageError, match="the reference itself"):
        evaluate(store, against=run, save=run)
    other.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="it exists and is no run"):
        evaluate(store, save=other)
    with pytest.raises(UsageError, match=r"`save`: a run is of one model, found 2"):
        evaluate(store, rounded, save=tmp_path / "new")


def test_logits_that_are_no_numbers_are_an_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(logits: np.ndarray, kv: str) -> None:
        real(np.where(logits == logits.max(), np.nan, logits), kv)

    real = evaluation_pass.check_finite
    monkeypatch.setattr(evaluation_pass, "check_finite", damaged)
    with pytest.raises(EdgemoeError, match="not all finite"):
        evaluate(store)


def test_a_reference_that_is_damaged_is_an_error(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate(store, save=run)
    data = bytearray(run.read_bytes())
    data[-1000] ^= 1
    run.write_bytes(data)
    with pytest.raises(StoreError, match="run is damaged"):
        evaluate(store, against=run)


def test_the_size_on_disk_is_told_before(store: Path, tmp_path: Path) -> None:
    told: list[str] = []
    run = tmp_path / "run"
    Evaluation(TEXT, "a text", replace(WINDOWS, top=5), ONE_THREAD, say=told.append).run([store], None, run)
    size = format_size(run.stat().st_size)
    assert told == [f"295 distributions of tiny-moe (the 5 likeliest tokens of each): {size} in {tmp_path}"]


@pytest.mark.slow
def test_the_bundled_model_against_itself(tmp_path: Path) -> None:
    model, run = find_model(None), tmp_path / "run"
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    settings = Settings(context_length=128, tokens=400)
    first = evaluate(model, save=run, settings=settings, options=EngineOptions(), text=text)
    (result,) = first.models
    assert result.positions == 399
    assert 5 < result.perplexity.mean < 200
    for options in (EngineOptions("floor", threads=1), EngineOptions("2GiB", threads=2)):
        (again,) = evaluate(model, against=run, settings=settings, options=options, text=text).models
        assert again.divergence is not None
        assert (again.divergence.nats.mean, again.divergence.same_top.mean) == (0.0, 1.0)
        assert again.loss_nats == result.loss_nats
    run.unlink()  # 75 MB, which pytest would keep
