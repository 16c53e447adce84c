"""Models on a test's hub: GGUF files in several quantisations, and what lies beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.checkpoints import SMALL_MIXTRAL, read_tensors, write_checkpoint
from tests.support.gguf_files import tokenizer_metadata, write_gguf
from tests.support.small_tokenizer import TEMPLATE, small_tokenizer

GGUF_MODEL = "maker/Tiny-GGUF"
PLAIN = "Tiny-Q4_K_M.gguf"
"""One file, called by the usual quantisation, which is not what it is in."""
LARGE = "Tiny-Q8_0.gguf"
SPLIT = tuple(f"Q4_1/Tiny-Q4_1-{number:05d}-of-00003.gguf" for number in (1, 2, 3))


def gguf_files(folder: Path) -> dict[str, bytes]:
    """The files of a repository of GGUF files. The weights of all of them are made from one checkpoint."""
    config = SMALL_MIXTRAL | {"intermediate_size": 96, "vocab_size": small_tokenizer().get_vocab_size()}
    write_checkpoint(folder / "checkpoint", config, dtype="F32")
    tensors = {name: np.asarray(values) for name, values in sorted(read_tensors(folder / "checkpoint").items())}
    words = {**tokenizer_metadata(small_tokenizer(), "gpt-2"), "tokenizer.chat_template": TEMPLATE}
    for name, kind, files in ((PLAIN, "Q4_0", 1), (LARGE, "Q8_0", 1), ("Q4_1/Tiny-Q4_1.gguf", "Q4_1", 3)):
        path = folder / "ggufs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = {"_exps": kind, "ffn_gate_inp": "F32", ".": "Q8_0"}
        write_gguf(path, config, tensors, kinds=kinds, tokenizer=words, files=files)
    found = {
        path.relative_to(folder / "ggufs").as_posix(): path.read_bytes() for path in folder.glob("ggufs/**/*.gguf")
    }
    assert found.keys() == {PLAIN, LARGE, *SPLIT}
    beside = dict.fromkeys(("mmproj-Q4_K_M.gguf", "Tiny.imatrix.gguf", "README.md", "config.json"), b"{}")
    return found | beside
