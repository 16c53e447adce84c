"""Downloads of models to the hub's cache: what comes, is checked, resumed and found again, and what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.gguf_store import GgufStore
from edgemoe.conversion.hub import download as hub_download
from edgemoe.conversion.hub import gguf as hub_gguf
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.hub.pull import Pulled, pull
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.progress import Download
from edgemoe.errors import SourceError, StoreError
from edgemoe.session.default_model import model_name
from edgemoe.session.stores import find_runnable, open_store
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.forks import ROOT
from tests.support.hub_models import GGUF_MODEL, LARGE, PLAIN, SPLIT
from tests.support.hub_server import COMMIT, Fault, HubServer, Repository

CHECKPOINT = "maker/tiny"
NEWER = "0123abcd" * 5


@pytest.fixture
def checkpoint(hub: HubServer, tmp_path: Path) -> Repository:
    beside = {"tokenizer.json": b"{}", "pytorch_model.bin": b"x", "run.py": b"x"}
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL | {"vocab_size": 50}, shards=3, side_files=beside)
    hub.models[CHECKPOINT] = Repository({path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()})
    return hub.models[CHECKPOINT]


def pulled(text: str, **options: Any) -> Pulled:
    hub_id = HubId.parse(text)
    assert hub_id is not None
    return pull(hub_id, **options)


def snapshot(cache: Path, repository: str = GGUF_MODEL, commit: str = COMMIT) -> Path:
    return cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


def blobs(cache: Path, repository: str = GGUF_MODEL) -> set[str]:
    return {path.name for path in (snapshot(cache, repository).parents[1] / "blobs").iterdir()}


def test_a_gguf_file_comes_to_the_hubs_cache_once(gguf_model: Repository, hub_cache: Path) -> None:
    heard: list[Download] = []
    found = pulled(f"{GGUF_MODEL}:q4_k_m", downloading=heard.append)
    assert found == Pulled(HubId(GGUF_MODEL, None, "q4_k_m"), snapshot(hub_cache) / PLAIN, len(gguf_model.files[PLAIN]))
    assert found.path.read_bytes() == gguf_model.files[PLAIN]
    assert found.path.is_symlink()  # as the hub's library has it
    size = len(gguf_model.files[PLAIN])
    assert heard[-1] == Download(PLAIN, size, size, checking=True)
    assert {name for _, name, _ in gguf_model.requests} == {PLAIN}
    assert gguf_model.gets(PLAIN) == [None]
    gguf_model.requests.clear()
    assert pulled(f"{GGUF_MODEL}:Q4_K_M").path == found.path
    assert gguf_model.gets(PLAIN) == []


def test_the_library_finds_what_was_pulled(gguf_model: Repository, hub_cache: Path) -> None:
    import huggingface_hub

    found = pulled(GGUF_MODEL)
    assert found.hub_id.quantisation == "Q4_K_M"
    for revision in (None, "main", COMMIT):
        path = huggingface_hub.try_to_load_from_cache(GGUF_MODEL, PLAIN, cache_dir=hub_cache, revision=revision)
        assert path == str(found.path)
    assert huggingface_hub.scan_cache_dir(hub_cache).warnings == []


def test_all_parts_of_a_split_model_come_and_progress_says_what_is_to_come(
    gguf_model: Repository, hub_cache: Path
) -> None:
    heard: list[Download] = []
    found = pulled(f"{GGUF_MODEL}:Q4_1", downloading=heard.append)
    assert found.path == snapshot(hub_cache) / SPLIT[0]
    sizes = [len(gguf_model.files[name]) for name in SPLIT]
    assert found.bytes == sum(sizes)
    for number, name in enumerate(SPLIT):
        assert {one.rest_bytes for one in heard if one.name == name} == {sum(sizes[number + 1 :])}
        assert (snapshot(hub_cache) / name).read_bytes() == gguf_model.files[name]
    assert isinstance(open_store(found.path), GgufStore)


def test_an_interrupted_download_is_resumed_and_its_part_checked(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.time.sleep", interrupt)
        gguf_model.faults[PLAIN] = Fault(after_bytes=30_000, times=1)
        with pytest.raises(KeyboardInterrupt):
            pulled(GGUF_MODEL)
    (part,) = blobs(hub_cache)
    assert part.startswith(PLAIN)
    assert part.endswith(".incomplete")
    gguf_model.requests.clear()
    assert pulled(GGUF_MODEL).path.read_bytes() == gguf_model.files[PLAIN]
    assert gguf_model.gets(PLAIN) == ["bytes=30000-"]
    assert len(blobs(hub_cache)) == 1


def test_a_part_that_was_altered_is_downloaded_anew(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(hub_download.time, "sleep", lambda seconds: None)
        gguf_model.faults[PLAIN] = Fault(after_bytes=30_000, times=1)
        patch.setattr(hub_download, "may_pass", lambda error: False)
        patch.setattr("huggingface_hub.file_download.time.sleep", _fail)
        with pytest.raises(SourceError):
            pulled(GGUF_MODEL)
    (part,) = (snapshot(hub_cache).parents[1] / "blobs").iterdir()
    part.write_bytes(bytes(20_000))
    gguf_model.requests.clear()
    assert pulled(GGUF_MODEL).path.read_bytes() == gguf_model.files[PLAIN]
    assert gguf_model.gets(PLAIN) == ["bytes=20000-", None]


def _fail(seconds: float) -> None:
    raise OSError(errno.ENETDOWN, "Network is down")


@pytest.mark.parametrize(
    "change", [lambda good: good[:-1] + b"?", lambda good: good[:-100], lambda good: good + b"more"]
)
def test_a_file_altered_on_the_way_is_refused_and_not_kept(
    gguf_model: Repository, hub_cache: Path, change: Callable[[bytes], bytes]
) -> None:
    gguf_model.faults[PLAIN] = Fault(content=change(gguf_model.files[PLAIN]))
    with pytest.raises(SourceError, match=PLAIN) as told:
        pulled(GGUF_MODEL)
    gguf_model.faults.clear()
    assert "Run the same command again" in told.value.hint
    assert not (snapshot(hub_cache) / PLAIN).exists()
    assert pulled(GGUF_MODEL).path.read_bytes() == gguf_model.files[PLAIN]


def test_an_altered_file_without_a_known_checksum_is_refused_by_its_size(
    gguf_model: Repository, hub_cache: Path
) -> None:
    gguf_model.with_sha256 = False
    gguf_model.faults[PLAIN] = Fault(content=gguf_model.files[PLAIN][:-100], times=1)
    with pytest.raises(SourceError, match=PLAIN):
        pulled(GGUF_MODEL)
    assert pulled(GGUF_MODEL).path.read_bytes() == gguf_model.files[PLAIN]


def test_a_file_in_the_cache_that_was_cut_short_is_downloaded_anew(gguf_model: Repository, hub_cache: Path) -> None:
    path = pulled(GGUF_MODEL).path
    path.resolve().write_bytes(gguf_model.files[PLAIN][:100])
    assert pulled(GGUF_MODEL).path.read_bytes() == gguf_model.files[PLAIN]


def test_a_cache_folder_without_room_is_told_before_anything_comes(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    size = sum(len(gguf_model.files[name]) for name in SPLIT)
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(
        SourceError, match=rf"3 files, such as {SPLIT[0]}, would take .* more under {hub_cache}"
    ) as told:
        pulled(f"{GGUF_MODEL}:Q4_1")
    assert "HF_HOME" in told.value.hint
    assert all(gguf_model.gets(name) == [] for name in SPLIT)
    assert not hub_cache.exists()
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=size))
    assert pulled(f"{GGUF_MODEL}:Q4_1")


def test_a_disk_that_fills_up_meanwhile(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = hub_download.http_get

    def fill(*arguments: Any, headers: dict[str, str], **options: Any) -> None:
        if "Range" not in headers:  # which the header of the GGUF file is read with
            raise OSError(errno.ENOSPC, "No space left on device")
        download(*arguments, headers=headers, **options)

    monkeypatch.setattr(hub_download, "http_get", fill)
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}: {PLAIN}: the disk under {hub_cache} is full"):
        pulled(GGUF_MODEL)


def test_a_model_that_cannot_be_used_is_refused_by_its_header(gguf_model: Repository, hub_cache: Path) -> None:
    content = gguf_model.files[PLAIN]
    assert content.count(b"llama") > 2
    gguf_model.files[PLAIN] = content.replace(b"llama", b"lhama")
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}@{COMMIT}/{PLAIN}.*lhama"):
        pulled(GGUF_MODEL)
    gguf_model.files[PLAIN] = content[:4000]
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}@{COMMIT}/{PLAIN}.* the file ends at 4000"):
        pulled(GGUF_MODEL)
    assert gguf_model.gets(PLAIN) == []


def test_a_header_is_read_piece_by_piece(gguf_model: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_gguf, "_READ_AT_ONCE_BYTES", 1000)
    with closing(open_source(GGUF_MODEL)) as source:
        names = source.tensors().keys()
    read = len(gguf_model.requests)
    assert [span for _, _, span in gguf_model.requests] == [f"bytes={1000 * n}-{1000 * n + 999}" for n in range(read)]
    assert 5 < read < len(gguf_model.files[PLAIN]) / 2000
    assert "model.norm.weight" in names
    gguf_model.with_ranges = False
    with pytest.raises(SourceError, match=rf"{PLAIN}: expected bytes 0 to 1000, the hub sends more"):
        open_source(GGUF_MODEL)


def test_a_quantisation_that_is_not_there_is_told_which_are(gguf_model: Repository) -> None:
    with pytest.raises(SourceError, match=f"{GGUF_MODEL}:Q5_K_M: found no Q5_K_M among its GGUF files") as told:
        pulled(f"{GGUF_MODEL}:Q5_K_M")
    for name in ("Q4_K_M (", "Q8_0 (", "Q4_1 ("):
        assert name in told.value.hint
    del gguf_model.files[PLAIN]
    with pytest.raises(SourceError, match="found several quantisations, and no Q4_K_M"):
        pulled(GGUF_MODEL)
    del gguf_model.files[SPLIT[1]]
    with pytest.raises(SourceError, match=f"{SPLIT[1]}: missing"):
        pulled(f"{GGUF_MODEL}:Q4_1")


def test_a_gated_file_and_a_gated_repository(gguf_model: Repository) -> None:
    gguf_model.faults[PLAIN] = Fault(status=403, code="GatedRepo")
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}: {PLAIN}: access requires accepting the terms") as told:
        pulled(GGUF_MODEL)
    assert "HF_TOKEN" in told.value.hint
    gguf_model.error = (403, "GatedRepo")
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}: access requires accepting the terms"):
        pulled(GGUF_MODEL)


def test_a_repository_without_weights(gguf_model: Repository) -> None:
    gguf_model.files = {"README.md": b"x", "mmproj-F16.gguf": b"x"}
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}: expected config\.json in it, found none"):
        pulled(GGUF_MODEL)
    with pytest.raises(SourceError, match=rf"{GGUF_MODEL}:Q4_0: expected GGUF files, found none"):
        pulled(f"{GGUF_MODEL}:Q4_0")


def test_without_a_network_what_is_there_is_taken(gguf_model: Repository, hub_cache: Path) -> None:
    path = pulled(f"{GGUF_MODEL}:Q4_1").path
    gguf_model.error = (503, "")
    again = pulled(f"{GGUF_MODEL}:Q4_1")
    size = sum(len(gguf_model.files[name]) for name in SPLIT)
    assert (again.path, again.hub_id.quantisation, again.bytes) == (path, "Q4_1", size)
    assert "The hub cannot be reached" in again.notice
    assert pulled(GGUF_MODEL).hub_id.quantisation == "Q4_1"  # the only one
    with pytest.raises(SourceError, match=r"the hub answered HTTP 503.*it has Q4_1 \(.*\) of maker/Tiny-GGUF"):
        pulled(f"{GGUF_MODEL}:Q8_0")
    (snapshot(hub_cache) / SPLIT[2]).unlink()
    with pytest.raises(SourceError, match="is unusable"):
        pulled(f"{GGUF_MODEL}:Q4_1")
    shutil.rmtree(hub_cache)
    with pytest.raises(SourceError, match="does not have it"):
        pulled(GGUF_MODEL)


def test_a_model_that_is_there_runs_without_a_word_to_the_hub(gguf_model: Repository, hub_cache: Path) -> None:
    path = find_runnable(f"{GGUF_MODEL}:Q4_K_M")
    assert path == snapshot(hub_cache) / PLAIN
    assert model_name(path) == "Tiny-Q4_K_M"
    gguf_model.error = (404, "RepoNotFound")
    for text in (f"{GGUF_MODEL}:Q4_K_M", GGUF_MODEL, f"{GGUF_MODEL}@main", f"{GGUF_MODEL}@{COMMIT}:q4_k_m"):
        assert find_runnable(text) == path
    for text in (f"{GGUF_MODEL}:Q8_0", f"{GGUF_MODEL}@v9:Q4_K_M"):
        with pytest.raises(SourceError, match=f"{GGUF_MODEL}: there is no such folder here, and the hub has no such"):
            find_runnable(text)


def test_a_model_that_is_there_is_found_without_the_hubs_library(gguf_model: Repository, hub_cache: Path) -> None:
    pulled(GGUF_MODEL)
    program = (
        "import sys; from edgemoe.session.stores import find_runnable\n"
        "print(find_runnable(sys.argv[1]), {'huggingface_hub.hf_api', 'httpx', 'httpx2', 'requests'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, GGUF_MODEL],
        env={**os.environ, "HF_HUB_CACHE": str(hub_cache), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{snapshot(hub_cache) / PLAIN} set()\n"


def test_a_name_that_another_file_may_have_is_asked_of_the_hub(gguf_model: Repository, hub_cache: Path) -> None:
    """The cache has a file that fits; whether another one of the hub fits better is for the hub to say."""
    content = gguf_model.files[PLAIN]
    gguf_model.files = {"Tiny-UD-Q4_0.gguf": content}
    path = find_runnable(f"{GGUF_MODEL}:Q4_0")
    assert path.name == "Tiny-UD-Q4_0.gguf"
    gguf_model.files["Tiny-Q4_0.gguf"] = content
    assert find_runnable(f"{GGUF_MODEL}:Q4_0").name == "Tiny-Q4_0.gguf"
    gguf_model.error = (503, "")
    assert find_runnable(f"{GGUF_MODEL}:UD-Q4_0") == path


def test_a_newer_commit_with_the_same_file_downloads_nothing(
    gguf_model: Repository, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled(GGUF_MODEL)
    gguf_model.commit = NEWER
    gguf_model.requests.clear()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert pulled(GGUF_MODEL).path == snapshot(hub_cache, commit=NEWER) / PLAIN
    assert gguf_model.gets(PLAIN) == []
    gguf_model.files[LARGE] = gguf_model.files[PLAIN]
    pulled(f"{GGUF_MODEL}:Q8_0")
    assert len(blobs(hub_cache)) == 1


def test_an_older_commit_is_used_while_the_hub_is_away(gguf_model: Repository, hub_cache: Path) -> None:
    old = pulled(f"{GGUF_MODEL}:Q8_0").path
    gguf_model.commit = NEWER
    pulled(GGUF_MODEL)
    gguf_model.error = (503, "")
    assert find_runnable(f"{GGUF_MODEL}:Q8_0") == old
    gguf_model.error = None
    assert find_runnable(f"{GGUF_MODEL}:Q8_0") == snapshot(hub_cache, commit=NEWER) / LARGE


def test_a_checkpoint_comes_whole_and_converts_without_the_hub(
    checkpoint: Repository, hub_cache: Path, tmp_path: Path
) -> None:
    found = pulled(CHECKPOINT)
    assert found.path == snapshot(hub_cache, CHECKPOINT)
    assert not found.is_gguf
    shards = [name for name in checkpoint.files if name.endswith(".safetensors")]
    assert found.bytes == sum(len(checkpoint.files[name]) for name in shards)
    assert {path.name for path in found.path.iterdir()} == checkpoint.files.keys() - {"pytorch_model.bin", "run.py"}
    checkpoint.error = (503, "")
    assert "cannot be reached" in pulled(CHECKPOINT).notice
    assert pulled(CHECKPOINT).bytes == found.bytes
    store = Store.open(convert_checkpoint(CHECKPOINT, tmp_path / "store"))
    assert store.manifest.provenance["source"] == f"{CHECKPOINT}@{COMMIT}"


def test_a_checkpoint_that_cannot_be_used_is_refused_before_its_shards(checkpoint: Repository) -> None:
    config = json.loads(checkpoint.files["config.json"])
    checkpoint.files["config.json"] = json.dumps(config | {"model_type": "bert"}).encode()
    with pytest.raises(SourceError, match="bert"):
        pulled(CHECKPOINT)
    assert all(checkpoint.gets(name) == [] for name in checkpoint.files if name.endswith(".safetensors"))


def test_a_checkpoint_has_to_be_converted_before_it_runs(checkpoint: Repository, gguf_model: Repository) -> None:
    with pytest.raises(SourceError, match=f"{CHECKPOINT}: expected a GGUF file, which runs as it is") as told:
        find_runnable(CHECKPOINT)
    assert told.value.hint == f"Convert it first: edgemoe convert {CHECKPOINT} DEST."
    checkpoint.files |= {name: gguf_model.files[name] for name in (PLAIN, LARGE)}
    with pytest.raises(SourceError, match=r"Or name one of its GGUF files after a colon: Q4_K_M \(.*, Q8_0 \("):
        find_runnable(CHECKPOINT)
    assert find_runnable(f"{CHECKPOINT}:Q8_0").read_bytes() == gguf_model.files[LARGE]
    with pytest.raises(SourceError, match="expected a GGUF file"):
        find_runnable(CHECKPOINT)  # still: what the id means does not depend on what was downloaded


def test_a_path_is_not_looked_up_on_the_hub(gguf_model: Repository, tmp_path: Path) -> None:
    (tmp_path / GGUF_MODEL).mkdir(parents=True)
    with pytest.raises(StoreError, match="expected a store"):
        find_runnable(GGUF_MODEL)
    with pytest.raises(StoreError, match="there is no such folder or model"):
        find_runnable(Path("maker/other"))  # a path is no text that a person typed
    assert gguf_model.requests == []


def same_store(one: Path, other: Path) -> bool:
    names = ("resident.safetensors", "experts-00000.safetensors", "tokenizer.json", "config.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize(("quantisation", "keep"), [("Q4_K_M", False), ("Q4_1", False), ("Q4_1", True)])
def test_a_gguf_model_converts_by_its_id(
    quantisation: str, keep: bool, gguf_model: Repository, hub_files: dict[str, bytes], hub_cache: Path, tmp_path: Path
) -> None:
    store = convert_checkpoint(f"{GGUF_MODEL}:{quantisation}", tmp_path / "store", keep=keep)
    names = SPLIT if quantisation == "Q4_1" else (PLAIN,)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(hub_files[name])
        assert gguf_model.gets(name) == [None]
    assert same_store(store, convert_checkpoint(str(tmp_path / names[0]), tmp_path / "from file"))
    assert Store.open(store).manifest.provenance["source"] == f"{GGUF_MODEL}@{COMMIT}/{names[0]}"
    assert not (tmp_path / "store.partial").exists()
    assert (snapshot(hub_cache) / names[0]).exists() == keep


def test_a_conversion_uses_what_was_pulled_and_resumes_what_was_broken_off(
    gguf_model: Repository, hub_cache: Path, tmp_path: Path
) -> None:
    gguf_model.faults[PLAIN] = Fault(status=500)
    with pytest.raises(SourceError, match="HTTP 500"):
        convert_checkpoint(GGUF_MODEL, tmp_path / "store")
    gguf_model.faults.clear()
    pulled(GGUF_MODEL)
    gguf_model.requests.clear()
    convert_checkpoint(GGUF_MODEL, tmp_path / "store")
    assert gguf_model.gets(PLAIN) == []
    gguf_model.error = (503, "")
    heard: list[str] = []
    convert_checkpoint(GGUF_MODEL, tmp_path / "again", notice=heard.append)
    assert heard[0].startswith("The hub cannot be reached")
    assert same_store(tmp_path / "store", tmp_path / "again")


def test_opening_a_gguf_model_reads_headers_alone(
    gguf_model: Repository, hub_files: dict[str, bytes], tmp_path: Path
) -> None:
    with closing(open_source(f"{GGUF_MODEL}:Q4_1", downloads=tmp_path / "downloads")) as source:
        assert source.config["model_type"] == "mixtral"
        assert "tokenizer.json" in source.side_files()
        assert all(gguf_model.gets(name) == [] for name in SPLIT)
        norm = source.read_rows("model.norm.weight", None, 0, 4)
        assert np.isfinite(np.asarray(norm)).all()
        assert all(gguf_model.gets(name) == [None] for name in SPLIT)
