"""`edgemoe update` and `edgemoe verify` as a person mends a model's small files with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgemoe
from edgemoe.cli.main import run_command
from edgemoe.errors import StoreError
from tests.conversion.gguf.test_source import CONFIGS
from tests.support.checkpoints import folder_bytes, write_checkpoint
from tests.support.hub_server import Repository, hub_server, use_hub
from tests.support.letters_tokenizer import TEMPLATE, write_letters_tokenizer
from tests.support.small_tokenizer import write_model_folder
from tests.support.stores import put_side_file

GOLDEN = Path(__file__).parents[1] / "golden" / "granitemoeshared"
Capture = pytest.CaptureFixture[str]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("golden.npz"))
    write_letters_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "tiny-moe"
    assert run_command(["convert", str(checkpoint), str(folder)]) == 0
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "tiny-moe")


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "tiny")


@pytest.fixture
def command(capsys: Capture) -> Command:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = run_command([*map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def prompt(store: Path) -> str:
    with edgemoe.load(store, threads=1) as model:
        return model.decode(model.encode_chat("Hi"), skip_special_tokens=False)


def write_template(folder: Path, template: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_a_file_that_was_mended_in_the_store_is_refused_until_it_is_taken(store: Path, command: Command) -> None:
    assert prompt(store) == "u:Hi\na:"
    write_template(store, "{{ messages[0]['content'] }}?")
    for verb in (["run", store, "-p", "x"], ["chat", store], ["export", store, store / "x.gguf"]):
        code, _, errors = command(*verb)
        assert code == 1
        assert f"tokenizer_config.json: expected {len(json.dumps({'chat_template': TEMPLATE}))} bytes" in errors
        assert f"edgemoe update {store} accepts the side files as they are" in errors
    code, shown, errors = command("verify", store)
    assert code == 1
    assert "tokenizer_config.json: expected" in shown
    assert f"edgemoe update {store}" in errors
    code, shown, errors = command("update", store)
    assert (code, errors) == (0, "")
    size = (store / "tokenizer_config.json").stat().st_size
    assert shown == f"tokenizer_config.json: changed, {size} bytes\n{store}: 1 side file updated.\n"
    assert command("verify", store)[0] == 0
    assert prompt(store) == "Hi?"
    assert command("update", store) == (0, f"{store}: nothing has changed.\n", "")


def test_a_template_that_was_added_decides_nothing_before_it_is_taken(store: Path, command: Command) -> None:
    """Before, it decided every prompt while `verify` called the store whole."""
    (store / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    code, shown, errors = command("verify", store)
    assert code == 1
    assert "chat_template.jinja: is not in the manifest" in shown
    assert f"edgemoe update {store}" in errors
    with pytest.raises(StoreError, match=r"chat_template\.jinja: is not in the manifest") as refused:
        edgemoe.load(store)
    assert f"edgemoe update {store}" in refused.value.hint
    assert command("inspect", store)[0] == 0
    assert command("update", store)[0] == 0
    assert command("verify", store)[0] == 0
    assert prompt(store) == "Hi!"


def test_a_byte_of_the_template_that_flipped_is_refused(store: Path, command: Command) -> None:
    path = store / "tokenizer_config.json"
    path.write_bytes(path.read_bytes().replace(b"a:", b"b:"))
    code, _, errors = command("run", store, "-p", "x")
    assert code == 1
    assert "tokenizer_config.json: is not what was written (its checksum differs)" in errors


def test_a_checkpoint_s_side_files_take_the_place_of_all(store: Path, source: Path, command: Command) -> None:
    """An update from a checkpoint gives the same side files as a conversion of that checkpoint."""
    (store / "chat_template.jinja").write_text("old")
    write_template(source, "{{ messages[0]['content'] }}?")
    (source / "generation_config.json").unlink()
    (source / "special_tokens_map.json").write_text("{}")
    for path in source.glob("*.safetensors"):
        path.unlink()  # an update needs no weights
    code, shown, errors = command("update", store, "--from", source)
    assert (code, errors) == (0, "")
    size = (source / "tokenizer_config.json").stat().st_size
    assert shown.splitlines() == [
        "special_tokens_map.json: added, 2 bytes",
        f"tokenizer_config.json: changed, {size} bytes",
        "chat_template.jinja: removed",
        "generation_config.json: removed",
        f"{store}: 4 side files updated.",
    ]
    suffixes = {".safetensors", ".npz"}
    expected = {name: data for name, data in folder_bytes(source).items() if Path(name).suffix not in suffixes}
    found = folder_bytes(store)
    assert {name: found[name] for name in expected} == expected
    weights = {"experts-00000.safetensors", "records.safetensors", "resident.safetensors"}
    assert set(found) - set(expected) == {"edgemoe.json", *weights}
    assert prompt(store) == "Hi?"
    assert json.loads(command("inspect", store, "--json")[1])["provenance"]["side_files"]["source"] == "tiny"
    assert "tiny" in command("inspect", store)[1].split("side files from")[1]


def test_one_file_leaves_the_others(store: Path, tmp_path: Path, command: Command) -> None:
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }}.")
    code, shown, _ = command("update", store, "--from", template)
    assert (code, shown) == (0, f"chat_template.jinja: added, 29 bytes\n{store}: 1 side file updated.\n")
    assert prompt(store) == "Hi."
    template.rename(tmp_path / "better.jinja")
    code, _, errors = command("update", store, "--from", tmp_path / "better.jinja")
    assert code == 2
    assert "Give the file the name that it has in a checkpoint" in errors


def test_a_folder_of_some_files_leaves_the_others(store: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "mended"
    folder.mkdir()
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')
    assert command("update", store, "--from", folder)[1].startswith("generation_config.json: changed")
    with edgemoe.load(store, threads=1) as model:
        assert model.default_sampling.temperature == 0.5
    assert prompt(store) == "u:Hi\na:"


def test_a_gguf_gives_its_side_files(store: Path, source: Path, tmp_path: Path, command: Command) -> None:
    """A GGUF of another model, with another chat template, gives the same side files as its conversion."""
    write_model_folder(tmp_path / "llama")
    (tmp_path / "llama" / "edgemoe.json").unlink()
    files = {path.name: path.read_bytes() for path in (tmp_path / "llama").iterdir()}
    write_checkpoint(tmp_path / "llama", CONFIGS["llama"], side_files=files)
    assert command("convert", tmp_path / "llama", tmp_path / "store")[0] == 0
    assert command("export", tmp_path / "store", tmp_path / "m.gguf")[0] == 0
    assert command("convert", tmp_path / "m.gguf", tmp_path / "expected")[0] == 0
    write_template(tmp_path / "store", "lost")
    code, _, errors = command("update", tmp_path / "store", "--from", tmp_path / "m.gguf")
    assert (code, errors) == (0, "")
    expected, found = folder_bytes(tmp_path / "expected"), folder_bytes(tmp_path / "store")
    assert {name: found[name] for name in found if name != "edgemoe.json"} == {
        name: expected[name] for name in expected if name != "edgemoe.json"
    }
    code, _, errors = command("update", store, "--from", tmp_path / "m.gguf")
    assert code == 1
    assert "describes another model than that of the store" in errors


def test_the_hub_gives_its_side_files_and_no_weights(
    store: Path, source: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_template(source, "{{ messages[0]['content'] }}?")
    with hub_server() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        model = server.models["maker/tiny"] = Repository(folder_bytes(source))
        code, shown, errors = command("update", store, "--from", "maker/tiny")
        assert (code, errors) == (0, "")
        assert shown.startswith("tokenizer_config.json: changed")
        assert model.gets("model.safetensors") == []  # but for its header
    assert prompt(store) == "Hi?"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: the tokenizer does not load"),
        ("tokenizer.json", None, "tokenizer.json: expected ids below 96 (the model's vocabulary), found 96"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a JSON object, found list"),
        ("special_tokens_map.json", b"{", "special_tokens_map.json: it is not valid JSON"),
        ("chat_template.jinja", b"{% if %}", "chat template: it does not parse"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja: expected UTF-8 text"),
        ("generation_config.json", b'{"do_sample": true, "top_p": 7}', "generation_config.json: top"),
        (
            "generation_config.json",
            b'{"eos_token_id": "x"}',
            "generation_config.json: eos_token_id: expected a token id",
        ),
        ("config.json", b"{", "config.json: expected JSON"),
        ("config.json", b'{"model_type": "mamba"}', 'config.json: model_type is "mamba"'),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    name: str, content: bytes | None, told: str, store: Path, command: Command
) -> None:
    if content is None:
        tokenizer: dict[str, Any] = json.loads((store / name).read_text())
        tokenizer["model"]["vocab"]["<one too many>"] = 96
        content = json.dumps(tokenizer).encode()
    (store / name).write_bytes(content)
    before = folder_bytes(store)
    code, shown, errors = command("update", store)
    assert (code, shown) == (1, "")
    assert told in errors
    assert ".update" not in errors
    assert folder_bytes(store) == before


def test_a_config_of_another_model_is_refused(store: Path, command: Command) -> None:
    config = json.loads((store / "config.json").read_text())
    (store / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    code, _, errors = command("update", store)
    assert code == 1
    assert "config.json: describes another model than that of the store: its norm_epsilon differs" in errors
    (store / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    assert command("update", store)[0] == 0


def test_a_file_that_another_version_took_along_stays(store: Path, command: Command) -> None:
    put_side_file(store, "voices.json", b"{}")
    (store / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert command("update", store) == (0, f"chat_template.jinja: added, 29 bytes\n{store}: 1 side file updated.\n", "")
    assert (store / "voices.json").read_bytes() == b"{}"
    assert command("verify", store)[0] == 0


def test_a_template_that_refuses_is_taken_with_a_remark(store: Path, command: Command) -> None:
    (store / "chat_template.jinja").write_text("{{ raise_exception('Only with a system message.') }}")
    code, _, errors = command("update", store)
    assert code == 0
    assert "note: chat template: it refused" in errors


def test_an_end_that_the_model_does_not_have_is_a_remark_as_in_run_and_convert(store: Path, command: Command) -> None:
    """A store with such an end opens, so that mending another file of it must not be refused for that one's sake."""
    remark = "eos_token_id 96 ends no answer: this model's token ids are those below 96."
    (store / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 96]}))
    code, _, errors = command("update", store)
    assert (code, errors) == (0, f"note: {remark}\n")
    with edgemoe.load(store, warm_start=False) as model:
        assert model.tokenizer.remarks == (remark,)
    config = json.loads((store / "tokenizer_config.json").read_text())
    (store / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "a"}))
    assert command("update", store)[0] == 0


def test_a_conversion_of_a_mended_checkpoint_names_the_verb(store: Path, source: Path, command: Command) -> None:
    write_template(source, "{{ messages[0]['content'] }}?")
    code, _, errors = command("convert", source, store)
    assert code == 2
    assert f"edgemoe update {store} takes those" in errors
    assert command("update", store, "--from", source)[0] == 0
    (store / "tokenizer_config.json").write_text("{}")
    code, _, errors = command("convert", source, store)
    assert code == 2
    assert "was altered" in errors
    assert f"edgemoe update {store}" in errors


def test_a_source_that_is_none_is_told(store: Path, tmp_path: Path, command: Command) -> None:
    code, _, errors = command("update", store, "--from", tmp_path / "missing")
    assert code == 1
    assert "no such folder or file" in errors
    code, _, errors = command("update", tmp_path / "missing")
    assert code == 1


@pytest.mark.parametrize("given", ["the store itself", "a folder", "a file"])
def test_an_update_names_a_git_lfs_pointer(store: Path, tmp_path: Path, command: Command, given: str) -> None:
    """The pointer's first line is that of git-lfs' docs/spec.md."""
    folder = store if given == "the store itself" else tmp_path / "cloned"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    source = {"the store itself": (), "a folder": ("--from", folder), "a file": ("--from", folder / "tokenizer.json")}
    code, _, err = command("update", store, *source[given])
    assert code == 1
    assert "tokenizer.json: expected the file itself, found a Git LFS pointer" in err
    assert "git lfs pull" in err
