import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemoe.bench.protocol import Start
from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.forked_workers import IMPORTS, forked_start
from tests.support.forks import ForkServer
from tests.support.letters_tokenizer import write_letters_tokenizer

FAKE_LLAMA_CPP = Path(__file__).parents[1] / "support" / "fake_llama_cpp"


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast memory is read does not matter here; how long it takes to ask does."""
    monkeypatch.setattr("edgemoe.bench.roofline.BUFFER_BYTES", 4 << 20)
    monkeypatch.setattr("edgemoe.bench.rates.PASS_SECONDS", 0.02)


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Forks workers, which takes a tenth of the time that a start takes; where starts are measured they are genuine."""
    with ForkServer(*IMPORTS) as server:
        yield forked_start(server)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has a tokenizer."""
    folder = tmp_path_factory.mktemp("bench")
    write_checkpoint(folder / "tiny", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "tiny")
    return convert_checkpoint(str(folder / "tiny"), folder / "tiny-moe", experts="q4", dense="q8")


@pytest.fixture(scope="session")
def store_without_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, as random weights are: without a tokenizer."""
    folder = tmp_path_factory.mktemp("bench")
    write_checkpoint(folder / "tiny", SMALL_MIXTRAL, side_files={"generation_config.json": b"{}"})
    return convert_checkpoint(str(folder / "tiny"), folder / "no-text", experts="q4", dense="q8")


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A description that the fake llama.cpp accepts as a GGUF of the same model."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    sizes = {"vocab_size": SMALL_MIXTRAL["vocab_size"], "hidden_size": SMALL_MIXTRAL["hidden_size"]}
    path.write_text(json.dumps({**sizes, "layers": SMALL_MIXTRAL["num_hidden_layers"]}))
    return path


@pytest.fixture
def fake_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Puts the fake in the place of llama-cpp-python; returns the log of what it is asked to decode."""
    monkeypatch.syspath_prepend(str(FAKE_LLAMA_CPP))
    monkeypatch.setenv("PYTHONPATH", str(FAKE_LLAMA_CPP))
    monkeypatch.setenv("FAKE_LLAMA_LOG", str(tmp_path / "llama.log"))
    sys.modules.pop("llama_cpp", None)
    return tmp_path / "llama.log"
