"""A hundred turns with a hybrid model: state that cannot be cut anywhere, under undo and retry, within its plan."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.session.chat import ChatSession
from edgemoe.session.model import Model
from edgemoe.session.sampler import SamplingOptions
from edgemoe.session.tokenizer import Tokenizer
from tests.support.checkpoints import SMALL_QWEN, SMALL_QWEN4, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.small_tokenizer import small_tokenizer

TURNS, CONTEXT = 100, 8192
ALLOWED_GROWTH_BYTES = 32 << 20
"""How far the process may grow beside what was planned: Python's own objects, pages of the kernels' stacks."""


def open_model(store: Path, folder: Path, slots: int, threads: int) -> Model:
    engine = engine_with_slots(store, slots, threads, context_length=CONTEXT)
    return Model(engine, Tokenizer.load(folder, engine.spec.vocab_size), folder)


def begin(model: Model) -> ChatSession:
    return model.chat(options=SamplingOptions(temperature=0), max_tokens=9)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL_QWEN, SMALL_QWEN4], ids=lambda config: config["model_type"])
def test_undo_and_retry_leave_no_trace_in_a_hundred_turns(
    config: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    own = config | {"vocab_size": small_tokenizer().get_vocab_size(), "max_position_embeddings": CONTEXT}
    write_checkpoint(tmp_path / "source", own)
    store = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    random = np.random.default_rng(7)
    words = ["hello", "world", "quick", "brown", "fox", "paris", "code", "list", "one", "two"]
    with open_model(store, folder, 6, 2) as model, open_model(store, folder, 40, 1) as other:
        chat = begin(model)
        touched = 0
        for turn in range(TURNS):
            said = chat.ask(" ".join(random.choice(words, random.integers(1, 12))))
            if turn == TURNS // 4:
                touched = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            if random.random() < 0.3:
                assert "".join(chat.retry()) == said
            if random.random() < 0.2:
                chat.undo()
            if turn % 20 == 19:
                again = begin(other)
                *earlier, question, answer = chat.messages
                again.messages = [*earlier]
                assert again.ask(question["content"]) == answer["content"]
        assert len(chat.messages) > TURNS
        assert len({message["content"] for message in chat.messages[1::2]}) > 10
        assert chat.forgotten_turns == 0
        plan = model.engine.memory
        values = model.engine.sequences._snapshots.fixed._values
        assert sum(value.rows.nbytes + value.snapshots.nbytes for value in values) == plan.fixed_state_bytes
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - touched
        assert grown < plan.kv_cache_bytes + plan.fixed_state_bytes + ALLOWED_GROWTH_BYTES
