"""edgemoe beside the real llama.cpp, on the bundled model's weights."""

import pytest

from edgemoe.bench.benchmark import Benchmark
from edgemoe.bench.measure import Settings
from edgemoe.bench.peers import LLAMA_CPP, check_peer, open_peer
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError
from edgemoe.kernels.select import describe_backend
from edgemoe.session.default_model import find_model

pytestmark = pytest.mark.peer
SETTINGS = Settings(8, 8, 32, 1)


@pytest.mark.parametrize("mmap", [False, True])
def test_the_bundled_model_beside_llama_cpp(mmap: bool) -> None:
    check_peer(LLAMA_CPP, None)
    with open_peer(find_model(None), None, 2, SETTINGS.context_tokens, mmap) as peer:
        report = Benchmark(find_model(None), SETTINGS, describe_backend(2), EngineOptions(), peer).run()
    assert report.peer is not None
    assert report.ratios is not None
    assert report.ratios.startup is not None
    assert report.peer.about["threads"] == 2
    assert report.peer.decode_tokens_per_s.min > 1


def test_a_gguf_that_llama_cpp_refuses(tmp_path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with open_peer(find_model(None), path, 1, SETTINGS.context_tokens, False) as peer:
        benchmark = Benchmark(find_model(None), SETTINGS, describe_backend(1), EngineOptions(), peer)
        with pytest.raises(SourceError, match=r"broken\.gguf: llama\.cpp refuses it: .{10}"):
            benchmark.run()
