"""The promise of the house: a token's bits depend on weights, text and settings, and on nothing else.

Random programs of sequences (appending in any company and any cuts, rewinding, forking, closing, prefixes kept in RAM
and on disk, drafts that are taken back, runs that fail) run under every budget, thread count, instruction set and
format of keys and values, with attention alone and with state that cannot be cut anywhere: windows, whose pages are
given back, convolutions, and recurrent layers. Every logit is compared with `==` to that of the same tokens run alone,
in one call, on one thread, with all experts in RAM and every page kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.phase import VERIFY
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.engine.test_engine import CONFIG, EXPERTS
from tests.support.checkpoints import (
    SMALL_DEEPSEEK,
    SMALL_DEEPSEEK_V4,
    SMALL_JAMBA,
    SMALL_LFM2,
    SMALL_LONGCAT,
    SMALL_NEMOTRON,
    SMALL_QWEN,
    SMALL_QWEN4,
    write_checkpoint,
)
from tests.support.engines import engine_with_slots
from tests.support.pairs import default_pairs

VOCABULARY = 12
"""Few tokens, so that sequences often agree and prefixes are found."""
SEQUENCES = 8
LONGEST = 200
ISAS = available_isas()


class InjectedError(Exception):
    """Ends a run in the middle."""


class FailingObserver:
    """Lets the run that it observes fail."""

    one_sequence = True
    drafts = False

    def __init__(self, runs: int) -> None:
        self._left = runs

    def step(self, run: object) -> None:
        self._left -= 1
        if not self._left:
            raise InjectedError


class Family(NamedTuple):
    """A model with `EXPERTS` experts."""

    store: Path
    windows: tuple[int, ...]
    """The windows of its layers with attention, in turn."""


class Alone:
    """Logits of token sequences that are run alone, in one call, on one thread, with all experts in RAM."""

    def __init__(self, family: Family, kv: str) -> None:
        self._engine = engine_with_slots(
            family.store, EXPERTS, kv=kv, windows=family.windows, context_length=256, chunk_tokens=256
        )
        assert not self._engine.sequence.windowed  # in a context that is so short no page is given back
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def logits(self, ids: list[int]) -> np.ndarray:
        """The logits after each token, `(T, V)`."""
        key = tuple(ids)
        if key not in self._known:
            self._engine.rewind(0)
            self._known[key] = self._engine.forward(ids, all_logits=True)
        return self._known[key]

    def close(self) -> None:
        self._engine.close()


class Company:
    """Random work on the sequences of one engine, each result compared with that of its tokens alone."""

    def __init__(self, engine: Engine, alone: Alone, seed: int) -> None:
        self._engine, self._alone = engine, alone
        self._random = np.random.default_rng(seed)
        self._open = [engine.sequence]
        engine.rewind(0)
        self.compared = 0

    def step(self) -> None:
        """Do one thing at random, and compare what it gives."""
        random, sequences = self._random, self._engine.sequences
        action = random.integers(12)
        one = self._open[random.integers(len(self._open))]
        if action == 0 and len(self._open) < SEQUENCES:
            known = self._open[random.integers(len(self._open))].ids
            ids = [*known[: random.integers(len(known) + 1)], *self._tokens(random.integers(1, 30))][:LONGEST]
            opened = sequences.open(np.array(ids))
            self._open.append(opened)
            self._append({opened: ids[opened.position :]})
        elif action == 1 and len(self._open) < SEQUENCES:
            self._open.append(sequences.fork(one))
        elif action == 2 and len(self._open) > 1 and one is not self._engine.sequence:
            sequences.close(one)
            self._open.remove(one)
        elif action == 3:
            one.rewind(int(random.integers(one.position + 1)))
        elif action == 4:
            before = list(one.ids)
            self._engine.recorder = FailingObserver(int(random.integers(1, 3)))
            with contextlib.suppress(InjectedError):
                self._engine.step({one: self._tokens(random.integers(1, LONGEST - one.position + 1))})
                one.rewind(len(before))  # all was done before it would have failed
            self._engine.recorder = None
            assert one.ids == before
        elif action == 5:
            self._engine._loaded.measure_products(8)  # as before a long prompt
            if one is not self._engine.sequence:
                self._bring_back(one)
        else:
            some = random.permutation(len(self._open))[: random.integers(1, len(self._open) + 1)]
            phase = int(random.integers(3))
            batch = {}
            for sequence in (self._open[number] for number in some):
                sequence.turn.phase = phase
                if sequence.position + 70 > LONGEST:
                    sequence.rewind(int(random.integers(LONGEST // 2)))
                batch[sequence] = self._tokens((random.integers(1, 70), 1, random.integers(1, 9))[phase])
            self._append(batch)
            if phase == VERIFY:
                for sequence, ids in batch.items():
                    sequence.rewind(sequence.position - int(random.integers(len(ids))))

    def _bring_back(self, one: Any) -> None:
        """Close a sequence, forget in RAM what no other one holds, and open it again from disk."""
        sequences, before = self._engine.sequences, one.position
        ids = [*one.ids, *self._tokens(self._random.integers(1, 9))]
        assert sequences.tier is not None
        sequences.tier.save(60)
        sequences.close(one)
        self._open.remove(one)
        for pool in (group.pool for group in sequences._groups):
            for page in [pool.take() for _ in range(pool.available)]:
                pool.release(page)
        snapshots = sequences._snapshots
        while snapshots is not None and snapshots._kept:
            snapshots._drop_least()
        opened = sequences.open(np.array(ids))
        assert snapshots is not None or opened.position >= before // PAGE_TOKENS * PAGE_TOKENS
        self._open.append(opened)
        self._append({opened: ids[opened.position :]})

    def close(self) -> None:
        for sequence in self._open[1:]:
            self._engine.sequences.close(sequence)

    def _tokens(self, count: int) -> list[int]:
        return self._random.integers(0, VOCABULARY, count).tolist()

    def _append(self, batch: dict[Any, list[int]]) -> None:
        every = bool(self._random.integers(2))
        for sequence, found in self._engine.step(batch, all_logits=every).items():
            expected = self._alone.logits(sequence.ids)
            new = expected[len(sequence.ids) - len(batch[sequence]) :] if every else expected[-1]
            assert (found == new).all()
            self.compared += 1


GRANITE = ("shared_intermediate_size", "logits_scaling")
WINDOWED = {key: value for key, value in CONFIG.items() if key not in GRANITE and not key.endswith("multiplier")} | {
    "model_type": "gpt_oss",
    "head_dim": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default"},
    "sliding_window": 37,
    "swiglu_limit": 0.5,
}
"""Windows, sinks, biases of everything and a clamped activation."""

PLAIN = {key: value for key, value in CONFIG.items() if key not in GRANITE and not key.endswith("multiplier")}
LAGUNA = PLAIN | {
    "model_type": "laguna",
    "head_dim": 16,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "max_position_embeddings": 4096,
    "mlp_layer_types": ["sparse"] * 4,
    "moe_intermediate_size": CONFIG["intermediate_size"],
    "moe_router_logit_softcapping": 2.0,
    "num_attention_heads": 4,
    "num_attention_heads_per_layer": [4, 6, 4, 6],
    "num_experts": CONFIG["num_local_experts"],
    "num_key_value_heads": 2,
    "rope_parameters": None,
    "shared_expert_intermediate_size": 40,
    "sliding_window": 37,
}
"""A gate of attention, capped logits of routers, heads and positions that differ from layer to layer."""
MIMO = PLAIN | {
    "model_type": "mimo_v2_flash",
    "head_dim": 24,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "max_position_embeddings": 4096,
    "mlp_layer_types": ["sparse"] * 4,
    "moe_intermediate_size": CONFIG["intermediate_size"],
    "n_routed_experts": CONFIG["num_local_experts"],
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "rope_parameters": None,
    "sliding_window": 37,
    "v_head_dim": 40,
}
"""Values wider than keys, and twice as many key heads within windows."""
KOLIBRI = {key: value for key, value in PLAIN.items() if key != "intermediate_size"} | {
    "model_type": "kolibri1",
    "head_dim": 16,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": CONFIG["intermediate_size"],
    "num_experts": CONFIG["num_local_experts"],
    "rope_parameters": {"rope_type": "default"},
    "shared_expert_intermediate_size": 40,
    "sliding_window": 37,
}
"""Norms around blocks, layers without positions, a choice by biased logits."""

GEMMA = PLAIN | {
    "model_type": "gemma4_text",
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "final_logit_softcapping": 3.0,
    "global_head_dim": 32,
    "head_dim": 16,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": CONFIG["intermediate_size"],
    "num_attention_heads": 4,
    "num_experts": CONFIG["num_local_experts"],
    "num_global_key_value_heads": 1,
    "num_key_value_heads": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "sliding_window": 37,
    "tie_word_embeddings": True,
    "top_k_experts": CONFIG["num_experts_per_tok"],
}
for _name in ("num_experts_per_tok", "num_local_experts", "rope_theta"):
    GEMMA.pop(_name, None)
"""A dense FFN beside the experts, a router of the stream itself, values from keys, a cap of logits."""

LLAMA4 = PLAIN | {
    "model_type": "llama4_text",
    "attention_chunk_size": 37,
    "floor_scale": 20,
    "head_dim": 16,
    "intermediate_size_mlp": 40,
    "max_position_embeddings": 4096,
    "no_rope_layer_interval": 2,
    "num_experts_per_tok": 1,
    "tie_word_embeddings": False,
}
"""Chunks, which begin together, queries that grow with their positions, weights of what experts read."""

LING = PLAIN | {
    "model_type": "bailing_hybrid",
    "expert_swiglu_limit_list": [0.0, 0.5, 0.0, 0.5],
    "first_k_dense_replace": 0,
    "head_dim": 20,
    "kv_lora_rank": 40,
    "layer_group_size": 2,
    "moe_intermediate_size": CONFIG["intermediate_size"],
    "num_attention_heads": 4,
    "num_experts": CONFIG["num_local_experts"],
    "num_key_value_heads": None,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
del LING["num_local_experts"]
"""Decays by channel beside gated latent rows, and limits of experts."""
MINIMAX = PLAIN | {
    "model_type": "minimax",
    "head_dim": 20,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_attn_alpha_factor": 1.5,
    "mlp_beta_factor": 0.7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Lightning attention, and residuals of normalised rows with factors."""

GROK = PLAIN | {
    "model_type": "git",
    "architectures": ["Grok1ForCausalLM"],
    "attn_logit_softcapping": 2.0,
    "attn_temperature_len": 20,
    "embedding_multiplier_scale": 2.0,
    "final_logit_softcapping": 3.0,
    "head_dim": 24,
    "moe_intermediate_size": CONFIG["intermediate_size"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "output_multiplier_scale": 0.5,
    "residual_moe": True,
    "router_logit_softcapping": 2.0,
}
"""Scores that grow with positions, behind a cap."""

LONG_LFM2 = SMALL_LFM2 | {"max_position_embeddings": 4096}
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain": (CONFIG, ()),
    "latent rows": (SMALL_DEEPSEEK, ()),
    "windowed": (WINDOWED, (64, 0, 100, 65)),
    "compressed rows": (SMALL_DEEPSEEK_V4, (64, 37, 100, 65)),
    "convolutions": (SMALL_LFM2, ()),
    "recurrent": (SMALL_QWEN, ()),
    "tables, streams and chosen blocks": (SMALL_QWEN4, ()),
    "layers of one block": (SMALL_NEMOTRON, ()),
    "channels with rates": (SMALL_JAMBA, ()),
    "late experts": (SMALL_LONGCAT, ()),
    "windows alone": (WINDOWED, (37, 70)),
    "windows and convolutions": (LONG_LFM2, (65,)),
    "gates and unlike heads": (LAGUNA, (0, 65, 0, 37)),
    "values of another width": (MIMO, (0, 65, 0, 65)),
    "sums of blocks": (GEMMA, (37, 0)),
    "chunks": (LLAMA4, (37, 0, 100, 0)),
    "norms around": (KOLIBRI, (0, 100, 0, 37)),
    "decays by channel": (LING, ()),
    "lightning": (MINIMAX, ()),
    "scores that grow": (GROK, ()),
}
"""Configurations, and the windows of their layers with attention, in turn; none: as configured."""

SLOW = {
    *("windows alone", "values of another width", "norms around", "gates and unlike heads", "windows and convolutions"),
    *("decays by channel", "sums of blocks", "layers of one block"),
}
"""Models whose operations others have too."""
SETTINGS = [("f16", EXPERTS, 3), ("q8", 6, 1), ("f16", 1, 2)]
"""Formats of keys and values, slots and threads."""


@pytest.fixture(autouse=True)
def folder_of_prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("invariants")
    config, windows = FAMILIES[request.param]
    write_checkpoint(folder / "source", config)
    store = convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")
    return Family(store, windows)


@pytest.fixture(scope="module")
def alone(family: Family, request: pytest.FixtureRequest) -> Iterator[tuple[Alone, str]]:
    reference = Alone(family, request.param)
    yield reference, request.param
    reference.close()


def work(family: Family, alone: tuple[Alone, str], slots: int, threads: int, steps: int, seeds: range) -> int:
    """Run random programs of sequences; returns how many results were compared."""
    compared, undo_tokens = 0, (0, 4, PAGE_TOKENS)[seeds.start % 3]
    chunk_tokens = (48, 256)[seeds.start // 3 % 2]
    context_length = 2048 if family.windows else 256
    sizes = {"undo_tokens": undo_tokens, "chunk_tokens": chunk_tokens, "context_length": context_length}
    with engine_with_slots(
        family.store,
        slots,
        threads,
        alone[1],
        sequences=SEQUENCES,
        windows=family.windows,
        prefix_disk="64MiB",
        **sizes,
    ) as engine:
        assert len(engine.sequence.windowed) == len({*family.windows} - {0})
        for seed in seeds:
            company = Company(engine, alone[0], seed)
            for _ in range(steps):
                company.step()
            company.close()
            compared += company.compared
    return compared


@pytest.mark.parametrize(
    ("family", "alone", "slots", "threads"),
    [
        pytest.param(name, *setting, marks=[pytest.mark.slow] * (name in SLOW) or marks)
        for (name, setting), marks, _ in default_pairs([*FAMILIES], SETTINGS)
    ],
    indirect=["family", "alone"],
)
def test_company_cuts_rewinds_forks_and_prefixes_change_no_bit(
    family: Family, alone: tuple[Alone, str], slots: int, threads: int
) -> None:
    assert work(family, alone, slots, threads, 12, range(threads, threads + 1)) > 6


BUDGETS = [(EXPERTS, 1), (EXPERTS, 3), (17, 2), (6, 1), (6, 3), (1, 2)]
"""Slots and threads."""
COMBINATIONS = [
    (name, ("f16", "q8")[turn % 2], *budget, ISAS[(number + turn // 2) % len(ISAS)])
    for number, name in enumerate(FAMILIES)
    for turn, budget in enumerate(BUDGETS)
]
"""All models under every budget; formats and instruction sets take turns."""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "alone", "slots", "threads", "isa"), COMBINATIONS, indirect=["family", "alone"])
def test_twenty_thousand_combinations(
    family: Family, alone: tuple[Alone, str], slots: int, threads: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least 120 logits of each combination, so some twenty thousand."""
    monkeypatch.setenv("EDGEMOE_ISA", isa)
    seed, compared = 100, 0
    while compared < 120:
        compared += work(family, alone, slots, threads, 120, range(seed, seed + 1))
        seed += 1
