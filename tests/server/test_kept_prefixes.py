"""Prefixes on disk, as servers and conversations use them: after a restart the same bits, and few tokens left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server.jobs import Job
from edgemoe.server.scheduler import Scheduler
from edgemoe.server.server import Server
from edgemoe.server.settings import ServerSettings
from edgemoe.session.model import Model, load
from tests.server.client import Client
from tests.server.conftest import loader

SAMPLED = SamplingOptions(temperature=1.0, seed=3)


@pytest.fixture(params=["recurrent", pytest.param("attention", marks=pytest.mark.slow)])
def store(
    letters_store: Path, recurrent_store: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any
) -> Path:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    return recurrent_store if request.param == "recurrent" else letters_store


def opened(store: Path, **options: Any) -> Model:
    return load(store, EngineOptions(**{"context_length": 256, "prefix_disk": "16MiB", **options}))


def test_a_conversation_that_is_taken_up_again_computes_its_new_tokens(store: Path, tmp_path: Path) -> None:
    with opened(store) as model:
        talk = model.chat("You know all about ships and the sea.", SAMPLED, 16)
        for message in ("Tell me about the ship that sailed around the world.", "And then?"):
            talk.ask(message)
        talk.save(tmp_path / "talk.json")
    with opened(store) as model, opened(store, prefix_disk=None) as other:
        talks = [one.chat(None, SAMPLED, 16) for one in (model, other)]
        for talk in talks:
            talk.load(tmp_path / "talk.json")
        kept, computed = (talk.send("Go on.") for talk in talks)
        assert "".join(kept) == "".join(computed)
        of_kept, of_computed = (answer.generation.statistics for answer in (kept, computed))
        assert of_kept is not None
        assert of_computed is not None
        new = len("Go on.") + len("u:\na:") + len("\n")
        assert of_kept.prefill_tokens <= new + PAGE_TOKENS
        assert of_computed.prefill_tokens > 2 * PAGE_TOKENS


def test_a_server_finds_prefixes_after_a_restart(store: Path) -> None:
    body = {"prompt": "Once upon a time there was a ship. " * 5, "n_predict": 9, "return_tokens": True, "seed": 4}
    answers = []
    for _ in range(2):
        with Server(loader(store, prefix_disk="16MiB"), ServerSettings(port=0)) as server:
            answers.append(Client(server).post("/completion", **body).json)
            metrics = Client(server).get("/metrics").body.decode()
    assert answers[0]["tokens"] == answers[1]["tokens"]
    assert [answer["tokens_cached"] for answer in answers] == [0, len(body["prompt"]) // PAGE_TOKENS * PAGE_TOKENS]
    assert "edgemoe_prefix_disk_bytes" in metrics


def test_a_server_saves_while_it_has_nothing_else_to_do(letters_store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    with Server(loader(letters_store, prefix_disk="16MiB"), ServerSettings(port=0)) as server:
        client = Client(server)
        client.post("/completion", prompt="x" * 200, n_predict=1)
        for _ in range(1000):
            if len(list(tmp_path.glob("prefixes/*/*.page"))) == 3:
                break
            client.get("/health")
        else:
            raise AssertionError("not all pages were saved")


@pytest.mark.parametrize(("share", "saved"), [(0.0, 0), (1e9, 2)])
def test_a_share_of_the_time_saves_prefixes_while_answers_follow_one_another(
    letters_store: Path, tmp_path: Path, monkeypatch: Any, share: float, saved: int
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("edgemoe.server.scheduler.SAVING_SHARE", share)
    with opened(letters_store) as model:
        scheduler = Scheduler(model)
        scheduler.add([Job([*range(1, 91), *range(1, 51)], SamplingOptions(), 9, lambda event: None)])
        while scheduler.busy:
            files = len(list(tmp_path.glob("prefixes/*/*.page")))
            scheduler.step()
        assert files == saved
        model.engine.pause = None


def test_what_answers_depend_on_beside_the_text_is_never_mixed(
    letters_store: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    ids = list(range(1, 91)) * 2
    for kv in ("f16", "q8", "f16"):
        with opened(letters_store, kv=kv) as model:
            expected = 0 if kv == "q8" or not list(tmp_path.glob("prefixes/*/*.page")) else 128
            generation = model.stream(ids, 1)
            list(generation)
            assert generation.statistics is not None
            assert generation.statistics.prefill_tokens == len(ids) - expected
    assert len(list(tmp_path.glob("prefixes/*"))) == 2
