"""The `edgemoe` command with a fake engine in place of the real one: `python -m tests.support.fake_main ARGUMENTS`.

FAKE_SAYS is what the model says; FAKE_SECONDS how long it takes over each token; FAKE_HANGS the call of the engine that
never ends.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

import edgemoe.engine.opening
from edgemoe.cli.main import main
from edgemoe.engine.options import EngineOptions
from tests.support.fake_engine import FakeEngine


class SlowEngine(FakeEngine):
    def forward(self, token_ids: Sequence[int], *, all_logits: bool = False, out: Any = None) -> Any:
        if len(self.calls) == int(os.environ.get("FAKE_HANGS", "-1")):
            hang()
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        return super().forward(token_ids, all_logits=all_logits)


def hang() -> None:
    """Never returns from C, whatever signals come, as a read from a disk that is gone: locks a mutex twice."""
    mutex = ctypes.create_string_buffer(256)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def open_fake_engine(
    path: Path, options: EngineOptions, meanwhile: Callable[[], None] = lambda: None, beside: None = None
) -> FakeEngine:
    meanwhile()
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    says = os.environ.get("FAKE_SAYS", "Hello, world!")
    script = [*tokenizer.encode(says).ids, 1]
    engine = SlowEngine(tokenizer.get_vocab_size(), options.context_length or 512, script)
    engine.lossy = options.lossy
    return engine


def run() -> None:
    """The command of this process's arguments."""
    edgemoe.engine.opening.open_engine = open_fake_engine  # type: ignore[assignment]
    sys.argv[0] = "edgemoe"
    main()


if __name__ == "__main__":
    run()
