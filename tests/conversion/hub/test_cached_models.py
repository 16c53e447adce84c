"""Models in the hub's cache: what there is, and what goes when one is removed."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import time
from pathlib import Path

import pytest

from edgemoe.conversion.hub.cached_models import cached_models, plan_removal
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.hub.pull import pull
from edgemoe.errors import SourceError, UsageError
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.hub_models import GGUF_MODEL, LARGE, PLAIN, SPLIT
from tests.support.hub_server import COMMIT, Fault, HubServer, Repository

CHECKPOINT = HubId("maker/tiny")
NEWER = "0123abcd" * 5


def gguf(quantisation: str | None = None) -> HubId:
    return HubId(GGUF_MODEL, None, quantisation)


def listed() -> list[str]:
    return [str(model.hub_id) for model in cached_models().models]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def break_off(model: Repository, quantisation: str, name: str, after_bytes: int, patch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with patch.context() as within:
        within.setattr("huggingface_hub.file_download.time.sleep", interrupt)
        model.faults[name] = Fault(after_bytes=after_bytes, times=1)
        with pytest.raises(KeyboardInterrupt):
            pull(gguf(quantisation))


def test_models_are_listed_with_what_they_are(
    hub: HubServer, gguf_model: Repository, hub_cache: Path, tmp_path: Path
) -> None:
    assert cached_models().models == ()
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL | {"vocab_size": 50}, shards=3)
    source = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    hub.models["maker/tiny"] = Repository(source)
    before = time.time()
    pull(gguf("Q4_1"))
    pull(gguf("Q8_0"))
    pull(CHECKPOINT)
    (hub_cache / "datasets--maker--texts" / "snapshots" / COMMIT).mkdir(parents=True)
    checkpoint, split, large = cached_models().models
    sizes = [len(gguf_model.files[name]) for name in SPLIT]
    assert dataclasses.astuple(split)[1:5] == ("llama", 3, sum(sizes), True)
    assert dataclasses.astuple(large)[1:5] == ("llama", 1, len(gguf_model.files[LARGE]), True)
    shards = [len(content) for name, content in source.items() if name.endswith(".safetensors")]
    assert dataclasses.astuple(checkpoint)[1:5] == ("mixtral", 3, sum(shards), True)
    assert [str(one.hub_id) for one in (split, large, checkpoint)] == [
        f"{GGUF_MODEL}:Q4_1", f"{GGUF_MODEL}:Q8_0", "maker/tiny",
    ]  # fmt: skip
    assert all(before - 60 < one.used_s <= time.time() for one in (split, large, checkpoint))
    blob = (hub_cache / f"models--{GGUF_MODEL.replace('/', '--')}" / "snapshots" / COMMIT / LARGE).resolve()
    os.utime(blob, (before - 86_400, before - 2 * 86_400))
    assert cached_models().models[2].used_s == pytest.approx(before - 86_400)
    assert large.to_json()["kind"] == "gguf"
    assert checkpoint.to_json()["kind"] == "checkpoint"


def test_what_is_not_whole_is_told(
    gguf_model: Repository, hub: HubServer, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(gguf_model, "Q4_K_M", PLAIN, 20_000, monkeypatch)
    break_off(gguf_model, "Q4_1", SPLIT[1], 10_000, monkeypatch)
    split, plain = cached_models().models
    assert (str(plain.hub_id), plain.whole, plain.bytes) == (f"{GGUF_MODEL}:Q4_K_M", False, 20_000)
    assert (str(split.hub_id), split.whole) == (f"{GGUF_MODEL}:Q4_1", False)
    assert split.bytes == len(gguf_model.files[SPLIT[0]]) + 10_000
    pull(gguf("Q4_K_M"))
    assert cached_models().models[1].whole
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL, shards=3)
    hub.models["maker/tiny"] = Repository({path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()})
    path = pull(CHECKPOINT).path
    (path / "model-00002-of-00003.safetensors").unlink()
    assert [one.whole for one in cached_models().models] == [False, False, True]


def test_one_quantisation_is_removed_and_the_others_stay(gguf_model: Repository, hub_cache: Path) -> None:
    for quantisation in ("Q4_1", "Q4_K_M"):
        pull(gguf(quantisation))
    before = size_of(hub_cache)
    removal = plan_removal(gguf("q4_1"))
    assert removal.files == 3
    assert removal.bytes == sum(len(gguf_model.files[name]) for name in SPLIT)
    assert size_of(hub_cache) == before  # so far nothing has happened
    removal.execute()
    assert before - size_of(hub_cache) == removal.bytes
    assert listed() == [f"{GGUF_MODEL}:Q4_K_M"]
    assert pull(gguf()).path.read_bytes() == gguf_model.files[PLAIN]
    (next(hub_cache.glob("models--*/snapshots/*")) / "mmproj-F16.gguf").write_bytes(b"of use beside a model alone")
    plan_removal(gguf("Q4_K_M")).execute()
    assert listed() == []
    assert not [path for path in hub_cache.iterdir() if path.name.startswith("models--")]


def test_a_removal_takes_all_revisions_but_no_content_that_another_model_has(
    gguf_model: Repository, hub_cache: Path
) -> None:
    pull(gguf("Q4_K_M"))
    gguf_model.commit = NEWER
    gguf_model.files[LARGE] = gguf_model.files[PLAIN]  # the same content under two names
    pull(gguf("Q4_K_M"))
    large = pull(gguf("Q8_0")).path
    removal = plan_removal(gguf("Q4_K_M"))
    assert removal.bytes == 0
    removal.execute()
    assert listed() == [f"{GGUF_MODEL}:Q8_0"]
    assert large.read_bytes() == gguf_model.files[PLAIN]
    assert plan_removal(gguf("Q8_0")).bytes == len(gguf_model.files[PLAIN])


def test_a_repository_is_removed_whole_with_what_is_unfinished(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(gguf("Q8_0"))
    break_off(gguf_model, "Q4_K_M", PLAIN, 20_000, monkeypatch)
    removal = plan_removal(gguf())
    assert removal.bytes == len(gguf_model.files[LARGE]) + 20_000
    part = plan_removal(gguf("Q4_K_M"))
    assert (part.files, part.bytes) == (1, 20_000)
    part.execute()
    assert listed() == [f"{GGUF_MODEL}:Q8_0"]
    plan_removal(gguf()).execute()
    assert listed() == []


def test_what_is_not_there_is_told(gguf_model: Repository, hub_cache: Path) -> None:
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}: expected a model in the Hugging Face cache \({hub_cache}\)"):
        plan_removal(gguf())
    pull(gguf("Q8_0"))
    with pytest.raises(SourceError, match="expected one GGUF model in the Hugging Face cache, found none") as told:
        plan_removal(gguf("Q4_K_M"))
    assert told.value.hint.startswith("There are Q8_0 (")
    with pytest.raises(SourceError, match=r"maker/other: expected a model"):
        plan_removal(HubId("maker/other"))
    with pytest.raises(UsageError, match="without a revision"):
        plan_removal(HubId(GGUF_MODEL, "main"))


def test_a_damaged_repository_is_told_and_the_others_are_listed(gguf_model: Repository, hub_cache: Path) -> None:
    pull(gguf("Q8_0"))
    (hub_cache / "models--maker--bad").mkdir()
    contents = cached_models()
    assert [str(one.hub_id) for one in contents.models] == [f"{GGUF_MODEL}:Q8_0"]
    assert "models--maker--bad" in contents.problems[0]
    with pytest.raises(SourceError, match=r"models--maker--bad: expected a repository of the cache, found a damaged"):
        plan_removal(HubId("maker/bad"))


def test_a_folder_that_cannot_be_changed(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    pull(gguf("Q8_0"))
    pull(gguf("Q4_K_M"))
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    one, whole = plan_removal(gguf("Q8_0")), plan_removal(gguf())
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger("huggingface_hub"), "handlers", [handler])
        patch.setattr("huggingface_hub.utils._cache_manager.os.remove", refuse)
        patch.setattr("huggingface_hub.utils._cache_manager.shutil.rmtree", refuse)
        for removal, path in ((one, LARGE), (whole, hub_cache / "models--maker--Tiny-GGUF")):
            with pytest.raises(SourceError, match=f"{path}: could not be removed"):
                removal.execute()
    assert logged == []  # nobody is shown a traceback
    one.execute()
    assert listed() == [f"{GGUF_MODEL}:Q4_K_M"]
