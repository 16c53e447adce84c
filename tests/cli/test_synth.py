"""`edgemoe synth`, and what the other verbs make of a store of random weights."""

import json
import shutil
from pathlib import Path

import pytest

from edgemoe.cli.main import run_command
from tests.support.letters_tokenizer import write_letters_tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "tiny"
    assert run_command(["synth", "tiny", str(folder), "--dense", "q4"]) == 0
    return folder


def test_a_store_of_random_weights_is_told_inspected_and_verified(store: Path, capsys: Capture) -> None:
    assert run_command(["synth", "tiny", str(store), "--dense", "q4"]) == 0
    assert capsys.readouterr().out == f"{store}: 4.3 MiB of random weights.\n"
    assert run_command(["inspect", str(store), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["experts"]["total"] == 64
    assert data["parts"]["attention"]["formats"] == ["q4"]
    assert data["provenance"]["source"] == "random weights of tiny, seed 0"
    assert data["floor_bytes"] > data["dense_bytes"]
    assert run_command(["verify", str(store)]) == 0


@pytest.mark.parametrize("verb", [["run", "-p", "Hi"], ["run", "--raw", "-p", "Hi"], ["chat"]])
def test_verbs_that_need_text_say_that_it_has_no_tokenizer(store: Path, verb: list[str], capsys: Capture) -> None:
    assert run_command([verb[0], str(store), *verb[1:]]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: this model has no tokenizer")
    assert shown.err.count("\n") == 1


@pytest.mark.slow
def test_with_a_tokenizer_it_takes_and_gives_text(store: Path, tmp_path: Path, capsys: Capture) -> None:
    other = shutil.copytree(store, tmp_path / "other")
    write_letters_tokenizer(other)  # side files that its manifest does not name yet
    assert run_command(["update", str(other)]) == 0
    made = tmp_path / "texts"
    assert run_command(["synth", "tiny", str(made), "--tokenizer", str(other)]) == 0
    assert run_command(["verify", str(made)]) == 0
    capsys.readouterr()
    assert run_command(["run", str(made), "--raw", "-p", "Once", "--max-tokens", "8", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip()


def test_unknown_shapes_are_refused_with_the_known_ones(tmp_path: Path, capsys: Capture) -> None:
    assert run_command(["synth", "olmo", str(tmp_path / "x")]) == 2
    assert (
        "expected one of tiny, olmoe-1b-7b, qwen3-30b-a3b, qwen3-next-80b-a3b, qwen3.6-35b-a3b, qwen3.8-flash-next, "
        "deepseek-v2-lite, glm-4.5-air, glm-4.7-flash, lfm2-8b-a1b, nemotron-3-nano, gpt-oss-20b, gpt-oss-120b, "
        "gemma-4-26b-a4b, mixtral-8x7b, granite-3b-a800m, carrier-fff, carrier-moe-4x8, carrier-fff-11, peer-1m, "
        "switch-base-8, switch-base-128, switch-large-128, switch-c-2048, edgemoe-mixtures." in capsys.readouterr().err
    )


def test_ctrl_c_says_that_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgemoe.conversion.synthetic.synthesise", interrupt)
    assert run_command(["synth", "tiny", str(tmp_path / "x")]) == 130
    assert "to resume" in capsys.readouterr().err
