"""A worker that decodes a given text and writes its logits to a file (see `protocol.py`): one side of a comparison.

`python -m edgemoe.bench.quality_worker`. Requests:

    open    as edgemoe's own worker, with `lossy`
    decode  prompt, ids, file: with a prompt, forgets the sequence and reads the prompt at once; then the ids token
            by token, writing each one's logits to `file` (float32, `(T, V)`). Answers with `seconds` of the ids alone,
            and counters.
    end     answers with `peak_rss_bytes`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemoe.bench.edgemoe_worker import EdgemoeWorker, counters
from edgemoe.bench.protocol import serve


class QualityWorker(EdgemoeWorker):
    """An engine that reads a given text, whatever it would have generated itself."""

    def decode(self, prompt: Sequence[int], ids: Sequence[int], file: str) -> dict[str, Any]:
        """Write the logits after each of the ids to a file."""
        engine = self.engine
        if prompt:
            engine.rewind(0)
            engine.turn.begin()
            engine.read_prompt(prompt)
        engine.turn.begin_decoding()
        before = counters(engine)
        elapsed_ns = 0
        with Path(file).open("wb") as output:
            for token in ids:
                began_ns = time.perf_counter_ns()
                logits = engine.forward([token])
                elapsed_ns += time.perf_counter_ns() - began_ns
                output.write(logits.data)
        used = {name: value - before[name] for name, value in counters(engine).items()}
        return {"seconds": elapsed_ns / 1e9, **used}


if __name__ == "__main__":
    worker = QualityWorker()
    serve({"open": worker.open, "decode": worker.decode, "end": worker.end})
