"""How long clients wait, and what the process needs over many requests, measured from outside on the command itself."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.client import Client
from tests.support.forks import ROOT

pytestmark = [pytest.mark.serve]

CHAT = "/v1/chat/completions"
STORY = "Once upon a time there was a ship. "


@dataclass(frozen=True)
class Command:
    """`edgemoe serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    @property
    def client(self) -> Client:
        return Client(self)  # type: ignore[arg-type]

    @property
    def figures(self) -> dict[str, float]:
        lines = self.client.get("/metrics").body.decode().splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


@contextmanager
def serving(*arguments: str) -> Iterator[Command]:
    command = [sys.executable, "-m", "edgemoe", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"serving at http://127.0.0.1:(\d+) ", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield Command(process, int(found[1]))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def until(condition: Any, seconds: float) -> float:
    """Return the seconds until a condition holds, which are to be less than some."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < seconds
        time.sleep(0.01)
    return time.monotonic() - began_s


def test_a_long_prompt_shows_signs_of_life_and_can_be_left_and_a_full_queue_refuses_at_once() -> None:
    long = {"model": "-", "messages": [{"role": "user", "content": STORY * 150}], "stream": True}
    with serving("--threads", "1", "--context", "2048", "--sequences", "1", "--queue", "1") as served:
        heads_s = []
        for number in range(5):
            other = {"role": "user", "content": f"head {number} {STORY * 150}"}  # shares nothing with the next prompt
            began_s = time.monotonic()
            leaves = served.client.connect()
            leaves.request("POST", CHAT, json.dumps({**long, "messages": [other]}))
            leaves.getresponse()
            heads_s.append(time.monotonic() - began_s)
            leaves.close()
            until(lambda: served.figures["edgemoe_sequences_in_use"] == served.figures["edgemoe_waiting"] == 0, 1)
        assert min(heads_s) < 0.1  # others may keep the processors busy

        asked_s = time.monotonic()
        connection = served.client.connect()
        connection.request("POST", CHAT, json.dumps({**long, "max_tokens": 1}))
        response = connection.getresponse()
        heard_s = [asked_s, time.monotonic()]
        for _ in iter(response.readline, b""):
            heard_s.append(time.monotonic())
        assert max(after - before for before, after in itertools.pairwise(heard_s)) < 6

        leaving = [served.client.connect() for _ in range(2)]
        for number, one in enumerate(leaving):
            other = {"role": "user", "content": f"{number} {STORY * 150}"}
            one.request("POST", CHAT, json.dumps({**long, "messages": [other]}))
        until(lambda: served.figures["edgemoe_waiting"] == 1, 5)
        waits_s = []
        for _ in range(9):
            began_s = time.monotonic()
            assert served.client.post(CHAT, messages=[{"role": "user", "content": "Hello"}]).status == 429
            waits_s.append(time.monotonic() - began_s)
        assert min(waits_s) < 0.05  # others may keep the processors busy
        for one in leaving:
            one.close()
        until(lambda: served.figures["edgemoe_sequences_in_use"] == served.figures["edgemoe_waiting"] == 0, 1)


def test_500_requests_stay_within_the_budget_and_leave_nothing_behind(letters_store: Path) -> None:
    with serving(
        str(letters_store), "--ram", "220MiB", "--context", "256", "--sequences", "8", "--queue", "100"
    ) as one:
        client, process = one.client, psutil.Process(one.process.pid)
        assert client.post(CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=4).status == 200
        threads, files = process.num_threads(), process.num_fds()

        def ask(number: int) -> None:
            chance = random.Random(number)
            text = f"{number} {STORY * chance.randint(1, 4)}"
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": chance.randint(1, 24)}
            if number % 5:
                assert client.post(CHAT, **body).status == 200
                return
            connection = client.connect()
            connection.request("POST", CHAT, json.dumps({"model": "-", **body, "stream": True}))
            time.sleep(chance.random() / 50)
            connection.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(500)))
        until(lambda: one.figures["edgemoe_sequences_in_use"] == one.figures["edgemoe_waiting"] == 0, 5)
        figures = one.figures
        assert figures["edgemoe_requests_failed_total"] == 0
        assert figures["edgemoe_requests_finished_total"] >= 401
        assert figures["edgemoe_peak_resident_bytes"] <= figures["edgemoe_budget_bytes"]
        until(lambda: process.num_fds() <= files and process.num_threads() <= threads, 5)
        began_s = time.monotonic()
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(10) == 143
        assert time.monotonic() - began_s < 5
