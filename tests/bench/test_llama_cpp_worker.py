"""llama.cpp as a worker: what is asked of its functions (a fake has their place), and what goes wrong."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.peers import LLAMA_CPP, Peer, check_peer, open_peer
from edgemoe.bench.protocol import Start, Worker
from edgemoe.bench.startup import worker_seconds
from edgemoe.errors import EdgemoeError, SourceError, UsageError
from edgemoe.store.reader import Store

COMMAND = [sys.executable, "-m", "edgemoe.bench.llama_cpp_worker"]


@pytest.fixture
def worker(fake_llama_cpp: Path, start: Start) -> Iterator[Worker]:
    with Worker(LLAMA_CPP, COMMAND, start) as started:
        yield started


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_prompt_is_one_batch_and_only_last_tokens_have_logits(
    worker: Worker, gguf: Path, fake_llama_cpp: Path
) -> None:
    about = worker.ask("open", gguf=str(gguf), threads=3, context=8, mmap=True)
    assert about == {
        "version": "llama-cpp-python 0.fake", "system": "FAKE = 1",
        "vocab_size": 101, "layers": 2, "hidden_size": 64, "threads": 3,
    }  # fmt: skip
    for _ in range(2):  # the second run begins anew
        answer = worker.ask("run", prompt=[5, 6, 7], continuation=[8, 9])
        assert answer["prompt_s"] > 0.002
        assert answer["continuation_s"] > 0.004
        assert answer["major_faults"] >= 0
    more = {"threads": 3, "mmap": True}
    expected = [{"ids": ids, "logits": [0] * (len(ids) - 1) + [1], **more} for ids in ([5, 6, 7], [8], [9])]
    assert calls(fake_llama_cpp) == expected * 2
    assert worker.ask("end")["peak_rss_bytes"] > 1 << 20


def test_a_file_that_llama_cpp_refuses_is_told_with_its_reason(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_text(json.dumps({"refused": "unknown architecture 'odd'"}))
    with pytest.raises(
        SourceError, match=r"odd\.gguf: llama\.cpp refuses it: .*unknown architecture 'odd'\. Is it"
    ) as told:
        worker.ask("open", gguf=str(path), threads=1, context=8, mmap=False)
    assert "bye" not in told.value.message


def test_a_run_that_fails_is_told(worker: Worker, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.ask("open", gguf=str(gguf), threads=1, context=8, mmap=False)
    with pytest.raises(EdgemoeError, match="IndexError"):
        worker.ask("run", prompt=list(range(9)), continuation=[])


def test_a_missing_library_is_told_before_and_after(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('a broken library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(LLAMA_CPP, COMMAND) as worker, pytest.raises(UsageError, match="a broken library") as told:
        worker.ask("open", gguf="x", threads=1, context=8, mmap=False)
    assert "pip install 'edgemoe[peers]'" in told.value.hint
    monkeypatch.setattr("edgemoe.bench.peers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as told:
        check_peer(LLAMA_CPP, None)
    assert "pip install 'edgemoe[peers]'" in told.value.hint


def test_a_library_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("__version__ = '0.1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(LLAMA_CPP, COMMAND) as worker, pytest.raises(UsageError, match=r"0\.1 has no LLAMA_LOAD_MODE_MMAP"):
        worker.ask("open", gguf="x", threads=1, context=8, mmap=False)


def test_engines_and_files_that_there_are_not(fake_llama_cpp: Path, tmp_path: Path, gguf: Path) -> None:
    check_peer(LLAMA_CPP, gguf)
    check_peer(LLAMA_CPP, None)
    with pytest.raises(UsageError, match=r"expected llama\.cpp"):
        check_peer("gpt.cpp", None)
    with pytest.raises(SourceError, match="no such file"):
        check_peer(LLAMA_CPP, tmp_path / "missing.gguf")


def test_without_a_file_one_is_made_from_the_store_and_removed(
    store: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(opened: Store, destination: Path, *, name: str) -> Path:
        assert (opened.path, name) == (store, "tiny-moe")
        destination.write_bytes(gguf.read_bytes())
        return destination

    monkeypatch.setattr("edgemoe.conversion.gguf.export.export_gguf", export)
    with open_peer(store, None, 2, 100, mmap=True) as peer:
        made = Path(peer.options["gguf"])
        assert made.read_bytes() == gguf.read_bytes()
        assert {**peer.options, "gguf": ""} == {"gguf": "", "threads": 2, "context": 100, "mmap": True}
    assert not made.exists()
    with open_peer(store, gguf, 2, 100, mmap=False) as peer:
        assert peer.options["gguf"] == str(gguf)
    assert gguf.exists()


def test_a_start_is_a_fresh_process_until_its_first_logits(gguf: Path, fake_llama_cpp: Path) -> None:
    peer = Peer(LLAMA_CPP, COMMAND, {"gguf": str(gguf), "threads": 1, "context": 8, "mmap": False})
    assert worker_seconds(peer.name, peer.command, peer.options, [1, 2]) > 0.002
    assert [call["ids"] for call in calls(fake_llama_cpp)] == [[1, 2]]
