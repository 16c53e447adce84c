"""edgemoe with its text as a worker (see `protocol.py`), which writes answers as `edgemoe run` does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgemoe.bench.protocol import serve
from edgemoe.engine.options import EngineOptions
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.model import Model, load
from edgemoe.session.template import template_source


class WriterWorker:
    """A model with its tokenizer: token ids or messages in, answers out."""

    model: Model
    speculate: str | int
    """The drafts that the model was opened with."""

    def open(self, model: str, options: Mapping[str, Any], draft: str | None = None) -> dict[str, Any]:
        """Open a model; `options` are those of `EngineOptions` as JSON, and `draft` names a draft model.

        Answers with the kernels and the vocabulary.
        """
        self.model = load(model, replace(EngineOptions.from_json(options), warm_start=False), draft)
        self.speculate = self.model.engine.speculate
        backend = self.model.engine.backend
        return {
            "kernels": {"backend": backend.name, "isa": backend.isa, "threads": backend.threads},
            "vocabulary": self.model.spec.vocab_size,
        }

    def write(self, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
        """Write so many tokens, likeliest first, past every end.

        Answers with their rate, and the time to the first piece of text.
        """
        options = SamplingOptions(suppress_tokens=sorted(self.model.tokenizer.stop_ids))
        answer = self.model.stream(prompt, tokens, options)
        began_s, first_s = time.perf_counter(), None
        for _ in answer:
            first_s = first_s or time.perf_counter() - began_s
        assert answer.statistics is not None
        return {"tokens_per_s": answer.statistics.decode_tokens_per_s, "first_s": first_s}

    def answer(self, prompt: str, tokens: int, temperature: float, seed: int, drafts: bool) -> dict[str, Any]:
        """Answer a message, or continue a text where the model has no chat template, with drafts or without.

        Answers with the token ids and their rate, which counts from the first token on.
        """
        model = self.model
        ids = model.encode_chat(prompt) if template_source(model.folder) is not None else model.encode(prompt)
        model.engine.speculate = self.speculate if drafts else "off"
        model.held.rewind(0)
        answer = model.stream(ids, tokens, SamplingOptions(temperature=temperature, seed=seed))
        for _ in answer:
            pass
        assert answer.statistics is not None
        return {"token_ids": answer.token_ids, "tokens_per_s": answer.statistics.decode_tokens_per_s}


if __name__ == "__main__":
    worker = WriterWorker()
    serve({"open": worker.open, "write": worker.write, "answer": worker.answer})
