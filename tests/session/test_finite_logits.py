"""Logits that are not finite numbers: one error, with the way out that the kind of cache leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from edgemoe.cli.main import run_command
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError
from edgemoe.session.held_tokens import HeldTokens
from edgemoe.session.model import load
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.every_case import every_case
from tests.support.fake_engine import FakeEngine
from tests.support.letters_tokenizer import write_letters_tokenizer


class BrokenEngine(FakeEngine):
    """One of its logits is what a test wants."""

    wrong = 0.0

    def forward(
        self, token_ids: Sequence[int], *, all_logits: bool = False, out: object = None
    ) -> npt.NDArray[np.float32]:
        logits = super().forward(token_ids, all_logits=all_logits)
        logits[..., 3] = self.wrong
        return logits


@every_case("all_logits", [False, True])
@every_case("wrong", [math.nan, math.inf, -math.inf])
@every_case("kv_format", ["f16", "q8", "f32"])
def test_such_tokens_are_not_held(wrong: float, kv_format: str, all_logits: bool) -> None:
    engine = BrokenEngine(20)
    engine.memory.kv_format = kv_format
    held = HeldTokens(engine)  # type: ignore[arg-type]
    held.forward([1, 2])
    engine.wrong = wrong
    with pytest.raises(EdgemoeError, match="not all finite") as error:
        held.forward([4], all_logits=all_logits)
    assert ("`kv=q8`" in str(error.value)) == (kv_format == "f16")
    assert "edgemoe verify" in str(error.value)
    assert (held.ids, engine.position) == ([1, 2], 2)
    engine.wrong = 0.0
    held.forward([4])
    assert held.ids == [1, 2, 4]


@pytest.fixture(scope="module")
def large_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose keys are beyond float16, and not beyond what int8 with a scale holds."""
    folder = tmp_path_factory.mktemp("keys")
    write_checkpoint(folder / "source", SMALL_MIXTRAL, dtype="F32", side_files={"generation_config.json": b"{}"})
    write_letters_tokenizer(folder / "source")
    weights = folder / "source" / "model.safetensors"
    tensors = load_file(weights)
    for name, values in tensors.items():
        if "norm" in name:
            values[:] = 1
        elif "k_proj" in name:
            values *= 1e6
    save_file(tensors, weights, {"format": "pt"})
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


def test_keys_beyond_float16(large_keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(large_keys) as model:
        for use in (model.logits, model.generate):
            with pytest.raises(EdgemoeError, match=r"beyond float16.* `kv=q8`"):
                use([1, 2, 3])
    with load(large_keys, EngineOptions(kv="q8")) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
    assert run_command(["run", str(large_keys), "-p", "abc", "--raw"]) == 1
    assert "open the model with --kv q8." in capsys.readouterr().err
    assert run_command(["run", str(large_keys), "-p", "abc", "--raw", "--kv", "q8", "--max-tokens", "2"]) == 0
