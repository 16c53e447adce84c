"""`edgemoe export`, and `synth` with the same weights as a GGUF."""

import shutil
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from edgemoe.conversion.gguf.file import read_gguf
from tests.conversion.gguf.test_source import CONFIGS
from tests.support.checkpoints import write_checkpoint
from tests.support.small_tokenizer import small_tokenizer, write_model_folder
from tests.support.stores import put_side_file

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 404 tokens with a byte-level tokenizer."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "llama"
    assert small_tokenizer().get_vocab_size() <= CONFIGS["llama"]["vocab_size"]
    write_model_folder(checkpoint)
    (checkpoint / "edgemoe.json").unlink()
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    write_checkpoint(checkpoint, CONFIGS["llama"], side_files=files)
    folder = tmp_path_factory.mktemp("stores") / "small-llama"
    assert run_command(["convert", str(checkpoint), str(folder)]) == 0
    return folder


def test_a_store_with_its_tokenizer_under_its_name(store: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "m.gguf"
    assert run_command(["export", str(store), str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 1024:.0f} KiB.\n"
    metadata = read_gguf(file).metadata
    assert metadata["general.name"] == "small-llama"
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert run_command(["convert", str(file), str(tmp_path / "back")]) == 0
    assert run_command(["export", str(store), str(file)]) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert run_command(["export", str(store), str(file), "--force", "--no-tokenizer"]) == 0
    assert read_gguf(file).metadata["tokenizer.ggml.model"] == "none"


def test_a_tokenizer_that_cannot_be_told_has_a_way_out(store: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    put_side_file(broken, "tokenizer.json", b'{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}}')
    file = tmp_path / "m.gguf"
    assert run_command(["export", str(broken), str(file)]) == 1
    assert "expected byte-level BPE, found Unigram. Write the weights alone, with --no-tokenizer." in (
        capsys.readouterr().err
    )
    assert run_command(["export", str(broken), str(file), "--no-tokenizer"]) == 0


def test_synth_writes_the_same_weights_as_a_gguf(tmp_path: Path, capsys: Capture) -> None:
    store, file = tmp_path / "tiny", tmp_path / "tiny.gguf"
    assert run_command(["synth", "tiny", str(store), "--gguf", str(file), "--dense", "q4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert read_gguf(file).metadata["general.name"] == "tiny, random weights"
    back = tmp_path / "back"
    assert run_command(["convert", str(file), str(back)]) == 0
    for name in ("resident.safetensors", "experts-00000.safetensors"):
        assert (back / name).read_bytes() == (store / name).read_bytes()


def test_a_gguf_in_the_way_is_told_before_the_work(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"mine")
    assert run_command(["synth", "tiny", str(tmp_path / "tiny"), "--gguf", str(file)]) == 2
    assert "a file of that name exists" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]
