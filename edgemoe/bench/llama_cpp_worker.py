"""llama.cpp as a worker (see `protocol.py`), through llama-cpp-python: `python -m edgemoe.bench.llama_cpp_worker`.

Names and meanings of the functions are those of `llama.h`, as the package's documentation gives them. Everything but
threads and sizes keeps llama.cpp's defaults (its repacking of weights for this processor, its attention); mapped
weights are not repacked, since the copy would hold the model in memory once more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from edgemoe.bench.protocol import serve
from edgemoe.errors import EdgemoeError, SourceError, UsageError
from edgemoe.process import major_faults, peak_rss_bytes

INSTALL_HINT = "Install it with: pip install 'edgemoe[peers]' (it is built from source, which takes some minutes)."
LOG_PIECES = 1000
"""The last pieces of llama.cpp's log that are kept to explain why it refused a file."""
MICRO_BATCH_TOKENS = 512
"""llama.cpp's default: the most tokens that it computes at once."""
NEEDED = ("LLAMA_LOAD_MODE_MMAP", "llama_memory_clear", "llama_model_load_from_file", "llama_init_from_model")


class LlamaCppWorker:
    """A model in llama.cpp, without text and without a GPU."""

    def __init__(self) -> None:
        self._log: deque[str] = deque(maxlen=LOG_PIECES)

    def open(self, gguf: str, threads: int, context: int, mmap: bool) -> dict[str, Any]:
        """Load a GGUF: read into memory, or with `mmap` mapped. Raises SourceError where llama.cpp refuses it."""
        llama = self._llama = _import_llama_cpp()
        self._callback = llama.llama_log_callback(self._keep_log)  # kept alive as long as llama.cpp may call it
        llama.llama_log_set(self._callback, None)
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        options.load_mode = llama.LLAMA_LOAD_MODE_MMAP if mmap else llama.LLAMA_LOAD_MODE_NONE
        options.use_extra_bufts = not mmap  # repacked weights are a copy in memory; mapped ones must stay evictable
        self._model = llama.llama_model_load_from_file(gguf.encode(), options)
        if not self._model:
            raise SourceError(f"{gguf}: llama.cpp refuses it: {self._reason()}", "Is it a GGUF that it supports?")
        sizes = llama.llama_context_default_params()
        sizes.n_ctx = sizes.n_batch = context
        sizes.n_ubatch = min(context, MICRO_BATCH_TOKENS)
        sizes.n_threads = sizes.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, sizes)
        if not self._context:
            raise SourceError(f"{gguf}: llama.cpp cannot run it: {self._reason()}", "It may need more memory.")
        self._batch = llama.llama_batch_init(context, 0, 1)
        vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        return {
            "version": f"llama-cpp-python {llama.__version__}",
            "system": llama.llama_print_system_info().decode(),
            "vocab_size": vocabulary,
            "layers": llama.llama_model_n_layer(self._model),
            "hidden_size": llama.llama_model_n_embd(self._model),
            "threads": llama.llama_n_threads(self._context),
        }

    def run(self, prompt: Sequence[int], continuation: Sequence[int]) -> dict[str, Any]:
        """Run the prompt in one batch, then token by token, with logits only of the last token of each batch."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)
        began_s = time.perf_counter()
        self._decode(prompt, 0)
        faults, prompted_s = major_faults(), time.perf_counter()
        for position, token in enumerate(continuation, start=len(prompt)):
            self._decode((token,), position)
        continued_s = time.perf_counter() - prompted_s
        return {
            "prompt_s": prompted_s - began_s,
            "continuation_s": continued_s,
            "major_faults": major_faults() - faults,
        }

    def end(self) -> dict[str, Any]:
        """Answer with the peak memory of this process."""
        return {"peak_rss_bytes": peak_rss_bytes()}

    def _decode(self, ids: Sequence[int], position: int) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row] = token, position + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            batch.logits[row] = row == len(ids) - 1
        status = self._llama.llama_decode(self._context, batch)
        if status != 0:
            raise EdgemoeError(f"llama.cpp could not compute {len(ids)} tokens (status {status}): {self._reason()}")
        self._llama.llama_get_logits_ith(self._context, -1)  # waits until the logits are there

    def _keep_log(self, level: int, text: bytes, user_data: object) -> None:
        self._log.append(text.decode("utf-8", "replace"))

    def _reason(self) -> str:
        """The errors that llama.cpp logged, else its last log lines."""
        lines = [line.strip() for line in "".join(self._log).splitlines() if line.strip()]
        chosen = [line for line in lines if "error" in line.lower() or "failed" in line.lower()] or lines[-1:]
        return f"{' / '.join(chosen)[-600:] or 'it gives no reason'}."


def _import_llama_cpp() -> Any:
    """Import llama-cpp-python. Raises UsageError if it is missing, or too old for this module."""
    try:
        import llama_cpp
    except ImportError as error:
        raise UsageError(f"llama-cpp-python cannot be imported: {error}.", INSTALL_HINT) from None
    missing = [name for name in NEEDED if not hasattr(llama_cpp, name)]
    if missing:
        raise UsageError(f"llama-cpp-python {llama_cpp.__version__} has no {missing[0]}.", "Upgrade it.")
    return llama_cpp


if __name__ == "__main__":
    worker = LlamaCppWorker()
    serve({"open": worker.open, "run": worker.run, "end": worker.end})
