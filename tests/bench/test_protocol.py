"""Workers: what they answer, refuse and die of reaches whoever asked."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgemoe.bench.protocol import Worker
from edgemoe.errors import EdgemoeError, UsageError

FAKE = [sys.executable, "-m", "tests.support.fake_worker"]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker("the fake", [*FAKE, str(tmp_path / "log"), "0.5", "2"]) as started:
        yield started


def test_a_worker_answers_refuses_and_goes_on(worker: Worker) -> None:
    assert worker.ask("chatter") == {"said": True}
    with pytest.raises(UsageError, match="not ünüsual") as error:
        worker.ask("refuse", what="ünüsual\n")
    assert error.value.hint == "Ask for something else."
    with pytest.raises(EdgemoeError, match="ZeroDivisionError: by zero"):
        worker.ask("stumble")
    with pytest.raises(EdgemoeError, match="KeyError: 'no such request'"):
        worker.ask("no such request")
    assert worker.ask("run", prompt=[1], continuation=[])["prompt_s"] == 0.5
    assert worker.cpu_seconds() >= 0


def test_a_worker_that_dies_says_how(worker: Worker) -> None:
    with pytest.raises(EdgemoeError, match=r"the fake: its process ended with code 3; .*out of luck"):
        worker.ask("die", code=3)
    with pytest.raises(EdgemoeError, match="ended with code 3"):
        worker.ask("chatter")
    worker.close()


def test_a_worker_that_is_killed_says_so(worker: Worker) -> None:
    with pytest.raises(EdgemoeError, match="was killed by signal 9"):
        worker.ask("kill")


def test_no_worker_outlives_its_use(tmp_path: Path) -> None:
    command = [*FAKE, str(tmp_path / "log"), "1", "1"]
    processes = []

    def fail() -> None:
        with Worker("the fake", command) as worker:
            processes.append(psutil.Process(worker._process.pid))
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fail()
    assert not processes[0].is_running()
    with Worker("the fake", command) as worker:
        process = psutil.Process(worker._process.pid)
    assert not process.is_running()
