"""Notices: convert says before it reads the weights how a checkpoint falls short."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import pytest

from edgemoe.architectures import VISION
from edgemoe.conversion import pipeline
from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint


def notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **side_files: bytes) -> list[str]:
    """The notices for a small checkpoint with these side files; none of them comes after the first weight."""
    heard: list[str] = []
    count: list[int] = []
    run = pipeline.Transfer.run

    def counted(self: pipeline.Transfer, apart: Collection[int], release: bool) -> None:
        count.append(len(heard))
        run(self, apart, release)

    monkeypatch.setattr(pipeline.Transfer, "run", counted)
    files = {name.replace("__", "."): content for name, content in side_files.items()}
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, side_files=files)
    convert_checkpoint(str(tmp_path / "model"), tmp_path / "store", notice=heard.append)
    assert count == [len(heard)]
    return heard


def test_a_checkpoint_with_all_it_needs_is_converted_without_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert notices(tmp_path, monkeypatch, tokenizer__json=b"{}") == []


@pytest.mark.parametrize("name", ["vocab__json", "other__tiktoken"])
def test_how_to_make_a_tokenizer_json_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The recipe was tried with transformers 5.24.0."""
    (heard,) = notices(tmp_path, monkeypatch, **{name: b"x"})
    assert f"has {name.replace('__', '.')} but no tokenizer.json" in heard
    assert "AutoTokenizer.from_pretrained(CHECKPOINT, use_fast=True).save_pretrained(FOLDER)" in heard
    assert "edgemoe update STORE" in heard


def test_no_tokenizer_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (heard,) = notices(tmp_path, monkeypatch, README__md=b"x")
    assert "has no tokenizer.json" in heard


def test_what_belongs_to_a_tower_for_images_is_counted_and_left_out_once(tmp_path: Path) -> None:
    heard: list[str] = []
    golden = Path(__file__).parents[1] / "golden" / "gemma4"
    convert_checkpoint(str(golden), tmp_path / "store", notice=heard.append)
    (left_out,) = [notice for notice in heard if "left out" in notice]
    assert re.match(r"16 tensors, such as model\.(embed_vision|vision_tower)\.\S+, are left out: ", left_out)
    assert left_out.endswith(f"they belong to {VISION}.")
