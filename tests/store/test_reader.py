"""Opening and loading a store: what was written comes back, aligned; what is damaged is refused by name."""

from __future__ import annotations

import copy
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemoe.errors import BudgetError, StoreError
from edgemoe.io import direct
from edgemoe.io.bulk import BulkRead, Span
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.native import page_cache
from edgemoe.store.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgemoe.store.manifest_parser import parse_manifest
from edgemoe.store.reader import Store
from edgemoe.store.records import RECORDS_NAME
from edgemoe.store.side_files import check_side_files
from tests.support.examples import examples
from tests.support.page_cache import cached_pages
from tests.support.stores import edit_manifest, flip_bit, sealed, small_store, version_1

SYNCHRONISES = True


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def old(made: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same store as version 1 was: its records are in the manifest."""
    return version_1(shutil.copytree(made.path, tmp_path_factory.mktemp("old") / "store"))


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """A copy that the test may damage."""
    return Store.open(shutil.copytree(made.path, tmp_path / "store"))


def _read_file(path: Path, size: int, into: np.ndarray) -> None:
    reading = BulkRead(into)
    reading.begin([Span(path, 0, size, 0)])
    reading.wait()
    reading.close()


def test_every_binary_file_is_valid_safetensors(made: Store) -> None:
    names = []
    for path in sorted(made.path.glob("*.safetensors")):
        with safetensors.safe_open(path, "np") as file:
            names += list(file.keys())
    assert {f"layers.{layer}.experts.{expert}" for layer in range(2) for expert in range(4)} <= set(names)
    assert {"embedding", "layers.1.router", "final_norm"} <= set(names)


def test_resident_tensors_are_aligned_and_equal_to_the_file(made: Store) -> None:
    tensors = made.load_dense()
    with safetensors.safe_open(made.path / "resident.safetensors", "np") as file:
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            data = tensor.data if isinstance(tensor, Matrix) else tensor
            assert data.ctypes.data % 64 == 0
            assert np.array_equal(file.get_tensor(name), data)
    assert isinstance(tensors["layers.0.router"], Matrix)
    assert tensors["layers.0.router"].format.name == "f32"
    assert not isinstance(tensors["final_norm"], Matrix)


def test_the_arena_has_the_size_that_was_told(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    allocate = direct.allocate_pages
    monkeypatch.setattr("edgemoe.store.dense.allocate_pages", lambda size: asked.append(size) or allocate(size))
    made.load_dense()
    assert asked == [made.dense_bytes()]


def test_loading_without_direct_io_gives_the_same(made: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made.load_dense()
    monkeypatch.delattr(os, "O_DIRECT")
    found = made.load_dense()
    for name, tensor in expected.items():
        other = found[name]
        if isinstance(tensor, Matrix):
            assert isinstance(other, Matrix)
            assert np.array_equal(tensor.data, other.data)
        else:
            assert np.array_equal(tensor, other)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what its page cache holds")
@pytest.mark.parametrize("cached", [0, 100])
def test_the_page_cache_does_not_grow(cached: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = os.urandom(4000 * 4096)
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing more than that
            file.read(cached * 4096)
    before = sum(cached_pages(path))
    if before > 200:
        pytest.skip("this file system keeps what it was told to drop")
    memory = np.frombuffer(direct.allocate_pages(len(content)), np.uint8)
    _read_file(path, len(content), memory)
    assert memory.tobytes() == content
    assert sum(cached_pages(path)) <= before + 100  # what a file system keeps for itself, never the file


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what its page cache holds")
@pytest.mark.parametrize("hole", [0, 1000, 3999])
def test_what_others_have_cached_stays_there(hole: int, tmp_path: Path) -> None:
    """A file of which one page is missing, at either end or in the middle."""
    path = tmp_path / "file"
    content = os.urandom(4000 * 4096)
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), hole * 4096, 4096, os.POSIX_FADV_DONTNEED)
    before = sum(cached_pages(path))
    memory = np.frombuffer(direct.allocate_pages(len(content)), np.uint8)
    _read_file(path, len(content), memory)
    assert memory.tobytes() == content
    assert sum(cached_pages(path)) >= before


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what its page cache holds")
@pytest.mark.parametrize("dropped", [(0, 0), (0, 1), (1, 1), (999, 1), (500, 500), (0, 1000)])
def test_the_system_tells_what_is_cached_before_the_first_page_that_is_not(
    dropped: tuple[int, int], tmp_path: Path
) -> None:
    """File systems that keep pages by the dozen drop fewer than they are told to, so it is asked what they dropped."""
    path, (first, count) = tmp_path / "file", dropped
    size = 1000 * mmap.PAGESIZE - 100
    with path.open("wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())
        if count:
            os.posix_fadvise(file.fileno(), first * mmap.PAGESIZE, count * mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
    held = [*cached_pages(path), False]
    with path.open("rb") as file:
        for begin in (0, 1, 700):
            run = held.index(False, begin) - begin
            rest = size - begin * mmap.PAGESIZE
            found = page_cache.cached_bytes(file.fileno(), begin * mmap.PAGESIZE, rest)
            assert found == min(rest, run * mmap.PAGESIZE)
        assert page_cache.cached_bytes(file.fileno(), 0, 0) == 0
        assert page_cache.cached_bytes(file.fileno(), 100, 4096) == 0
    assert [*cached_pages(path), False] == held  # to ask brings nothing there


def test_of_others_files_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would say that all is there."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    assert page_cache.can_probe_page_cache(path) == (sys.platform == "linux")
    with monkeypatch.context() as context:
        context.delattr(os, "RWF_NOWAIT", raising=False)
        assert not page_cache.can_probe_page_cache(path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not page_cache.can_probe_page_cache(path)


def test_a_resident_tensor_that_was_altered_is_named(store: Store) -> None:
    store.load_dense()
    tensor = next(tensor for tensor in store.manifest.dense if tensor.name == "layers.1.router")
    flip_bit(store.path / "resident.safetensors", tensor.offset + tensor.bytes - 1, 7)
    with pytest.raises(StoreError, match=r"layers\.1\.router at byte \d+ is not what was written"):
        store.load_dense()


def test_a_store_without_fast_checksums_loads(store: Store) -> None:
    expected, found = store.load_dense(), version_1(store.path, fast_checksums=False).load_dense()
    assert expected.keys() == found.keys()


@pytest.mark.parametrize("crc", ["1234567", "123456789", "ABCDEF01", 7, None])
def test_a_fast_checksum_is_eight_digits(store: Store, crc: object) -> None:
    edit_manifest(store.path, lambda data: data["resident"]["tensors"][0].update(crc32c=crc))
    with pytest.raises(StoreError, match=r"resident|tensors\[0\]\.crc32c: expected"):
        Store.open(store.path)


def test_memory_that_cannot_be_had_is_told() -> None:
    for size in (1 << 46, 1 << 80):
        with pytest.raises(BudgetError, match=f"{size} bytes of memory cannot be had"):
            direct.allocate_pages(size)


def test_a_file_that_ends_early_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "resident.safetensors"
    path.write_bytes(bytes(5000))
    with pytest.raises(direct.PageReadError, match=r"resident\.safetensors: byte 5000: the file ends"):
        _read_file(path, 20000, np.zeros(20000, np.uint8))


def test_a_resident_file_that_was_cut_short_is_named(store: Store) -> None:
    path = store.path / "resident.safetensors"
    os.truncate(path, 5000)
    with pytest.raises(StoreError, match=r"resident\.safetensors: ends at byte 5000"):
        store.load_dense()
    path.unlink()
    with pytest.raises(StoreError, match=r"resident\.safetensors: cannot be read \(No such file"):
        store.load_dense()


def test_records_lie_at_pages(made: Store) -> None:
    assert made.record_bytes % 4096 == 0
    ends: dict[Path, int] = {}
    for layer in range(2):
        for expert in range(4):
            record = made.record(layer, expert)
            assert record.offset % 4096 == 0
            assert record.length == made.record_bytes
            assert record.offset == ends.get(record.path, record.offset)
            ends[record.path] = record.offset + record.length
    for path, end in ends.items():
        assert path.stat().st_size == end


@pytest.mark.parametrize(("layer", "expert"), [(2, 0), (-1, 0), (0, 4), (0, -1)])
def test_an_expert_that_does_not_exist_is_an_error(made: Store, layer: int, expert: int) -> None:
    with pytest.raises(StoreError, match=f"there is no layers.{layer}.experts.{expert}"):
        made.record(layer, expert)


def test_a_folder_without_manifest_is_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("with\0zero")):
        with pytest.raises(StoreError, match="expected a store"):
            Store.open(path)


def test_a_store_of_another_version_is_refused(store: Store) -> None:
    edit_manifest(store.path, lambda data: data.update(edgemoe=3))
    with pytest.raises(StoreError, match="expected a store of version 1 to 2, found 3"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"theta": 1000000.0', b'"theta": 1001000.0'),
        (b'"norm_epsilon": 1e-05', b'"norm_epsilon": 3e-05'),
        (b'"normalise": true', b'"normalise": false'),
        (b'"checksum": "', b'"checksun": "'),
    ],
)
def test_an_altered_manifest_is_refused_though_it_could_be_one(store: Store, before: bytes, after: bytes) -> None:
    """A manifest says what its own checksum is: what it was when it was written must be what it is when it is read."""
    path = store.path / MANIFEST_NAME
    text = path.read_bytes()
    assert before in text
    path.write_bytes(text.replace(before, after))
    with pytest.raises(StoreError, match=r"edgemoe\.json: .* an altered one \(its own checksum differs\)"):
        Store.open(store.path)


def test_white_space_in_a_manifest_means_nothing(store: Store) -> None:
    """A store's checksum is of the fields, so that every store that was ever written opens."""
    path = store.path / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert Store.open(store.path).manifest == store.manifest


@pytest.mark.parametrize("depth", [100, 400, 900, 5000, 100_000])
def test_a_manifest_of_many_levels_is_refused(store: Store, depth: int) -> None:
    (store.path / MANIFEST_NAME).write_text('{"edgemoe": 1, "model": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(StoreError, match=r"edgemoe\.json: "):
        Store.open(store.path)


def test_a_truncated_expert_file_names_the_first_expert_lost(store: Store) -> None:
    record = store.record(1, 2)
    os.truncate(record.path, record.offset + record.length - 1)
    with pytest.raises(StoreError, match=rf"{record.path.name}: expected .* layer 1, expert 2\."):
        Store.open(store.path)


def test_a_truncated_resident_file_names_the_first_tensor_lost(store: Store) -> None:
    path = store.path / "resident.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(StoreError, match=r"resident.safetensors: expected .* the first tensor lost is "):
        Store.open(store.path)


@pytest.mark.parametrize("name", ["resident.safetensors", "experts-00000.safetensors", RECORDS_NAME, "tokenizer.json"])
def test_a_git_lfs_pointer_in_place_of_a_file_is_named(store: Store, name: str) -> None:
    """A store that was cloned without Git LFS; the pointer's first line is that of git-lfs' docs/spec.md."""
    (store.path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(StoreError, match=f"{name}: expected the file itself, found a Git LFS pointer"):
        check_side_files(Store.open(store.path))


@pytest.mark.parametrize("name", ["resident.safetensors", "experts-00000.safetensors", RECORDS_NAME])
def test_a_missing_file_is_named(store: Store, name: str) -> None:
    (store.path / name).unlink()
    with pytest.raises(StoreError, match=f"{name} is missing"):
        Store.open(store.path)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/b", "..", ".", "", ".x", "a\\b", "c:x", "x\0y", "\ud800", 7, None, "edgemoe.json"],
)
def test_file_names_cannot_leave_the_folder(store: Store, name: object) -> None:
    edit_manifest(store.path, lambda data: data["side_files"][0].update(name=name))
    with pytest.raises(StoreError, match=r"edgemoe\.json: "):
        Store.open(store.path)
    for part in (lambda data: data["resident"], lambda data: data["experts"]["table"]):
        edit_manifest(store.path, lambda data, part=part: part(data).update(name=name))
        with pytest.raises(StoreError, match=r"edgemoe\.json: "):
            Store.open(store.path)


def test_the_manifest_comes_back_as_it_was_written(made: Store) -> None:
    assert parse_manifest(made.manifest.to_bytes(), _table_of(made)) == made.manifest


@pytest.mark.parametrize(
    ("key", "value"),
    [("formats", "q4"), ("formats", [1]), ("parameters", "x"), ("bytes", -1), ("bits_per_weight", None)],
)
def test_figures_of_the_quantisation_are_figures(made: Store, key: str, value: object) -> None:
    manifest = json.loads((made.path / MANIFEST_NAME).read_text())
    manifest["quantisation"]["experts"][key] = value
    with pytest.raises(StoreError, match=f"quantisation.*{key}"):
        parse_manifest(sealed(manifest), _table_of(made))


_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5000),
    st.integers(),
    st.sampled_from([1 << 63, 1 << 200, -1, 0, 1e308, "", "q4", "vector", [], {}, [[]], "../a", "0" * 64]),
    st.text(max_size=5),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(150), deadline=None)
@given(st.data())
def test_mutated_manifests_open_or_are_refused_and_nothing_else(made: Store, old: Store, data: st.DataObject) -> None:
    made = data.draw(st.sampled_from([made, old]))
    manifest = json.loads((made.path / MANIFEST_NAME).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = manifest
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 3)) == 0:
                break
            node = node[key]
        if data.draw(st.booleans()):
            node[key] = copy.deepcopy(data.draw(_ODD))
        elif isinstance(node, list) and data.draw(st.booleans()):
            node.append(copy.deepcopy(node[key]))
        else:
            del node[key]
    _open_and_use(made, sealed(manifest))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(100), deadline=None)
@given(st.data())
def test_manifests_with_altered_bytes_open_or_are_refused(made: Store, old: Store, data: st.DataObject) -> None:
    made = data.draw(st.sampled_from([made, old]))
    content = bytearray((made.path / MANIFEST_NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _open_and_use(made, bytes(content))


def _table_of(store: Store) -> Callable[[FileEntry], bytes]:
    """Reads the table of a store, whatever a manifest says of its file."""
    return lambda file: store.manifest.records.to_bytes()


def _open_and_use(made: Store, text: bytes) -> None:
    try:
        manifest = parse_manifest(text, _table_of(made))
        store = Store(made.path, manifest)
        store.check_sizes()
    except StoreError:
        return
    # What opens is loaded without any other error, and every record lies in its file.
    assert isinstance(manifest, Manifest)
    store.load_dense()
    for layer, expert, *_ in manifest.records:
        record = store.record(layer, expert)
        assert record.offset + record.length <= record.path.stat().st_size
