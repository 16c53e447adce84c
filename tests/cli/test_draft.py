"""Draft models as a person meets them: an MTP head is converted, named, and tells what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.cli.main import run_command
from tests.support.checkpoints import SMALL_DEEPSEEK, read_tensors, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer


def write_with_head(folder: Path) -> None:
    """Write a checkpoint whose head's block is the model's last layer once more."""
    write_checkpoint(folder, SMALL_DEEPSEEK | {"vocab_size": 96}, dtype="F32")
    write_letters_tokenizer(folder)
    tensors, last = read_tensors(folder), int(SMALL_DEEPSEEK["num_hidden_layers"])
    own = {
        name.replace(f".{last - 1}.", f".{last}.", 1): values
        for name, values in tensors.items()
        if name.startswith(f"model.layers.{last - 1}.")
    }
    size = SMALL_DEEPSEEK["hidden_size"]
    halves = np.concatenate([np.eye(size), np.eye(size)], 1).astype(np.float32)
    ends = {"eh_proj": halves, **dict.fromkeys(("enorm", "hnorm", "shared_head.norm"), np.ones(size, np.float32))}
    own |= {f"model.layers.{last}.{name}.weight": values for name, values in ends.items()}
    save_file(tensors | own, folder / "model.safetensors")


def test_a_head_from_checkpoint_to_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model, head = (str(tmp_path / name) for name in ("source", "model", "head"))
    write_with_head(Path(source))

    def said(*arguments: str) -> str:
        code = run_command([*arguments])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown.out

    said("convert", source, model)
    assert said("convert", source, head, "--mtp").endswith(f"edgemoe chat MODEL --draft {head}\n")
    ask = ("run", model, "-p", "Once upon", "--max-tokens", "8", "--context", "128", "--json")
    plain, drafted = (
        json.loads(said(*ask, *more)) for more in (("--speculate", "off"), ("--speculate", "2", "--draft", head))
    )
    assert drafted["token_ids"] == plain["token_ids"]
    for arguments, error in (
        (("run", head, "-p", "Hi"), "and name this one as its --draft"),
        (("inspect", head), "an MTP head, which guesses for the model"),
        (("bench", model, "--draft", head), "--draft is for --speculate"),
        (("run", model, "-p", "Hi", "--draft", head, "--speculate", "off"), "--draft names a model that guesses"),
    ):
        assert run_command([*arguments]) in (1, 2)
        assert error in capsys.readouterr().err
