import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.small_tokenizer import write_model_folder

ROOT = Path(__file__).parents[2]
FAKE_COMMAND = [sys.executable, "-m", "tests.support.fake_main"]
Edgemoe = Callable[..., "subprocess.CompletedProcess[bytes]"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command in a test: a home of its own, and this checkout's modules."""
    return {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("store"))


@pytest.fixture
def edgemoe(tmp_path: Path) -> Edgemoe:
    """Runs the command with a fake engine, as a user would from a shell."""

    def run(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*FAKE_COMMAND, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=environment(tmp_path, **variables),
            timeout=60,
            check=False,
        )

    return run
