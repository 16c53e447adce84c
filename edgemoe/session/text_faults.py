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
                beyond = {id_: token for token, id_ in tokenizer.require().get_vocab().items() if id_ >= vocabulary}
                if beyond:
                    first = min(beyond)
                    faults.append(
                        f"{TOKENIZER_NAME} has {len(beyond)} token{'s' * (len(beyond) > 1)} without a row in the"
                        f" embedding of {vocabulary}: the first is {beyond[first][:40]!r}, id {first}. A text that"
                        " contains one will be refused. Is it the tokenizer of this model? If tokens were added in"
                        " training, these weights are older than the tokenizer."
                    )
            except StoreError as error:
                faults.append(f"The store will not be able to read or write text: {error}")
        try:
            template_source(folder)
        except StoreError as error:
            faults.append(f"The store will not be able to chat: {error}")
        return [fault.replace(f"{folder}/", "") for fault in faults]
