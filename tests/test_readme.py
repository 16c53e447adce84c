"""The examples of README.md that need no download run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgemoe
from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer


def test_texts_that_decode_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "sequences=" in block)
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL)
    write_letters_tokenizer(tmp_path / "source")
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "olmoe", experts="q4", dense="q8")
    monkeypatch.chdir(tmp_path)
    exec(example, {"edgemoe": edgemoe})
    found = capsys.readouterr().out
    with edgemoe.load("olmoe") as model:
        alone = [model.generate(model.encode(text), max_tokens=40) for text in ("Once upon", "The sea")]
    assert len(alone[0].token_ids) > 3
    for text, answer in zip(("Once upon", "The sea"), alone, strict=True):
        assert repr(model.decode([*model.encode(text), *answer.token_ids]))[:-1] in found
