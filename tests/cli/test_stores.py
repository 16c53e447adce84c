"""The verbs on a real store, converted by the command from a small checkpoint."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import edgemoe
from edgemoe.cli.chat import greeting
from edgemoe.cli.main import run_command
from edgemoe.errors import KernelError, StoreError
from tests.support.letters_tokenizer import write_letters_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "granitemoeshared"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("golden.npz"))
    write_letters_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def store(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "tiny-moe"
    assert run_command(["convert", str(checkpoint), str(folder), "--experts", "q8"]) == 0
    return folder


def read_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert run_command([*arguments, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_convert_says_what_it_made_and_how_to_go_on(store: Path, checkpoint: Path, capsys: Capture) -> None:
    assert run_command(["convert", str(checkpoint), str(store), "--experts", "q8"]) == 0
    assert capsys.readouterr().out.endswith(f"Try it: edgemoe chat {store}\n")


@pytest.mark.parametrize(
    ("name", "content", "step"),
    [
        ("tokenizer.json", None, "The checkpoint has no tokenizer.json"),
        ("tokenizer.json", "{}", "It can run, but cannot read or write text: "),
        ("tokenizer_config.json", "{}", "It has no usable chat template. Try it: edgemoe run"),
    ],
)
def test_convert_does_not_promise_what_cannot_be(
    name: str, content: str | None, step: str, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "source")
    (source / name).unlink()
    if content is not None:
        (source / name).write_text(content)
    assert run_command(["convert", str(source), str(tmp_path / "store")]) == 0
    assert step in capsys.readouterr().out


def test_convert_refuses_an_unknown_format(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run_command(["convert", str(checkpoint), str(tmp_path / "x"), "--experts", "q3"]) == 2
    assert "--experts" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_convert_takes_a_text_or_a_file_of_importance(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    for options, expected in (
        (("--calibrate", "default", "--importance", "a.gguf"), "--importance takes the place of --calibrate"),
        (("--calibrate", str(tmp_path / "missing")), "--calibrate"),
        (("--calibrate", "default", "--calibrate-tokens", "0"), "--calibrate-tokens: expected 1 or more"),
        (("--importance", str(tmp_path / "missing")), "cannot be read"),
        (("--bits", "2.5", "--experts", "n2"), "--bits takes the place of --experts"),
    ):
        assert run_command(["convert", str(checkpoint), str(tmp_path / "x"), *options]) in (1, 2), options
        assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_parts_sizes_experts_and_floor(store: Path, capsys: Capture) -> None:
    data = read_json(capsys, "inspect", str(store))
    assert data["family"] == "granitemoeshared"
    assert (data["experts"]["layers"], data["experts"]["per_layer"], data["experts"]["total"]) == (2, 8, 16)
    assert data["parts"]["experts"]["formats"] == ["q8"]
    assert data["total_bytes"] == sum(path.stat().st_size for path in store.iterdir() if path.name != "edgemoe.json")
    assert data["floor_bytes"] > data["dense_bytes"]
    assert run_command(["inspect", str(store)]) == 0
    assert "16: 8 in each of 2 layers, 2 per token" in capsys.readouterr().out


def test_verify_finds_an_altered_expert(store: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run_command(["verify", str(store)]) == 0
    assert "whole" in capsys.readouterr().out
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    path = next(damaged.glob("experts-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    assert run_command(["verify", str(damaged)]) == 1
    shown = capsys.readouterr()
    assert f"{path.name}: layers.1.experts.7" in shown.out
    assert "1 part is not as written" in shown.err
    path.write_bytes(content[:-5000])
    assert run_command(["verify", str(damaged)]) == 1
    assert "layer 1, expert 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    [
        ["run", "STORE", "-p", "x"],
        ["chat", "STORE"],
        ["inspect", "STORE"],
        ["plan", "STORE", "--ram", "1GiB"],
        ["verify", "STORE"],
        ["update", "STORE"],
        ["export", "STORE", "x.gguf"],
        ["trace", "STORE", "-p", "x", "--out", "x.trace"],
        ["convert", "CHECKPOINT", "STORE", "--experts", "q8"],
    ],
)
def test_every_verb_refuses_an_altered_manifest(
    verb: list[str], store: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """One flipped bit turns RoPE's theta of 500000 into another, and with it every answer."""
    damaged = shutil.copytree(store, tmp_path / "damaged")
    path = damaged / "edgemoe.json"
    text = path.read_bytes()
    assert b'"theta": 500000.0' in text
    path.write_bytes(text.replace(b'"theta": 500000.0', b'"theta": 500100.0'))
    monkeypatch.chdir(tmp_path)
    arguments = [{"STORE": str(damaged), "CHECKPOINT": str(checkpoint)}.get(word, word) for word in verb]
    assert run_command(arguments) in (1, 2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "edgemoe.json: expected the manifest that was written, found an altered one" in shown.err
    with pytest.raises(StoreError, match="an altered one"):
        edgemoe.load(damaged)


def test_info_tells_machine_kernels_and_model(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("edgemoe.session.default_model.DEFAULT_MODEL", store.name)
    monkeypatch.setenv("EDGEMOE_MODELS", str(store.parent))
    data = read_json(capsys, "info")
    assert data["kernels"]["backend"] in ("native", "jit", "reference")
    assert data["kernels"]["reason"]
    assert data["memory_bytes"] > data["memory_available_bytes"] > 0
    assert data["model"]["path"] == str(store)
    assert data["model"]["reads"].startswith("past" if data["model"]["direct_reads"] else "by plain reads")
    assert data["reader"]["threads"] >= 1
    assert run_command(["info"]) == 0
    shown = capsys.readouterr().out
    assert f"bundled model: {store}" in shown
    assert f"experts are read {data['model']['reads']}" in shown
    assert f"expert reader: {data['reader']['threads']} threads" in shown
    monkeypatch.setattr("edgemoe.session.default_model.DEFAULT_MODEL", "missing-model")
    assert run_command(["info"]) == 0
    assert "missing-model" in capsys.readouterr().out


def test_info_tells_what_a_model_gets(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("edgemoe.bench.rates.PASS_SECONDS", 0.02)
    data = read_json(capsys, "info", str(store), "--measure")
    model = data["model"]
    assert model["problem"] is None
    assert model["floor_bytes"] <= model["planned_bytes"] <= model["budget_bytes"]
    assert model["experts_in_memory"] == model["total_experts"] == 16
    assert model["disk_bytes_per_s"] > 0
    assert model["without_device_text"] == ["Embed"]
    assert model["device_slot_bytes"] > 0
    assert run_command(["info", str(store)]) == 0
    shown = capsys.readouterr().out
    assert f"model: {store}" in shown
    assert "16 of 16 experts in memory" in shown
    assert "its device slots: 16 of 16 experts in each GiB" in shown
    assert "all but Embed, which run on the processor" in shown
    assert run_command(["info", str(tmp_path / "none")]) == 1
    assert "there is no such folder or model" in capsys.readouterr().err


def test_info_tells_of_readers_without_the_native_library(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def missing() -> None:
        raise KernelError("there is none.")

    monkeypatch.setattr("edgemoe.bench.checkup.load_library", missing)
    assert "in Python" in read_json(capsys, "info")["reader"]["kind"]


def test_the_same_greedy_tokens_at_any_budget(store: Path, capsys: Capture) -> None:
    arguments = ("run", str(store), "-p", "Once upon a time", "--temperature", "0", "--max-tokens", "40")
    whole = read_json(capsys, *arguments)
    least = read_json(capsys, *arguments, "--ram", "floor", "--threads", "1")
    assert least["token_ids"] == whole["token_ids"]
    assert len(whole["token_ids"]) == whole["generated_tokens"] > 0
    assert whole["stats"]["expert_hit_rate"] == 1
    assert least["stats"]["expert_hit_rate"] < 1
    assert least["stats"]["disk_bytes_per_token"] > 0


def test_too_small_a_budget_names_the_floor(store: Path, capsys: Capture) -> None:
    assert run_command(["run", str(store), "-p", "x", "--ram", "1MiB"]) == 1
    assert "at least" in capsys.readouterr().err
    assert run_command(["run", str(store), "-p", "x", "--ram", "lots"]) == 2


def test_keys_and_values_in_8_bits(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    arguments = ("run", str(store), "-p", "Once", "--temperature", "0", "--max-tokens", "5")
    assert read_json(capsys, *arguments, "--kv", "f16")["token_ids"] == read_json(capsys, *arguments)["token_ids"]
    assert read_json(capsys, *arguments, "--kv", "q8")["generated_tokens"] > 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/stats\n")))
    assert run_command(["chat", str(store), "--kv", "q8"]) == 0
    assert re.search(r"KV cache.* \(q8\)", capsys.readouterr().out)
    with edgemoe.load(store, kv="q8") as model:
        assert "threads · keys and values in 8 bits\n" in greeting(model)
    with edgemoe.load(store) as model:
        assert "8 bits" not in greeting(model)


@pytest.mark.parametrize("verb", [["run", "-p", "x"], ["chat"]])
def test_an_unknown_format_of_keys_and_values(store: Path, verb: list[str], capsys: Capture) -> None:
    assert run_command([*verb, str(store), "--kv", "q5"]) == 2
    assert capsys.readouterr().err == "error: kv: expected f16 or q8, found q5. Leave it out for f16.\n"


def test_a_store_without_tokenizer_is_inspected_but_not_run(store: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    size = (broken / "tokenizer.json").stat().st_size
    (broken / "tokenizer.json").write_bytes(b"{" * size)
    assert run_command(["inspect", str(broken)]) == 0
    assert run_command(["run", str(broken), "-p", "x"]) == 1
    assert "tokenizer.json" in capsys.readouterr().err


def test_the_same_from_python(store: Path, capsys: Capture) -> None:
    by_command = read_json(capsys, "run", str(store), "-p", "Hello", "--raw", "--temperature", "0", "--max-tokens", "8")
    with edgemoe.load(store, threads=1) as model:
        ids = model.encode("Hello")
        assert model.generate(ids, max_tokens=8).token_ids == by_command["token_ids"]
        assert model.logits(ids).shape == (5, 96)
        chat = model.chat()
        chat.max_tokens = 8
        assert chat.ask("Hello")
        assert len(chat.messages) == 2


def test_inspect_lists_the_program_of_a_token(store: Path, capsys: Capture) -> None:
    assert run_command(["inspect", str(store), "--program"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")][::2] == ["embedding", "head"]
    assert sum("= Attention(query (T, " in line for line in lines) == 1  # layers of one kind are listed once
    assert any(" = Experts(normed (T, " in line for line in lines)
    assert run_command(["inspect", str(store), "--program", "--layer", "1", "--json"]) == 0
    (lines,) = json.loads(capsys.readouterr().out).values()
    assert lines[0].keys() == {"stage", "part", "text"}
    assert run_command(["inspect", str(store), "--program", "--layer", "2"]) == 2
    assert "--layer: expected 0 to 1, found 2" in capsys.readouterr().err
    assert run_command(["inspect", str(store), "--layer", "1"]) == 2
    assert "Give --program too" in capsys.readouterr().err
