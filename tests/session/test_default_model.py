from pathlib import Path

import pytest

import edgemoe
from edgemoe.errors import StoreError, UsageError
from edgemoe.session import default_model
from edgemoe.session.default_model import find_model, model_name


def make_store(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "edgemoe.json").write_text("{}")
    return folder


def test_a_model_is_found_by_path_by_name_and_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = make_store(tmp_path / default_model.DEFAULT_MODEL)
    other = make_store(tmp_path / "other")
    monkeypatch.setenv("EDGEMOE_MODELS", str(tmp_path))
    assert find_model() == default
    assert find_model("other") == other
    assert find_model(other) == other
    assert find_model(str(other)) == other
    inner = make_store(tmp_path / "with-recipe" / "store")
    assert find_model("with-recipe") == find_model(tmp_path / "with-recipe") == inner
    assert (model_name(inner), model_name(other)) == ("with-recipe", "other")


def test_the_default_is_found_in_an_installed_package_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEMOE_MODELS", raising=False)
    checkout = Path(default_model.__file__).parents[2] / "models"
    assert default_model.models_folders()[-1] == checkout
    installed = make_store(tmp_path / "models" / default_model.DEFAULT_MODEL)
    monkeypatch.setattr("edgemoe.__path__", [str(tmp_path), *edgemoe.__path__])
    assert find_model() == installed


def test_what_is_no_store_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "models_folders", lambda: [tmp_path])
    with pytest.raises(StoreError, match="bundled"):
        find_model()
    with pytest.raises(StoreError, match=r"edgemoe convert mistralai/Mixtral-8x7B-v0\.1 DEST"):
        find_model("mistralai/Mixtral-8x7B-v0.1")
    with pytest.raises(StoreError, match="no such folder"):
        find_model(tmp_path / "missing")
    with pytest.raises(StoreError, match="no such folder"):
        find_model("~nobody-of-this-name/store")
    with pytest.raises(UsageError, match="empty"):
        find_model("")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="found a checkpoint"):
        find_model(tmp_path)
    gguf = tmp_path / "m.gguf"
    gguf.touch()
    with pytest.raises(StoreError, match="found a GGUF"):
        find_model(gguf)


def test_a_folder_that_holds_a_gguf_is_named_with_the_file_to_convert(tmp_path: Path) -> None:
    """`edgemoe convert` takes the file, and not its folder."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(StoreError, match=r"expected a store .*, found GGUF: model\.gguf") as error:
        find_model(tmp_path)
    file = tmp_path / "model.gguf"
    assert error.value.hint == f"Give the file {file} to run it, or convert it first: edgemoe convert {file} DEST."
