"""The cost in quality of keys and values in 8 bits, on the bundled model and text of this repository.

`pytest -m slow -s tests/test_kv_quality.py` prints the figures of docs/performance.md.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edgemoe.bench.evaluation import Evaluation, Settings
from edgemoe.bench.evaluation_report import ModelResult
from edgemoe.cli.main import run_command
from edgemoe.engine.options import EngineOptions
from edgemoe.session.default_model import find_model

ROOT = Path(__file__).parents[1]


def compare(store: Path, kvs: tuple[str | None, str | None], positions: int) -> ModelResult:
    """The second cache against the first, over the beginning of this repository's own texts."""
    text = "\n".join((ROOT / name).read_text("utf-8") for name in ("README.md", "ARCHITECTURE.md"))
    settings = Settings(context_length=positions, stride=positions - 1, tokens=2 * positions)
    with TemporaryDirectory() as folder:
        run = Path(folder, "run")
        first, second = (Evaluation(text, "README.md", settings, EngineOptions(kv=kv)) for kv in kvs)
        first.run([store], save=run)
        (result,) = second.run([store], against=run).models
    return result


def describe(found: ModelResult) -> str:
    divergence, reference = found.divergence, found.reference_loss_nats
    assert divergence is not None
    assert reference is not None
    return (
        f"{found.positions} positions: KL {divergence.nats.mean:.6f} nats, same top token"
        f" {divergence.same_top.mean:.1%}, losses {reference.mean:.4f} and {found.loss_nats.mean:.4f}"
    )


@pytest.mark.slow
def test_8_bits_cost_the_bundled_model_little() -> None:
    found = compare(find_model(None), ("f16", "q8"), 80)
    print("\nbundled model, q8 against f16:", describe(found))
    assert found.divergence is not None
    assert found.divergence.loss_difference is not None
    assert 0 < found.divergence.nats.mean < 0.02
    assert found.divergence.same_top.mean > 0.9
    assert found.divergence.loss_difference.mean == pytest.approx(0.0, abs=0.03)


@pytest.mark.slow
def test_the_quality_of_8_bits(tmp_path: Path) -> None:
    """As it is, and with the same weights in float32, where no int8 activation rounds the other way on top of it."""
    print("\nbundled model, q8 against f16:", describe(compare(find_model(None), ("f16", "q8"), 700)))
    with TemporaryDirectory(dir=tmp_path) as folder:  # a gigabyte, which pytest would keep
        file, exact = f"{folder}/exact.gguf", Path(folder, "exact")
        assert run_command(["export", str(find_model(None)), file]) == 0
        assert run_command(["convert", file, str(exact), "--experts", "f32", "--dense", "f32"]) == 0
        of_f16, of_q8 = compare(exact, (None, "f16"), 700), compare(exact, ("f16", "q8"), 700)
    print("weights and activations in float32, f16 against f32:", describe(of_f16))
    print("weights and activations in float32, q8 against f16:", describe(of_q8))
    assert of_f16.divergence is not None
    assert of_q8.divergence is not None
    assert of_q8.divergence.loss_difference is not None
    assert of_f16.divergence.nats.mean < 5e-5 < of_q8.divergence.nats.mean < 1e-3
    assert of_q8.divergence.same_top.mean > 0.97
    assert of_q8.divergence.loss_difference.mean == pytest.approx(0.0, abs=0.005)
