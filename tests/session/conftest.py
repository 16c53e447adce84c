from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgemoe.session.model import Model
from edgemoe.session.tokenizer import Tokenizer
from tests.support.fake_engine import FakeEngine
from tests.support.small_tokenizer import small_tokenizer, write_model_folder
from tests.support.template_workers import one_template_worker


@pytest.fixture(autouse=True, scope="module")
def _one_template_worker() -> Iterator[None]:
    with one_template_worker():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, small_tokenizer().get_vocab_size())


@pytest.fixture
def make_model(folder: Path, tokenizer: Tokenizer) -> Callable[..., Model]:
    """A model whose engine says a text, then ends its answer."""

    def make(says: str | None = "Hello, world!", context_length: int = 512) -> Model:
        script = [] if says is None else [*tokenizer.encode(says), 1]
        engine = FakeEngine(tokenizer.vocabulary, context_length, script)
        return Model(engine, tokenizer, folder)  # type: ignore[arg-type]

    return make
