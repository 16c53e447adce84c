from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer


@pytest.fixture(scope="session")
def letters_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of random weights whose tokens are characters."""
    folder = tmp_path_factory.mktemp("letters")
    write_checkpoint(folder / "source", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "source")
    convert_checkpoint(str(folder / "source"), folder / "letters", experts="q4", dense="q8")
    return folder / "letters"
