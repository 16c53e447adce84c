"""MTP heads: converted from a checkpoint, they guess what their mathematics says, and change no answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from edgemoe.architectures import model_spec
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError, UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server.jobs import Event, Finished, Job, Piece
from edgemoe.server.scheduler import Scheduler
from edgemoe.session import draft_model
from edgemoe.session.draft_model import HeadDrafts
from edgemoe.session.model import Model, load
from tests.golden.covering import GOLDEN
from tests.server.test_scheduler import run
from tests.support.checkpoints import SMALL_DEEPSEEK, SMALL_QWEN, read_tensors, write_checkpoint

Floats = npt.NDArray[np.float32]
NO_TEXT = {"generation_config.json": b"{}"}


def _golden(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / name / "config.json").read_text())
    return config


SPARSE = {"mlp_layer_types": ["sparse"]}
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deepseek_v3": (SMALL_DEEPSEEK, {"first_k_dense_replace": 0}),
    "qwen3_5_moe": (SMALL_QWEN, {"layer_types": ["full_attention"]}),
    "glm4_moe": (_golden("glm4_moe"), {"first_k_dense_replace": 0}),
    "glm4_moe_lite": (_golden("glm4_moe_lite"), SPARSE),
    "hy_v3": (_golden("hy_v3"), SPARSE),
    "bailing_moe_v2": (_golden("bailing_moe_v2"), {}),
    "qwen3_next": (_golden("qwen3_next"), {"layer_types": ["full_attention"], "mlp_only_layers": []}),
}
"""Models, and what their configs say otherwise where the only layer is as the head's block."""
BESIDE_BLOCK = {
    False: ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"),
    True: ("pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "fc.weight", "norm.weight"),
}


class Checkpoint:
    """A checkpoint with an MTP head, and the weights of that by names of the paper."""

    def __init__(self, folder: Path, family: str) -> None:
        self.named = family.startswith("qwen")
        config, otherwise = CONFIGS[family]
        self.config: Mapping[str, Any] = config
        self.one_layer = config | otherwise | {"num_hidden_layers": 1, "tie_word_embeddings": False}
        self.epsilon = model_spec(config).norm_epsilon
        self.source = folder / "source"
        write_checkpoint(self.source, config, dtype="F32", side_files=NO_TEXT)
        write_checkpoint(folder / "block", self.one_layer, dtype="F32", seed=1, side_files=NO_TEXT)
        self.block = {name: value for name, value in read_tensors(folder / "block").items() if ".layers.0." in name}
        size, random = self.config["hidden_size"], np.random.default_rng(2)
        self.own = read_tensors(self.source)
        self.embedding_name = next(
            name for name in self.own if name.endswith("embed_tokens.weight") or "word_embed" in name
        )
        self.head_matrix = self.own.get("lm_head.weight", self.own[self.embedding_name])
        shapes = ((size,), (size,), (size, 2 * size), (size,))
        self.token_norm, self.hidden_norm, self.both, self.norm = (
            random.normal(0, 0.3, shape).astype(np.float32) for shape in shapes
        )
        prefix, in_block = ("mtp.", "mtp.layers.0.") if self.named else (f"model.layers.{self.layers}.",) * 2
        block = {in_block + name.partition(".layers.0.")[2]: value for name, value in self.block.items()}
        values = self.token_norm, self.hidden_norm, self.both, self.norm
        beside = {prefix + name: value for name, value in zip(BESIDE_BLOCK[self.named], values, strict=True)}
        save_file({**self.own, **block, **beside}, self.source / "model.safetensors")
        self.store = convert_checkpoint(str(self.source), folder / "model", experts="f32", dense="f32")
        self.head = convert_checkpoint(str(self.source), folder / "head", experts="f32", dense="f32", mtp=True)
        self.folder = folder

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    def normed(self, rows: Floats, weights: Floats) -> Floats:
        weights = weights + self.named  # Qwen's are distances from 1
        return rows / np.sqrt(np.mean(rows**2, -1, keepdims=True) + self.epsilon) * weights

    def input_rows(self, tokens: list[int], hidden: Floats) -> Floats:
        """The rows that the head's block reads for each token, after the hidden state of the one before."""
        embedded = self.own[self.embedding_name][tokens]
        both = [self.normed(embedded, self.token_norm), self.normed(hidden, self.hidden_norm)]
        return np.concatenate(both, -1) @ self.both.T

    def expected_logits(self, rows: Floats) -> Floats:
        """The logits that follow from rows of the block's input: a model of one layer, whose embedding they are."""
        embedding = np.zeros_like(self.own[self.embedding_name])
        embedding[: len(rows)] = rows
        norm_name = self.embedding_name.replace("embed_tokens", "norm").replace("word_embeddings", "norm")
        ends = {self.embedding_name: embedding, norm_name: self.norm, "lm_head.weight": self.head_matrix}
        folder = self.folder / f"expected-{len(rows)}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.one_layer))
        save_file({**self.block, **ends}, folder / "model.safetensors")
        store = convert_checkpoint(str(folder), folder / "store", experts="f32", dense="f32")
        with load(store, EngineOptions(context_length=64)) as model:
            return model.logits(list(range(len(rows))))


@pytest.fixture(
    scope="module",
    params=[pytest.param(family, marks=() if family == "deepseek_v3" else pytest.mark.slow) for family in CONFIGS],
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def both(checkpoint: Checkpoint) -> Iterator[tuple[Model, Model]]:
    """The model without its head, and with it."""
    options: dict[str, Any] = {"context_length": 256, "ram": "floor"}
    drafting = EngineOptions(speculate=3, sequences=3, **options)
    with (
        load(checkpoint.store, EngineOptions(**options)) as plain,
        load(checkpoint.store, drafting, checkpoint.head) as fast,
    ):
        yield plain, fast


def test_its_logits_are_those_of_its_mathematics(checkpoint: Checkpoint, both: tuple[Model, Model]) -> None:
    plain, fast = both
    assert fast.draft_model is not None
    tokens = np.random.default_rng(3).integers(0, plain.spec.vocab_size, 20).tolist()
    guesses = fast.draft_model.begin(tokens, fast.engine.sequence)
    assert isinstance(guesses, HeadDrafts)
    logits = fast.logits(tokens[:-1])
    assert guesses.offer(3).tokens == 3
    hidden = guesses.hidden(19)
    assert hidden is not None
    # the hidden state is what the model's own head makes logits of
    np.testing.assert_allclose(hidden @ checkpoint.head_matrix.T, logits, rtol=1e-4, atol=1e-4)
    expected = checkpoint.expected_logits(checkpoint.input_rows(tokens[1:], hidden))
    sequence, engine = guesses.sequence, fast.draft_model.engine
    found = engine.step({sequence: guesses.unread()}, all_logits=True, hidden={sequence: hidden})[sequence]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    # a further guess reads the guess before it, with the head's own hidden state
    own = guesses.latest_hidden()
    assert own is not None
    np.testing.assert_allclose(own @ checkpoint.head_matrix.T, expected[-1:], rtol=2e-4, atol=2e-4)
    first = int(expected[-1].argmax())
    rows = checkpoint.input_rows([*tokens[1:], first], np.concatenate([hidden, own]))
    assert guesses.take(2) == [first, int(checkpoint.expected_logits(rows)[-1].argmax())]
    guesses.end()
    fast.held.rewind(0)


def test_answers_do_not_change(both: tuple[Model, Model]) -> None:
    plain, fast = both
    prompts = [list(range(90)), [7]]
    settings = [SamplingOptions(), SamplingOptions(temperature=0.9, seed=5, repetition_penalty=1.2)]
    expected = {}
    for number, prompt in enumerate(prompts):
        for options in settings:
            answer = plain.stream(prompt, 12, options, 2)
            list(answer)
            expected[number, options.temperature] = answer.token_ids, answer.logprobs
            found = fast.stream(prompt, 12, options, 2)
            list(found)
            assert (found.token_ids, found.logprobs) == expected[number, options.temperature]
    scheduler, heard = Scheduler(fast), []
    for number, prompt in enumerate(prompts):
        for options in settings:
            events: list[Event] = []
            scheduler.add([Job(prompt, options, 12, events.append, 2)])
            heard.append(((number, options.temperature), events))
    run(scheduler)
    fast.engine.pause = None
    fast.engine.sequence = fast.engine.sequences.open()
    fast.held.ids.clear()
    assert scheduler.totals.draft_tokens > 0
    assert not fast.engine.hidden_takers
    for key, events in heard:
        pieces = [event for event in events if isinstance(event, Piece) and event.token is not None]
        assert ([piece.token for piece in pieces], [piece.logprobs for piece in pieces]) == expected[key]
        assert isinstance(events[-1], Finished)


def test_few_hidden_states_are_enough(both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = both
    assert fast.draft_model is not None
    monkeypatch.setattr(draft_model, "HIDDEN_TOKENS", 8)
    prompt = list(range(60))
    assert fast.generate(prompt, 12).token_ids == plain.generate(prompt, 12).token_ids
    # it begins anew where nothing was guessed for so long that hidden states are gone
    guesses = fast.draft_model.begin(prompt, fast.engine.sequence)
    assert isinstance(guesses, HeadDrafts)
    fast.logits(prompt[:-1])
    assert guesses.offer(2).tokens == 2
    assert len(guesses.unread()) == 8
    fast.held.forward(prompt[-1:])
    for token in range(30):
        guesses.add(token)
        fast.held.forward([token])
    guesses.add(30)
    assert guesses.offer(2).tokens == 2
    assert 0 < len(guesses.unread()) <= 8
    assert len(guesses.take(2)) == 2
    guesses.end()
    fast.held.rewind(0)


def test_it_shares_the_ends_of_the_model(checkpoint: Checkpoint, both: tuple[Model, Model]) -> None:
    fast = both[1]
    assert fast.draft_model is not None
    head, memory = fast.draft_model.engine, fast.engine.memory
    assert not {"embedding", "head"} & head.weights.keys()
    assert memory.embedding_resident
    assert head.memory.dense_bytes < memory.dense_bytes
    assert head.memory.planned_bytes < memory.draft_model_bytes < memory.budget_bytes
    assert "mtp" not in fast.engine.store.model


def test_what_is_no_head_or_no_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an MTP head, which guesses for the model"):
        load(checkpoint.head)
    write_checkpoint(tmp_path / "other", SMALL_QWEN | {"hidden_size": 40}, side_files=NO_TEXT)
    with pytest.raises(SourceError, match="expected an MTP head, found none"):
        convert_checkpoint(str(tmp_path / "other"), tmp_path / "none", mtp=True)
    other = convert_checkpoint(str(tmp_path / "other"), tmp_path / "store")
    with pytest.raises(UsageError, match="is an MTP head of another model"):
        load(other, EngineOptions(speculate=2), checkpoint.head)
