"""A conversion killed at any moment goes on from there and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgemoe.conversion import destination, pipeline, transfer
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import StoreError
from tests.support.checkpoints import SMALL_MIXTRAL, folder_bytes, write_checkpoint
from tests.support.pairs import some


def in_child(action: Callable[[], Any]) -> int:
    """Do something in a forked process; returns its status: 0, an exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            action()
            code = 0
        except StoreError:
            code = 71
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    write_checkpoint(folder, SMALL_MIXTRAL, shards=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return folder_bytes(convert_checkpoint(str(checkpoint), tmp_path_factory.mktemp("undisturbed") / "store"))


def _killed_at(calls: int) -> Callable[..., Any]:
    """A stand-in for each call that changes the disk: at the given one the process dies before it is done."""
    left = [calls]

    def wrap(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(module, name, call)

    return wrap


def test_killed_before_any_step_that_reaches_the_disk(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Dies before the 1st, 2nd, ... such step in turn, each run going on from where the last one died."""
    steps = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        steps += 1

        def run(step: int = steps) -> None:
            transfer.CHECKPOINT_BYTES = 30_000
            wrap = _killed_at(step)
            for module, name in (
                (os, "fsync"),
                (os, "ftruncate"),
                (os, "unlink"),
                (os, "rmdir"),
                (os, "rename"),
                (shutil, "rmtree"),
                (destination, "sync_folder"),
            ):
                wrap(module, name)
            convert_checkpoint(str(checkpoint), tmp_path / "store")

        status = in_child(run)
        if (tmp_path / "store").exists():
            assert folder_bytes(tmp_path / "store") == undisturbed
    assert status == 0
    assert steps > 10
    assert folder_bytes(tmp_path / "store") == undisturbed
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.parametrize("seed", some(range(4)))
def test_killed_at_random_writes(checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(3):
        count = generator.randrange(1, 150)

        def run(count: int = count) -> None:
            transfer.CHECKPOINT_BYTES = 10_000
            _killed_at(count)(os, "pwrite")
            convert_checkpoint(str(checkpoint), tmp_path / "store")

        if in_child(run) == 0:
            break
    assert in_child(lambda: convert_checkpoint(str(checkpoint), tmp_path / "store")) == 0
    assert folder_bytes(tmp_path / "store") == undisturbed


def test_a_limit_on_the_size_of_files_is_told_and_can_be_raised(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            convert_checkpoint(str(checkpoint), tmp_path / "store")
        except StoreError as error:
            (tmp_path / "message").write_text(str(error))
            raise

    assert in_child(limited) == 71
    assert "larger than this file system or account allows" in (tmp_path / "message").read_text()
    assert not (tmp_path / "store").exists()
    assert folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "store")) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 256 KiB, where we may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_is_told_and_the_work_kept(
    checkpoint: Path, undisturbed: dict[str, bytes], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(200_000))
    with pytest.raises(StoreError, match=r"the store needs .* more, and .* free"):
        convert_checkpoint(str(checkpoint), small_disk / "store")
    monkeypatch.setattr(pipeline, "_check_space", lambda writer: None)  # as if another program took the room later
    with pytest.raises(StoreError, match="the disk is full"):
        convert_checkpoint(str(checkpoint), small_disk / "store")
    assert not (small_disk / "store").exists()
    filler.unlink()
    assert folder_bytes(convert_checkpoint(str(checkpoint), small_disk / "store")) == undisturbed


MIXTRAL_LAYER = dict(
    SMALL_MIXTRAL,
    num_hidden_layers=1,
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_local_experts=8,
    vocab_size=32000,
    max_position_embeddings=32768,
)
"""One layer of the sizes of Mixtral-8x7B, with its embedding and head."""

LARGEST_TENSOR_BYTES = 32000 * 4096 * 2

CONVERT = """
import sys
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.process import peak_rss_bytes
convert_checkpoint(sys.argv[1], sys.argv[2])
print(peak_rss_bytes())
"""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(7200)
def test_a_layer_of_mixtral_stays_within_memory_and_survives_ten_kills(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", MIXTRAL_LAYER, shards=4)
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "model")]
    begun = time.monotonic()
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - begun
    peak_bytes = int(whole.stdout)
    print(f"undisturbed: {seconds:.0f} s, peak {peak_bytes / 1e6:.0f} MB")
    assert peak_bytes <= LARGEST_TENSOR_BYTES + 300_000_000
    generator = random.Random(1)
    for _ in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        try:
            process.wait(timeout=generator.uniform(1.5, 1.5 + seconds / 8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "killed").iterdir()}
    for name in names:
        assert subprocess.run(["cmp", tmp_path / "whole" / name, tmp_path / "killed" / name]).returncode == 0
