"""Damaged GGUF files: each ends in one clear error, or in the store that its bytes truly describe.

The format has no checksums, so that a file with another weight or another number is another model, and no fault. What
the bytes of a mutant describe is read by the format's own package, which shares no code with our reader.
"""

from __future__ import annotations

import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers

from edgemoe.conversion.gguf.file_tensors import NAMES
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import write_gguf
from tests.support.mutants import Tally, mutants, overwrite
from tests.support.stores import store_weights

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "norm_topk_prob": True,
    "vocab_size": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
}
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|x|>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{{ messages[0].content }}",
    "general.sampling.temp": 0.5,
}
MEMORY_BYTES = 300 << 20


KINDS = {
    32: {"down_exps": "MXFP4", "_exps": "Q4_0", "attn_q.w": "Q8_0", "attn_k.w": "Q4_1", "attn_v": "F16"}
    | {"attn_o": "BF16", ".": "F32"},
    256: {"down_exps": "Q5_1", "_exps": "Q4_K", "attn_q.w": "Q6_K", "attn_k.w": "Q3_K", "attn_v": "IQ4_XS"}
    | {"attn_o": "IQ4_NL", "token_embd": "Q2_K", "output.w": "TQ1_0", ".": "F32"},
}
"""The types of a file by its width, whose rows are whole blocks."""


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """About 2 kB of header over 9 kB, or 40 kB, of weights: no mutation is far from what matters."""
    found = {}
    for width, kinds in KINDS.items():
        folder, config = tmp_path_factory.mktemp("whole"), CONFIG | {"hidden_size": width}
        write_checkpoint(folder / "checkpoint", config, dtype="F32")
        tensors = read_tensors(folder / "checkpoint")
        path = write_gguf(folder / "m.gguf", config, tensors, kinds=kinds, tokenizer=TOKENIZER, merged=True)
        found[width] = path.read_bytes()
    return found


def is_what_the_bytes_describe(store: Store, path: Path) -> bool:
    """Whether a store has the weights, numbers and tokens that the format's own package finds in a file."""
    reader = gguf.GGUFReader(path)
    found = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for name, values in store_weights(store).items():
        own = name.removeprefix("layers.0.")
        if own.startswith("experts."):
            _, expert, matrix = own.split(".")
            rows = found["blk.0.ffn_down_exps.weight" if matrix == "down" else "blk.0.ffn_gate_up_exps.weight"]
            expected = rows[int(expert)]
            expected = {"gate": expected[:32], "up": expected[32:], "down": expected}[matrix]
        else:
            expected = found[gguf.TENSOR_NAMES[NAMES[own]].format(bid=0) + ".weight"]
        if not np.array_equal(values, expected.reshape(values.shape), equal_nan=True):
            return False
    spec = store_spec(store)
    attention: Any = spec.layers[0].blocks[0].body
    numbers = {
        "attention.layer_norm_rms_epsilon": spec.norm_epsilon,
        "context_length": spec.max_positions,
        "expert_used_count": spec.most_top_k,
        "attention.head_count": attention.heads,
    }
    if any(np.float32(reader.fields[f"qwen3moe.{key}"].contents()) != np.float32(n) for key, n in numbers.items()):
        return False
    tokenizer = tokenizers.Tokenizer.from_file(str(store.path / "tokenizer.json"))
    return [tokenizer.id_to_token(number) for number in range(4)] == reader.fields["tokenizer.ggml.tokens"].contents()


@pytest.mark.parametrize(
    ("width", "seed", "count"),
    [
        *((32, 0, 16), (256, 0, 8)),
        *(pytest.param(width, seed, 500, marks=pytest.mark.slow) for width in KINDS for seed in range(1, 7)),
    ],
)
def test_a_damaged_file_is_refused_or_taken_at_its_word(
    wholes: dict[int, bytes], width: int, seed: int, count: int, tmp_path: Path
) -> None:
    tally, path, whole = Tally(), tmp_path / "m.gguf", wholes[width]
    path.write_bytes(whole)
    assert is_what_the_bytes_describe(converted(path), path)
    before = peak_bytes()
    for what, data in mutants(whole, count, seed):
        overwrite(path, data)
        tally.count(what, lambda: converted(path), lambda store: is_what_the_bytes_describe(store, path))

    tally.require_no_fault(count)
    assert tally.refused > count // 8
    assert tally.same > count // 8
    assert peak_bytes() - before < MEMORY_BYTES


def converted(path: Path) -> Store:
    folder = path.parent / "store"
    shutil.rmtree(folder, ignore_errors=True)
    # A mutant before may have left unfinished work: weights that are no numbers are found as they are read.
    return Store.open(convert_checkpoint(str(path), folder, experts="f32", dense="f32", force=True))


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
