"""Answers over HTTP against one without: what is measured, shown and refused."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgemoe.bench import clients, http_server
from edgemoe.bench.clients import ClientsMeasurement
from edgemoe.bench.http_server import Answer, HttpServer, Received
from edgemoe.bench.measure import Settings
from edgemoe.bench.protocol import Start
from edgemoe.cli.company import clients_table
from edgemoe.cli.main import run_command
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.select import describe_backend

Answers = Sequence[Answer]

SETTINGS = Settings(prompt_tokens=4, decode_tokens=12, repeats=2)


class TimedServer:
    """Gives one of these answers, their times and numbers of tokens, to each client."""

    def __init__(self, answers: Answers) -> None:
        self._answers = list(answers)

    def answer(self, prompt: Sequence[int], tokens: int) -> Answer:
        return self._answers.pop()


@pytest.mark.parametrize(
    ("answers", "rate"),
    [
        ([Answer(-1, [0.0, 1.0, 2.0, 3.0], 4)], 1.0),
        ([Answer(-1, [0.0, 1.0, 2.0], 6)], 2.0),  # two tokens in each piece
        # from 1 to 3
        ([Answer(-0.5, [0.0, 1.0, 2.0, 3.0], 4), Answer(-0.5, [1.0, 1.5, 2.0, 2.5, 4.0], 5)], (2 + 3) / 2),
    ],
)
def test_a_rate_counts_what_arrives_while_all_clients_write(store: Path, answers: Answers, rate: float) -> None:
    measurement = ClientsMeasurement(store, SETTINGS, describe_backend(1), EngineOptions(), [1, 2])
    timed = measurement._timed(TimedServer(answers), len(answers), 10)  # type: ignore[arg-type]
    assert timed.rate == pytest.approx(rate)
    assert timed.first_s == 1


@pytest.mark.parametrize("answers", [[Answer(0, [0.0], 3)], [Answer(0, [0.0, 1.0], 2), Answer(0, [2.0, 3.0], 2)]])
def test_answers_without_a_rate(store: Path, answers: Answers) -> None:
    measurement = ClientsMeasurement(store, SETTINGS, describe_backend(1), EngineOptions(), [1, 2])
    with pytest.raises(EdgemoeError, match=r"in one piece|did not overlap"):
        measurement._timed(TimedServer(answers), len(answers), 10)  # type: ignore[arg-type]


def test_each_line_has_the_time_at_which_its_last_byte_came(monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (b"data: 1\n", b"data: ", b"2\ndata: 3\n"))
        + b"0\r\n\r\n"
    )
    sent = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body

    class Bytes:
        """A connection that gives one byte at a time."""

        def __init__(self) -> None:
            self.place = 0

        def recv(self, most: int) -> bytes:
            self.place += 1
            return sent[self.place - 1 : self.place]

    connection = Bytes()
    monkeypatch.setattr(http_server.time, "perf_counter", lambda: connection.place)
    received = Received(connection)  # type: ignore[arg-type]
    reply = http.client.HTTPResponse(received)  # type: ignore[arg-type]
    reply.begin()
    lines = [(line, received.at_s) for line in reply]
    assert [line for line, _ in lines] == [b"data: 1\n", b"data: 2\n", b"data: 3\n"]
    assert [sent[int(at) - 2 : int(at)] for _, at in lines] == [b"1\n", b"2\n", b"3\n"]


def test_a_server_that_does_not_begin_is_told_with_its_last_words() -> None:
    with pytest.raises(EdgemoeError, match="the server did not begin; its last output: no such model"):
        HttpServer([sys.executable, "-c", "import sys; sys.exit('no such model')"])


def test_what_cannot_be_measured_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clients.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="expected numbers of 1 to"):
        ClientsMeasurement(store, SETTINGS, describe_backend(1), EngineOptions(), [0])
    with pytest.raises(UsageError, match=r"llama-server: expected the program of llama\.cpp"):
        ClientsMeasurement(store, SETTINGS, describe_backend(1), EngineOptions(), [1], peer_file=store)
    for asked, words in (
        (["--against", "llama.cpp"], "expected llama-server with --clients"),
        (["--gguf", str(store)], "--gguf is for another server"),
        (["--against", "llama-server"], "llama-server serves a GGUF file: expected one"),
        (["--mmap"], "--mmap"),
    ):
        assert run_command(["bench", str(store), "--clients", "1", *asked]) == 2
        assert words in capsys.readouterr().err
    assert run_command(["bench", str(store), "--watch"]) == 2
    assert "--watch is for --clients" in capsys.readouterr().err


@pytest.mark.serve
def test_a_measurement(store: Path, start: Start) -> None:
    options = EngineOptions("floor")
    report = ClientsMeasurement(store, SETTINGS, describe_backend(1), options, [1], start=start, watch=True).run()
    (one,) = report.served
    for rate, direct, ratio in zip(
        one.tokens_per_s.samples, report.direct.samples, one.against_direct.samples, strict=True
    ):
        assert ratio == pytest.approx(rate / direct)
    assert json.loads(json.dumps(report.to_json()))["served"][0]["clients"] == 1
    title, rows = clients_table(report)
    assert [name for name, _ in rows] == ["kernels", "decode", "without HTTP", "1 client", "1 client, watched"]
    assert one.watched is not None
    assert min(*one.watched.samples, *one.first_s.samples, *report.direct_first_s.samples) > 0
    assert title == "tiny-moe, answers over HTTP: 2 rounds, medians (least to most)"
