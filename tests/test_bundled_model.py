"""The bundled model, as it lies in the repository: whole, answering, and the same to the bit at every budget."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import edgemoe
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.default_model import find_model
from edgemoe.session.model import Model
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.engines import engine_with_slots

PROMPTS = [
    "What is the capital of France?",
    "What is 2 + 2?",
    "Why is the sky blue?",
    "Write a haiku about autumn.",
    "Explain what a list is in Python.",
    "Who wrote Romeo and Juliet?",
    "Give me three tips for sleeping well.",
    "What is the largest planet?",
    "Tell me a short story about a fox.",
    "How do I boil an egg?",
    "What does HTTP stand for?",
    "Translate 'good morning' into French.",
    "Name three animals that can fly.",
    "What is photosynthesis?",
    "Say something kind to a friend who is sad.",
    "Which month comes after June?",
    "Write a Python function that adds two numbers.",
    "What is the opposite of hot?",
    "Describe the sea in two sentences.",
    "Thank you, goodbye!",
]
NATIVE_AGAINST_NUMBA = 0.05
"""Largest difference of a logit, as a share of the largest logit, between the two after 30 layers."""


def greedy(engine: Engine, prompt: list[int], count: int) -> tuple[list[int], str]:
    """`count` greedy tokens after a prompt, whatever they are, and a digest of all their logits."""
    digest, tokens = hashlib.sha256(), []
    engine.rewind(0)
    logits = engine.forward(prompt)
    for _ in range(count):
        digest.update(logits.tobytes())
        tokens.append(int(logits.argmax()))
        logits = engine.forward(tokens[-1:])
    return tokens, digest.hexdigest()


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """The model as it is loaded by default, with all experts in memory."""
    with edgemoe.load() as loaded:
        yield loaded


def check_budgets(model: Model, prompts: list[str], count: int) -> None:
    ids = [model.encode_chat(prompt) for prompt in prompts]
    assert model.engine.memory.all_resident
    expected = [greedy(model.engine, prompt, count) for prompt in ids]
    path, experts = find_model(None), model.engine.memory.total_experts
    for opened in (
        lambda: open_engine(path, EngineOptions("floor")),
        lambda: engine_with_slots(path, experts // 2, threads=None),
    ):
        with opened() as engine:
            assert [greedy(engine, prompt, count) for prompt in ids] == expected
            assert engine.memory.slots <= experts // 2
            assert engine.statistics.expert_misses > 0


def test_it_answers_in_a_sentence(model: Model) -> None:
    answer = model.chat(options=SamplingOptions(temperature=0)).ask("What is the capital of France?")
    assert "Paris" in answer


def test_budgets_change_no_bit(model: Model) -> None:
    check_budgets(model, PROMPTS[:1], 4)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # at the floor every token waits for some sixty reads, one after the other on a slow disk
def test_twenty_prompts_of_a_hundred_tokens_at_three_budgets(model: Model) -> None:
    assert len(PROMPTS) == 20
    check_budgets(model, PROMPTS, 100)


@pytest.mark.slow
def test_ram_on_the_command_line_changes_no_token() -> None:
    command = [sys.executable, "-m", "edgemoe", "run", "-p", "Tell me about bees.", "--temperature", "0"]
    answers = []
    for ram in ("auto", "floor", "256MiB"):
        done = subprocess.run([*command, "--max-tokens", "60", "--json", "--ram", ram], capture_output=True, check=True)
        answers.append(json.loads(done.stdout))
    assert answers[0]["token_ids"] == answers[1]["token_ids"] == answers[2]["token_ids"]
    assert answers[0]["stats"]["expert_hit_rate"] == 1.0
    assert answers[1]["stats"]["expert_hit_rate"] < answers[2]["stats"]["expert_hit_rate"] < 1.0
    assert answers[2]["stats"]["peak_rss_bytes"] <= 256 << 20


@pytest.mark.slow
def test_native_and_numba_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last bit may turn an int8 activation the other way, so logits agree as far as quantisation is fine."""
    logits = {}
    for kernels in ("native", "jit"):
        monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
        with edgemoe.load() as model:
            assert model.engine.backend.name == kernels
            logits[kernels] = model.logits(model.encode(" ".join(PROMPTS[:4])))
    scale = np.abs(logits["native"]).max()
    assert np.abs(logits["jit"] - logits["native"]).max() < NATIVE_AGAINST_NUMBA * scale
    assert (logits["jit"].argmax(axis=1) == logits["native"].argmax(axis=1)).mean() > 0.95


@pytest.mark.slow
def test_every_byte_is_as_it_was_written() -> None:
    assert verify_store(Store.open(find_model(None))) == []
