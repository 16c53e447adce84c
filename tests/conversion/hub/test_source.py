"""A checkpoint on a hub: what is fetched and in which order, what stays on disk, and every way it goes wrong."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.hub import download as hub_download
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.conversion.hub.source import HubSource
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.progress import Download
from edgemoe.errors import SourceError
from edgemoe.store.reader import Store
from tests.architectures.harness import load_checkpoint
from tests.conversion.test_gpt_oss import CONFIG as GPT_OSS
from tests.support.checkpoints import SMALL_MIXTRAL, read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.hub_server import COMMIT, Fault, HubServer, Repository, hub_server, use_hub

GOLDEN = Path(__file__).parents[2] / "golden"

MODEL = "maker/tiny"
SECOND_SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = SMALL_MIXTRAL | {"vocab_size": 50}
    files = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}", "pytorch_model.bin": b"x", "run.py": b"x"}
    write_checkpoint(folder, config, shards=3, side_files=files)
    return folder


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def model(server: HubServer, checkpoint: Path) -> Repository:
    server.models[MODEL] = Repository({path.name: path.read_bytes() for path in checkpoint.iterdir()})
    return server.models[MODEL]


@pytest.fixture
def connect(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HubSource]:
    """Opens the model on the test's server, as a run in a fresh folder would."""
    use_hub(monkeypatch, server.url, tmp_path / "cache")

    def open_it(text: str = MODEL, side_files: bool = True, **options: Any) -> HubSource:
        hub_id = HubId.parse(text)
        assert hub_id is not None
        repository = HubRepository(hub_id, downloads=tmp_path / "downloads", **options)
        return HubSource(repository, side_files=side_files)

    return open_it


def read_shard(source: HubSource, shard: str) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.asarray(source.read_rows(name, None, 0, info.shape[0]))
        for name, info in source.tensors().items()
        if info.shard == shard
    }


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_downloads_cannot_be_kept_for_a_user_without_a_home(
    connect: Callable[..., HubSource], model: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then huggingface_hub takes its cache for a folder called `~`, or raises RuntimeError."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(SourceError, match="this user has no home") as told:
        connect(keep=True)
    assert "HF_HOME" in told.value.hint


def test_reads_what_the_checkpoint_holds(
    connect: Callable[..., HubSource], model: Repository, checkpoint: Path
) -> None:
    source = connect()
    expected = read_tensors(checkpoint)
    assert source.config == json.loads((checkpoint / "config.json").read_text())
    assert {name: info.shape for name, info in source.tensors().items()} == {k: v.shape for k, v in expected.items()}
    found: dict[str, np.ndarray[Any, Any]] = {}
    for shard in source.shards():
        found |= read_shard(source, shard)
        source.release(shard)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.float32


def test_rows_of_stacked_experts(connect: Callable[..., HubSource], server: HubServer, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "stacked", SMALL_MIXTRAL, stacked=True)
    server.models[MODEL] = Repository({path.name: path.read_bytes() for path in (tmp_path / "stacked").iterdir()})
    source = connect()
    name = "model.layers.1.mlp.experts.down_proj"
    expected = read_tensors(tmp_path / "stacked")[name]
    np.testing.assert_array_equal(np.asarray(source.read_rows(name, 2, 5, 9)), expected[2, 5:9])


def test_columns_of_transposed_experts(connect: Callable[..., HubSource], server: HubServer, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "transposed", GPT_OSS, stacked=True)
    server.models[MODEL] = Repository({path.name: path.read_bytes() for path in (tmp_path / "transposed").iterdir()})
    source = connect()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    expected = read_tensors(tmp_path / "transposed")[name]
    np.testing.assert_array_equal(source.read_columns(name, 2, 5, 9), expected[2, :, 5:9].T)


def test_columns_of_experts_one_below_the_other(
    connect: Callable[..., HubSource], server: HubServer, tmp_path: Path
) -> None:
    server.models[MODEL] = Repository({path.name: path.read_bytes() for path in (GOLDEN / "dbrx").iterdir()})
    source = connect()
    name = "transformer.blocks.1.ffn.experts.mlp.w2"
    expected = load_checkpoint(GOLDEN / "dbrx")[1][name].reshape(6, 20, 24)[2, :, 5:9].T
    np.testing.assert_array_equal(source.read_columns(name, 2, 5, 9, 20), expected)


def test_nothing_is_downloaded_before_it_is_read_and_only_what_is_needed(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    source = connect()
    small = {"config.json", "model.safetensors.index.json", "tokenizer.json", "chat_template.jinja"}
    assert files_in(tmp_path / "downloads") == small
    read_shard(source, SECOND_SHARD)
    read_shard(source, SECOND_SHARD)
    assert len(model.gets(SECOND_SHARD)) == 1
    assert files_in(tmp_path / "downloads") == small | {SECOND_SHARD}
    source.release(SECOND_SHARD)
    source.release(SECOND_SHARD)
    assert files_in(tmp_path / "downloads") == small
    fetched = {name for _, name, _ in model.requests}
    assert not fetched & {"pytorch_model.bin", "run.py"}
    source.close()
    assert files_in(tmp_path / "downloads") == set()


def test_a_shard_that_was_read_but_not_released_is_there_in_the_next_run(
    connect: Callable[..., HubSource], model: Repository
) -> None:
    first = connect()
    read_shard(first, SECOND_SHARD)
    first.close()
    read_shard(connect(), SECOND_SHARD)
    assert len(model.gets(SECOND_SHARD)) == 1


def test_every_file_is_of_the_commit_that_the_revision_named_at_the_start(
    connect: Callable[..., HubSource], model: Repository
) -> None:
    model.revisions = ("main", "v1.0")
    source = connect(f"{MODEL}@v1.0")
    assert source.fingerprint == COMMIT
    assert source.name == f"{MODEL}@{COMMIT}"
    # From here on the server knows the branch no more, as if it had moved.
    model.revisions = ()
    assert read_shard(source, SECOND_SHARD)


def test_kept_shards_stay_in_the_hubs_cache_and_are_used_again(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    source = connect(keep=True)
    values = read_shard(source, SECOND_SHARD)
    source.release(SECOND_SHARD)
    assert SECOND_SHARD in files_in(tmp_path / "cache")
    assert SECOND_SHARD not in files_in(tmp_path / "downloads")
    again = connect()
    for name, expected in values.items():
        np.testing.assert_array_equal(np.asarray(again.read_rows(name, None, 0, expected.shape[0])), expected)
    again.release(SECOND_SHARD)
    assert SECOND_SHARD in files_in(tmp_path / "cache")
    assert len(model.gets(SECOND_SHARD)) == 1


def test_a_listener_hears_how_far_a_download_is(connect: Callable[..., HubSource], model: Repository) -> None:
    heard: list[Download] = []
    model.faults[SECOND_SHARD] = Fault(after_bytes=20_000, times=1)
    read_shard(connect(downloading=heard.append), SECOND_SHARD)
    of_shard = [download for download in heard if download.name == SECOND_SHARD]
    size = len(model.files[SECOND_SHARD])
    assert of_shard[-2:] == [Download(SECOND_SHARD, size, size), Download(SECOND_SHARD, size, size, checking=True)]
    done = [download.done_bytes for download in of_shard]
    assert done == sorted(done)
    assert 20_000 in done


def test_the_token_goes_along(
    connect: Callable[..., HubSource], model: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    read_shard(connect(), SECOND_SHARD)
    assert model.tokens == {"Bearer hf_secret"}


def test_files_may_lie_on_another_server_which_never_sees_the_token(
    connect: Callable[..., HubSource], model: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_server() as storage:
        behind = storage.models[MODEL] = Repository(model.files)
        behind.faults[SECOND_SHARD] = Fault(after_bytes=20_000, times=1)
        model.moved_to = storage.url
        assert read_shard(connect(), SECOND_SHARD)
        assert behind.gets(SECOND_SHARD) == [None, "bytes=20000-"]
        assert behind.tokens == {None}
        assert model.tokens == {"Bearer hf_secret"}


def test_a_dropped_connection_is_taken_up_where_it_broke(
    connect: Callable[..., HubSource], model: Repository, checkpoint: Path
) -> None:
    model.faults[SECOND_SHARD] = Fault(after_bytes=20_000, times=2)
    found = read_shard(connect(), SECOND_SHARD)
    assert model.gets(SECOND_SHARD) == [None, "bytes=20000-", "bytes=40000-"]
    expected = read_tensors(checkpoint)
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_a_server_that_drops_every_connection_ends_in_an_error_and_the_next_run_goes_on(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = connect()
    model.faults[SECOND_SHARD] = Fault(after_bytes=0)
    with pytest.raises(SourceError, match="the connection to the hub failed") as caught:
        read_shard(source, SECOND_SHARD)
    assert "Run the same command again" in caught.value.hint
    model.faults[SECOND_SHARD] = Fault(after_bytes=30_000, times=1)
    # A process that dies after the first piece.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_shard(source, SECOND_SHARD)
    assert (tmp_path / "downloads" / "maker--tiny" / COMMIT / f"{SECOND_SHARD}.part").stat().st_size == 30_000
    source.close()
    model.requests.clear()
    read_shard(connect(), SECOND_SHARD)
    assert model.gets(SECOND_SHARD) == ["bytes=30000-"]


def _interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def test_a_conversion_that_the_server_broke_off_goes_on_and_ends_in_the_same_store(
    server: HubServer, model: Repository, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, server.url, tmp_path / "cache")
    model.faults[SECOND_SHARD] = Fault(status=500)
    with pytest.raises(SourceError, match="HTTP 500"):
        convert_checkpoint(MODEL, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    first_shard = SECOND_SHARD.replace("2", "1", 1)
    assert not {first_shard, SECOND_SHARD} & files_in(tmp_path)
    model.requests.clear()
    model.faults.clear()
    convert_checkpoint(MODEL, tmp_path / "store")
    assert model.gets(first_shard) == []
    assert files_in(tmp_path / "store.partial") == set()
    convert_checkpoint(str(checkpoint), tmp_path / "from folder")
    for name in ("resident.safetensors", "experts-00000.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "from folder" / name).read_bytes()


@pytest.mark.slow
def test_the_environment_says_which_hub(
    server: HubServer, model: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    program = (
        "import sys; from pathlib import Path; from edgemoe.conversion.opening import open_source\n"
        "print(len(open_source(sys.argv[1], downloads=Path(sys.argv[2])).tensors()))"
    )
    arguments = [sys.executable, "-c", program, MODEL, str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    index = json.loads(model.files["model.safetensors.index.json"])
    assert int(result.stdout) == len(index["weight_map"])
    assert model.tokens == {"Bearer hf_secret"}


def test_a_body_with_altered_bytes_is_refused_and_not_kept(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    good = model.files[SECOND_SHARD]
    model.faults[SECOND_SHARD] = Fault(content=good[:-1] + bytes([good[-1] ^ 1]), times=1)
    source = connect()
    with pytest.raises(SourceError, match="expected the SHA-256"):
        read_shard(source, SECOND_SHARD)
    assert not {SECOND_SHARD, f"{SECOND_SHARD}.part"} & files_in(tmp_path / "downloads")
    assert read_shard(source, SECOND_SHARD)


@pytest.mark.parametrize("change", [lambda good: good[:-100], lambda good: good + b"more"])
def test_a_body_of_another_size_is_refused_and_not_kept(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    model.with_sha256 = False
    model.faults[SECOND_SHARD] = Fault(content=change(model.files[SECOND_SHARD]))
    with pytest.raises(SourceError, match=SECOND_SHARD) as caught:
        read_shard(connect(), SECOND_SHARD)
    assert "Run the same command again" in caught.value.hint
    assert SECOND_SHARD not in files_in(tmp_path / "downloads")


def test_a_body_without_end_does_not_fill_the_disk(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    source = connect()
    model.faults[SECOND_SHARD] = Fault(content=model.files[SECOND_SHARD] + bytes(1 << 20))
    with pytest.raises(SourceError, match="the hub sends more"):
        read_shard(source, SECOND_SHARD)
    part = tmp_path / "downloads" / "maker--tiny" / COMMIT / f"{SECOND_SHARD}.part"
    assert part.stat().st_size < len(model.files[SECOND_SHARD]) + 10_000
    model.faults.clear()
    assert read_shard(connect(), SECOND_SHARD)


@pytest.mark.parametrize("answer", [b"<html>Please sign in</html>", b"[]", b"{}", b'{"id": "x", "siblings": [{}]}'])
def test_what_is_no_hub(connect: Callable[..., HubSource], model: Repository, answer: bytes) -> None:
    model.answer = answer
    with pytest.raises(SourceError, match="the server is not a model hub") as caught:
        connect()
    assert "sign in" in caught.value.hint


def test_a_commit_is_no_path(connect: Callable[..., HubSource], model: Repository, tmp_path: Path) -> None:
    model.commit = "../../../elsewhere"
    with pytest.raises(SourceError, match="names no commit"):
        connect()
    assert not (tmp_path / "downloads").exists()


def test_a_part_longer_than_the_file_is_thrown_away(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    source = connect()
    part = tmp_path / "downloads" / "maker--tiny" / COMMIT / f"{SECOND_SHARD}.part"
    part.write_bytes(bytes(len(model.files[SECOND_SHARD]) + 1))
    assert read_shard(source, SECOND_SHARD)


def test_a_slow_first_byte_is_waited_for(connect: Callable[..., HubSource], model: Repository) -> None:
    model.faults[SECOND_SHARD] = Fault(seconds=0.3, times=1)
    assert read_shard(connect(), SECOND_SHARD)


def test_a_server_in_trouble_is_asked_again(connect: Callable[..., HubSource], model: Repository) -> None:
    source = connect()
    model.faults[SECOND_SHARD] = Fault(status=503, times=2)
    assert read_shard(source, SECOND_SHARD)
    model.faults["model-00001-of-00003.safetensors"] = Fault(status=500)
    with pytest.raises(SourceError, match="HTTP 500"):
        read_shard(source, "model-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        ((404, "RepoNotFound"), "no such model", "spelling"),
        ((401, ""), "no such model, or it is private", "HF_TOKEN"),
        ((403, "GatedRepo"), "accepting the terms", "HF_TOKEN"),
        ((403, ""), "refused", "HF_TOKEN"),
        ((500, ""), "HTTP 500", "again"),
    ],
)
def test_a_refusal_says_the_way_out(
    connect: Callable[..., HubSource], model: Repository, error: tuple[int, str], message: str, hint: str
) -> None:
    model.error = error
    with pytest.raises(SourceError, match=message) as caught:
        connect()
    assert hint in caught.value.hint


def test_unknown_models_and_revisions(connect: Callable[..., HubSource], model: Repository) -> None:
    with pytest.raises(SourceError, match="no such model"):
        connect("maker/other")
    with pytest.raises(SourceError, match="no such revision"):
        connect(f"{MODEL}@v9")


def test_a_hub_out_of_reach(connect: Callable[..., HubSource], server: HubServer) -> None:
    server.server_close()
    with pytest.raises(SourceError, match="connection to the hub failed") as caught:
        connect()
    assert "network" in caught.value.hint


def fill_cache(cache: Path, checkpoint: Path, *, branch: str | None = "main") -> Path:
    """The checkpoint as the hub's library keeps it: blobs, a snapshot of links to them, the commit of a branch."""
    repository = cache / "models--maker--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    if branch:
        (repository / "refs" / branch).write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, while nobody answers at the hub's address."""
    with hub_server() as server:
        url = server.url
    use_hub(monkeypatch, url, tmp_path / "cache")
    return tmp_path / "cache"


def test_without_a_network_a_model_that_is_whole_in_the_hubs_cache_converts(
    cache: Path, checkpoint: Path, tmp_path: Path
) -> None:
    fill_cache(cache, checkpoint)
    heard: list[str] = []
    store = convert_checkpoint(MODEL, tmp_path / "store", notice=heard.append)
    assert (
        heard[0] == f"The hub cannot be reached: {MODEL}@{COMMIT} is read from the Hugging Face cache on this machine."
    )
    assert Store.open(store).manifest.provenance["source"] == f"{MODEL}@{COMMIT}"
    convert_checkpoint(str(checkpoint), tmp_path / "from folder")
    for name in ("resident.safetensors", "experts-00000.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (store / name).read_bytes() == (tmp_path / "from folder" / name).read_bytes()
    for text in (f"{MODEL}@main", f"{MODEL}@{COMMIT}"):
        assert open_source(text).name == f"{MODEL}@{COMMIT}"


@pytest.mark.parametrize("revision", ["v9", "0" * 40, "../../main", "main/../../.."])
def test_without_a_network_another_revision_is_not_taken(cache: Path, checkpoint: Path, revision: str) -> None:
    fill_cache(cache, checkpoint)
    with pytest.raises(SourceError, match=r"connection to the hub failed.*cache on this machine does not have it"):
        open_source(f"{MODEL}@{revision}")


def test_without_a_network_what_the_cache_lacks_is_named(cache: Path, checkpoint: Path) -> None:
    with pytest.raises(SourceError, match=r"connection to the hub failed.*does not have it") as caught:
        open_source(MODEL)
    assert "network" in caught.value.hint
    snapshot = fill_cache(cache, checkpoint)
    (snapshot / SECOND_SHARD).unlink()
    with pytest.raises(SourceError, match=f"is unusable: .*1 of 3 shards are missing: {SECOND_SHARD}"):
        open_source(MODEL)


def test_a_hub_in_trouble_is_done_without_too(
    server: HubServer, model: Repository, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, server.url, tmp_path / "cache")
    fill_cache(tmp_path / "cache", checkpoint)
    model.error = (500, "")
    assert open_source(MODEL).name == f"{MODEL}@{COMMIT}"
    model.error = (403, "GatedRepo")
    with pytest.raises(SourceError, match="accepting the terms"):
        open_source(MODEL)


def test_what_was_kept_converts_without_a_network(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    source = connect(keep=True)
    for shard in source.shards():
        read_shard(source, shard)
        source.release(shard)
    source.close()
    model.error = (503, "")
    again = open_source(MODEL)
    assert again.name == source.name
    assert again.tensors().keys() == source.tensors().keys()
    assert again.side_files().keys() == source.side_files().keys()


def test_a_single_file_comes_before_an_index(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path
) -> None:
    """As transformers 5.24 does, modeling_utils._get_resolved_checkpoint_files."""
    write_checkpoint(tmp_path / "new", SMALL_MIXTRAL | {"vocab_size": 50}, seed=1)
    model.files["model.safetensors"] = (tmp_path / "new" / "model.safetensors").read_bytes()
    source = connect()
    assert source.shards() == ["model.safetensors"]
    for name, values in read_shard(source, "model.safetensors").items():
        np.testing.assert_array_equal(values, read_tensors(tmp_path / "new")[name])
    (notice,) = source.notices()
    assert "model.safetensors is converted, and not model-00001-of-00003.safetensors" in notice


def test_a_tensor_that_only_the_shards_have_is_known(connect: Callable[..., HubSource], model: Repository) -> None:
    index = json.loads(model.files["model.safetensors.index.json"])
    shard = index["weight_map"].pop("model.norm.weight")
    model.files["model.safetensors.index.json"] = json.dumps(index).encode()
    source = connect()
    assert source.unlisted() == {"model.norm.weight": shard}
    assert "model.norm.weight" not in source.tensors()


def test_a_folder_that_cannot_be_written_is_not_blamed_on_the_network(
    connect: Callable[..., HubSource], model: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(hub_download, "http_get", refuse)
    with pytest.raises(SourceError, match=r"downloads.* cannot be written \(Read-only file system\)"):
        connect()


def test_an_adapter_is_named_with_its_base(connect: Callable[..., HubSource], model: Repository) -> None:
    model.files["adapter_config.json"] = b'{"base_model_name_or_path": "maker/base"}'
    with pytest.raises(SourceError, match="found a LoRA adapter of maker/base beside it"):
        connect()
    del model.files["config.json"]
    with pytest.raises(SourceError, match="expected a whole model, found a LoRA adapter of maker/base"):
        connect()


def test_a_model_without_a_tokenizer_json_is_told(connect: Callable[..., HubSource], model: Repository) -> None:
    del model.files["tokenizer.json"]
    model.files["vocab.json"] = b"x"
    (notice,) = connect().notices()
    assert "has vocab.json but no tokenizer.json" in notice


def test_the_file_that_a_tokenizer_is_made_from_is_downloaded_where_it_is_needed(
    connect: Callable[..., HubSource], model: Repository
) -> None:
    others = connect().side_files().keys()
    model.files |= {"tekken.json": b"t", "tokenizer.model": b"s"}
    assert connect().side_files().keys() == others
    del model.files["tokenizer.json"]
    source = connect()
    assert source.notices() == []
    assert source.side_files().keys() == others - {"tokenizer.json"} | {"tekken.json"}
    assert Path(source.side_files()["tekken.json"]).read_bytes() == b"t"
    assert connect(side_files=False).side_files() == {}


def test_offline_by_choice_a_model_in_the_cache_is_found_and_another_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = "maker/absent"
    fill_cache(tmp_path, checkpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    program = (
        "import sys; from edgemoe.conversion.opening import open_source\n"
        "for name in sys.argv[1:]: print(open_source(name).name)"
    )
    result = subprocess.run([sys.executable, "-c", program, MODEL, absent], capture_output=True, text=True, check=False)
    assert result.stdout == f"{MODEL}@{COMMIT}\n"
    assert f"SourceError: {absent}: HF_HUB_OFFLINE is set" in result.stderr


def test_a_full_disk(connect: Callable[..., HubSource], model: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    source = connect()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(SourceError, match="found 10"):
        read_shard(source, SECOND_SHARD)
    monkeypatch.undo()

    def fill(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_download, "http_get", fill)
    with pytest.raises(SourceError, match="is full"):
        read_shard(source, SECOND_SHARD)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/x.safetensors", "run.py", "absent.safetensors", 7])
def test_an_index_may_name_shards_of_the_repository_only(
    connect: Callable[..., HubSource], model: Repository, name: Any
) -> None:
    index = {"weight_map": {"model.norm.weight": name}}
    model.files["model.safetensors.index.json"] = json.dumps(index).encode()
    model.files["../evil.safetensors"] = b"x"
    with pytest.raises(SourceError, match="not a file of the checkpoint"):
        connect()


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {}}'])
def test_a_broken_index(connect: Callable[..., HubSource], model: Repository, index: bytes) -> None:
    model.files["model.safetensors.index.json"] = index
    with pytest.raises(SourceError, match="index"):
        connect()


def test_a_tensor_that_the_index_promises_and_the_shard_lacks(
    connect: Callable[..., HubSource], model: Repository
) -> None:
    index = json.loads(model.files["model.safetensors.index.json"])
    index["weight_map"]["model.extra"] = SECOND_SHARD
    model.files["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(SourceError, match=r"model\.extra"):
        connect()


def test_a_shard_that_is_not_safetensors(connect: Callable[..., HubSource], model: Repository) -> None:
    model.files[SECOND_SHARD] = b"<html>not found</html>" * 10
    with pytest.raises(SourceError, match="not safetensors"):
        connect()


@pytest.mark.parametrize(
    ("files", "hint"),
    [({"a.gguf"}, "GGUF"), ({"config.json", "pytorch_model.bin"}, "pickles"), ({"README.md"}, "language model")],
)
def test_a_repository_without_a_checkpoint(
    connect: Callable[..., HubSource], model: Repository, files: set[str], hint: str
) -> None:
    model.files = dict.fromkeys(files, b"{}")
    with pytest.raises(SourceError) as caught:
        connect()
    assert hint in caught.value.hint


def test_an_id_that_is_none(connect: Callable[..., HubSource], model: Repository) -> None:
    with pytest.raises(SourceError, match="not a hub id"):
        connect("maker/ti..ny")


def test_a_folder_wins_over_a_hub_id(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(checkpoint, tmp_path / "maker" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert "model.norm.weight" in open_source(MODEL).tensors()


@every_case("text", ["nowhere", "a/b/c", "./maker/tiny", "maker/tiny@", "maker/model.gguf"])
def test_what_is_neither_is_refused_without_asking_the_hub(text: str) -> None:
    with pytest.raises(SourceError, match="no such folder or file"):
        open_source(text)
