"""Mixed requests, alone and together, under settings that may change no answer, beside clients that leave."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgemoe.server.settings import ServerSettings
from tests.server.client import Client

Request = tuple[str, dict[str, Any]]
STORY = "Once upon a time there was a ship. "


def requests(every: bool) -> list[Request]:
    """Requests of all interfaces, some of which begin alike.

    Each interface has every length and every kind of sampling, and with `every` all pairs of these.
    """
    found: list[Request] = []
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 1.0}, {"temperature": 1.2, "top_p": 0.9}]
    lengths = (1, 2, 5)
    for seed, (length, kind) in enumerate(itertools.product(lengths, kinds)):
        text, sampling = STORY * length + str(seed % 4), {**kind, "seed": seed}
        messages = [{"role": "user", "content": text}]
        asked: list[Request] = [
            ("/v1/chat/completions", {"messages": messages, "max_tokens": 10, "n": 1 + seed % 2, **sampling}),
            ("/v1/completions", {"prompt": [text, "The sea"], "max_tokens": 9, "logprobs": 1, **sampling}),
            ("/v1/messages", {"messages": messages, "max_tokens": 8, "stop_sequences": ["e", "7"], **sampling}),
            ("/v1/responses", {"input": text, "max_output_tokens": 7, "presence_penalty": 1.0, **sampling}),
            ("/completion", {"prompt": text, "n_predict": 6, "min_p": 0.01, "return_tokens": True, **sampling}),
            ("/completion", {"prompt": text, "n_predict": 9, "regex": "[a-d]{2}(north|south)x*", **sampling}),
        ]
        turn = lengths.index(length) + kinds.index(kind)
        found += [one for number, one in enumerate(asked) if every or (turn + number) % 3 == 0]
    return found


def answer(client: Client, request: Request) -> Any:
    """The parts of an answer that depend on its request alone."""
    path, body = request
    reply = client.post(path, **body)
    assert reply.status == 200, reply.body
    found = reply.json
    if "choices" in found:
        return found["choices"]
    if "output" in found:
        return [found["status"], [item["content"] for item in found["output"]]]
    return [found.get(name) for name in ("content", "tokens", "stop_reason", "stop_sequence", "stop_type")]


def come_and_go(client: Client, stopping: threading.Event) -> None:
    """Ask for long answers, and leave at some time."""
    chance = random.Random(5)
    while not stopping.is_set():
        connection = client.connect()
        body = {"model": "-", "messages": [{"role": "user", "content": STORY * chance.randint(1, 6)}]}
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}))
        stopping.wait(chance.random() / 20)
        connection.close()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mixed_requests_are_answered_the_same_in_any_company_and_under_any_settings(
    every: bool, serve: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last server finds on disk what the one before has read and written."""
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    asked = requests(every)
    client = serve(sequences=1, threads=1)
    alone = [answer(client, request) for request in asked]
    assert len({json.dumps(one) for one in alone}) > 5 * len(asked) // 9
    settings = ServerSettings(port=0, queue=200)
    for options in (
        {"sequences": 8, "threads": 2, "speculate": 7},
        {"sequences": 5, "ram": "floor", "speculate": "auto"},
    ):
        client, stopping = serve(settings, prefix_disk="64MiB", **options), threading.Event()
        leaving = threading.Thread(target=come_and_go, args=(client, stopping))
        leaving.start()
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda request, client=client: answer(client, request), asked))  # type: ignore[misc]
        stopping.set()
        leaving.join()
        assert together == alone
        scheduler = client.server.service.engine.scheduler
        assert scheduler is not None
        while scheduler.has_work:  # prefixes are being saved
            client.get("/health")
    tier = client.server.service.model.engine.sequences.tier
    assert tier is not None
    assert tier.disk.read_bytes > 0
