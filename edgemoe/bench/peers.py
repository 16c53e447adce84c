"""Other engines, to be measured beside edgemoe on the same weights."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemoe.bench.llama_cpp_worker import INSTALL_HINT
from edgemoe.errors import SourceError, UsageError
from edgemoe.model.spec import ModelSpec
from edgemoe.session.default_model import model_name
from edgemoe.store.reader import Store

LLAMA_CPP = "llama.cpp"
PEERS = (LLAMA_CPP,)


@dataclass(frozen=True)
class Peer:
    """An engine's worker: how it is started, and what it is to open."""

    name: str
    command: Sequence[str]
    options: Mapping[str, Any]

    def check_sizes(self, about: Mapping[str, Any], spec: ModelSpec) -> None:
        """Raises SourceError if the shape of the worker's model differs from the store's."""
        expected = {"vocab_size": spec.vocab_size, "layers": len(spec.layers), "hidden_size": spec.hidden_size}
        for name, value in expected.items():
            if about[name] != value:
                raise SourceError(
                    f"{self.options['gguf']}: not of the same shape as the store: expected {name} {value},"
                    f" found {about[name]}.",
                    "Give the GGUF of this model, or leave `gguf` out to export it from the store.",
                )


def check_peer(name: str, gguf: Path | None) -> None:
    """Raises UsageError for an unknown engine or one that is not installed, SourceError for a missing file."""
    if name not in PEERS:
        raise UsageError(f"`against={name}`: expected {', '.join(PEERS)}.", "No other engine is supported yet.")
    if importlib.util.find_spec("llama_cpp") is None:
        raise UsageError("llama-cpp-python is not installed.", INSTALL_HINT)
    if gguf is not None and not gguf.is_file():
        raise SourceError(f"{gguf}: there is no such file.", "Leave `gguf` out to export it from the store.")


@contextmanager
def open_peer(model: Path, gguf: Path | None, threads: int, context_tokens: int, mmap: bool) -> Iterator[Peer]:
    """Describe llama.cpp with the given GGUF, the model's own, or a temporary one made from the store, for a while."""
    if gguf is None and model.is_file():
        gguf = model
    with tempfile.TemporaryDirectory(prefix="edgemoe-bench-") as folder:
        if gguf is None:
            from edgemoe.conversion.gguf.export import export_gguf

            gguf = export_gguf(Store.open(model), Path(folder) / "model.gguf", name=model_name(model))
        options = {"gguf": str(gguf), "threads": threads, "context": context_tokens, "mmap": mmap}
        yield Peer(LLAMA_CPP, [sys.executable, "-m", "edgemoe.bench.llama_cpp_worker"], options)
