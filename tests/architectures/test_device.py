"""Golden models on a device beside the processor: between them they have every operation for which it has a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.lowering import LOWERINGS
from edgemoe.kernels.device.runtime import Runtime
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.model.build import build_graph
from tests.architectures.harness import load_checkpoint
from tests.golden.cases import CASES
from tests.golden.covering import COVERING, GOLDEN

MODELS = (
    "qwen4_exp_text",
    "deepseek_v4",
    "nemotron_h_latent",
    "dbrx_plain",
    "gemma4",
    "llama4",
    "jamba",
    "gpt_oss",
    "bailing_hybrid",
)
IDS = np.load(GOLDEN / "gpt_oss" / "golden.npz")["ids"][:150]


class Copying(HostRuntime):
    """The host with memory of its own for what the device has."""

    def adopt(self, host: object) -> None:  # type: ignore[override]
        return None


def pocl() -> Runtime:
    pytest.importorskip("pyopencl", reason="needs the extra pocl")
    from edgemoe.kernels.device.opencl import OpenClRuntime

    return OpenClRuntime("pocl")


@pytest.fixture(scope="module", params=[Copying, pocl])
def device(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """A device that stays open for all models."""
    runtime: Runtime = request.param()
    close = runtime.close
    runtime.close = lambda: None  # type: ignore[method-assign]
    yield runtime
    close()


@pytest.mark.slow
def test_these_models_have_every_operation_of_the_device() -> None:
    """Every operation of any golden model, that is."""
    graphs = {name: build_graph(model_spec(load_checkpoint(GOLDEN / name)[0])) for name in CASES if name in COVERING}
    kinds = {
        name: {type(step.operation) for section in graph.sections() for step in section.steps} & LOWERINGS.keys()
        for name, graph in graphs.items()
    }
    assert set().union(*(kinds[name] for name in MODELS)) == set().union(*kinds.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_device_gives_the_bits_of_the_native_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: Runtime, name: str
) -> None:
    """Chunks, single tokens, ways back, forks and eight sequences, whose pages the host copies now and then."""
    store = convert_checkpoint(str(GOLDEN / name), tmp_path / name, experts="q4", dense="q8")
    made: list[Callable[..., Backend]] = [lambda *_: NativeBackend(1), lambda *_: DeviceBackend(device, 1)]
    found = []
    for make in made:
        monkeypatch.setattr("edgemoe.engine.opening.select_backend", make)
        options = EngineOptions(threads=1, context_length=256, sequences=9, kv="f16")
        with open_engine(store, options) as engine:
            found.append([logits.tobytes() for logits in answers(engine, IDS % engine.spec.vocab_size)])
            assert getattr(engine.backend, "failure", None) is None
    assert found[0] == found[1]


def answers(engine: Engine, ids: np.ndarray) -> Iterator[np.ndarray]:
    for piece in np.split(ids, [70, 71, 72, 130]):
        yield engine.forward(piece, all_logits=True)
    engine.rewind(100)
    yield engine.forward(ids[100:120], all_logits=True)
    sequences = [engine.sequences.open(), *(engine.sequences.fork(engine.sequence) for _ in range(4))]
    sequences += [engine.sequences.open(ids[:100]), *(engine.sequences.open() for _ in range(2))]
    for step in range(3):
        batch = {one: batch_of(ids, number, step, one.position) for number, one in enumerate(sequences)}
        logits = engine.step(batch)
        yield from (logits[one] for one in sequences)


def batch_of(ids: np.ndarray, number: int, step: int, position: int) -> Sequence[int]:
    """Some tokens for a sequence: no two go on alike."""
    return ids[(position + 7 * number + step) % 90 :][: 1 + number * (step == 0)].tolist()
