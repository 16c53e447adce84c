"""In the place of llama-cpp-python: its low-level functions, as far as the worker calls them, on no model at all.

A "GGUF" is JSON: `vocab_size`, `layers`, `hidden_size`, or `refused` with the reason. What is decoded goes as lines of
JSON to the file that FAKE_LLAMA_LOG names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = "0.fake"
LLAMA_LOAD_MODE_NONE, LLAMA_LOAD_MODE_MMAP = 0, 1
DECODE_SECONDS = 0.002

_log: Callable[[int, bytes, object], None]


def llama_log_callback(function: Any) -> Any:
    return function


def llama_log_set(callback: Any, user_data: object) -> None:
    global _log
    _log = callback


def llama_backend_init() -> None:
    pass


def llama_model_default_params() -> Any:
    return SimpleNamespace(n_gpu_layers=-1, load_mode=-1)


def llama_context_default_params() -> Any:
    return SimpleNamespace(n_ctx=0, n_batch=0, n_ubatch=0, n_threads=0, n_threads_batch=0)


def llama_model_load_from_file(path: bytes, params: Any) -> Any:
    assert params.n_gpu_layers == 0
    model = json.loads(Path(path.decode()).read_text())
    _log(1, b"loading", None)
    if "refused" in model:
        for piece in (b"llama_model_load: ", f"error loading model: {model['refused']}\n".encode(), b"bye\n"):
            _log(4, piece, None)
        return None
    return SimpleNamespace(**model, load_mode=params.load_mode)


def llama_init_from_model(model: Any, params: Any) -> Any:
    assert params.n_threads == params.n_threads_batch > 0
    assert params.n_ctx == params.n_batch >= params.n_ubatch > 0
    return SimpleNamespace(model=model, params=params, position=0, outputs=0)


def llama_batch_init(tokens: int, embd: int, sequences: int) -> Any:
    assert (embd, sequences) == (0, 1)
    none = [None] * tokens
    return SimpleNamespace(
        n_tokens=0, token=[*none], pos=[*none], n_seq_id=[*none], seq_id=[[None] for _ in none], logits=[*none]
    )


def llama_model_get_vocab(model: Any) -> Any:
    return model


def llama_vocab_n_tokens(model: Any) -> int:
    return int(model.vocab_size)


def llama_model_n_layer(model: Any) -> int:
    return int(model.layers)


def llama_model_n_embd(model: Any) -> int:
    return int(model.hidden_size)


def llama_n_threads(context: Any) -> int:
    return int(context.params.n_threads)


def llama_print_system_info() -> bytes:
    return b"FAKE = 1"


def llama_get_memory(context: Any) -> Any:
    return context


def llama_memory_clear(context: Any, data: bool) -> None:
    context.position = 0


def llama_decode(context: Any, batch: Any) -> int:
    count = batch.n_tokens
    if batch.pos[:count] != list(range(context.position, context.position + count)):
        _log(4, b"failed to find a slot\n", None)
        return 1
    assert batch.n_seq_id[:count] == [1] * count
    assert [ids[0] for ids in batch.seq_id[:count]] == [0] * count
    context.position += count
    context.outputs = sum(batch.logits[:count])
    time.sleep(DECODE_SECONDS)
    if "FAKE_LLAMA_LOG" in os.environ:
        call = {"ids": batch.token[:count], "logits": [int(flag) for flag in batch.logits[:count]]}
        more = {"threads": context.params.n_threads, "mmap": context.model.load_mode == LLAMA_LOAD_MODE_MMAP}
        with Path(os.environ["FAKE_LLAMA_LOG"]).open("a") as file:
            file.write(json.dumps({**call, **more}) + "\n")
    return 0


def llama_get_logits_ith(context: Any, index: int) -> Any:
    assert context.outputs == 1
    assert index == -1
