"""Faults that will keep a store from reading and writing text, seen in a checkpoint's small files beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgemoe.errors import StoreError
from edgemoe.session.template import template_source
from edgemoe.session.tokenizer import TOKENIZER_NAME, Tokenizer


def text_faults(files: Mapping[str, bytes], vocabulary: int) -> list[str]:
    """A sentence or two for each fault of these files, given with their contents, for a model of this vocabulary."""
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        if TOKENIZER_NAME in files:
            try:
                tokenizer = Tokenizer.load(folder, vocabulary)
                faults += tokenizer.remarks
                largest = max(tokenizer.require().get_vocab().values(), default=0)
                if largest >= vocabulary:
                    faults.append(
                        f"{TOKENIZER_NAME}: its token ids go up to {largest}, those of the model to {vocabulary - 1}:"
                        " text with greater ids will be refused. Is it the tokenizer of this model?"
                    )
            except StoreError as error:
                faults.append(f"The store will neither read nor write text: {error}")
        try:
            template_source(folder)
        except StoreError as error:
            faults.append(f"The store will not chat: {error}")
        return [fault.replace(f"{folder}/", "") for fault in faults]
