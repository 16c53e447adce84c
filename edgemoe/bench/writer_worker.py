"""edgemoe with its text as a worker (see `protocol.py`), which writes answers as `edgemoe run` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgemoe.bench.protocol import serve
from edgemoe.engine.options import EngineOptions
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.model import Model, load


class WriterWorker:
    """A model with its tokenizer: token ids in, pieces of text out."""

    model: Model

    def open(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Open a model; `options` are those of `EngineOptions` as JSON. Answers with the kernels and the vocabulary."""
        self.model = load(model, replace(EngineOptions.from_json(options), warm_start=False))
        backend = self.model.engine.backend
        return {
            "kernels": {"backend": backend.name, "isa": backend.isa, "threads": backend.threads},
            "vocabulary": self.model.spec.vocab_size,
        }

    def write(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Write so many tokens, likeliest first, past every end; answers with their rate."""
        options = SamplingOptions(suppress_tokens=sorted(self.model.tokenizer.stop_ids))
        answer = self.model.stream(prompt, tokens, options)
        for _ in answer:
            pass
        assert answer.statistics is not None
        return {"tokens_per_s": answer.statistics.decode_tokens_per_s}


if __name__ == "__main__":
    worker = WriterWorker()
    serve({"open": worker.open, "write": worker.write})
