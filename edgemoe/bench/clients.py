"""Answers that clients have written over HTTP, compared with those that are written without a server in between.

Every round runs, in turn, one answer without HTTP and each number of clients of `edgemoe serve`, and the same clients
of llama.cpp's llama-server if asked. Prompts are random, each client has its own, answers are greedy and do not end,
and nothing is drafted. A rate counts the tokens that arrive while all clients of a round have begun and none has ended,
by the clients' clock. The first piece of an answer is timed from its request on. If asked, the same clients are
measured once more in each round, while a reader takes what the page's live picture is made of.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemoe.bench.counts import rounds
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.protocol import LAST_LINES, Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import MOST_SEQUENCES, EngineOptions
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.session.default_model import model_name

LLAMA_SERVER = "llama-server"
COMMAND = [sys.executable, "-m", "edgemoe.bench.writer_worker"]
OPENING_SECONDS = 600.0
ANSWER_SECONDS = 3600.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class ServedReport:
    """So many clients of a server."""

    clients: int
    tokens_per_s: Spread
    """The rate of all answers together."""
    against_direct: Spread
    """`tokens_per_s` over that of one answer without HTTP, round by round."""
    first_s: Spread
    """From a request to the first piece of its answer: the median of the clients."""
    watched: Spread | None = None
    """`tokens_per_s` while somebody watches the engine; None where this was not measured."""


@dataclass(frozen=True)
class ClientsReport:
    """Results of a measurement of servers."""

    model: str
    kernels: Mapping[str, Any]
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    direct: Spread
    """Tokens a second of one answer without HTTP."""
    direct_first_s: Spread
    """From its prompt to its first piece."""
    served: Sequence[ServedReport]
    peer: str | None
    peer_served: Sequence[ServedReport]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Answer(NamedTuple):
    """An answer as a client sees it."""

    asked_s: float
    """When it was asked for."""
    arrived_s: Sequence[float]
    """When its pieces arrived."""
    tokens: int

    @property
    def first_s(self) -> float:
        """How long its first piece was waited for."""
        return self.arrived_s[0] - self.asked_s


class _Received(io.RawIOBase):
    """What came through a socket, to be read again, with the time at which each part of it came.

    A client's own work takes processors from the server beside it, so it only takes bytes while it is timed, and looks
    at them afterwards.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Receives until the server closes the connection."""
        self._parts: list[tuple[float, bytes]] = []
        while part := connection.recv(io.DEFAULT_BUFFER_SIZE):
            self._parts.append((time.perf_counter(), part))
        self._parts.reverse()
        self.at_s = 0.0
        """When the part came that was read last."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._parts:
            return 0
        self.at_s, part = self._parts.pop()
        taken = min(len(buffer), len(part))
        buffer[:taken] = part[:taken]
        if taken < len(part):
            self._parts.append((self.at_s, part[taken:]))
        return taken

    def makefile(self, *_: Any) -> io.BufferedReader:
        """The file that `http.client` reads in the place of a socket's."""
        return io.BufferedReader(self)


class HttpServer:
    """A server's process, from when it can be asked until it is closed. A context manager."""

    def __init__(self, command: Sequence[str], port: int | None = None) -> None:
        """Waits until the model is open. With `port` None the process says its port as `edgemoe serve` does.

        Raises EdgemoeError where it ends before that.
        """
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._command = command[0]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said
        )
        try:
            self.port = self._wait(lambda: self._said_port() if port is None else port)
            self._wait(self._healthy)
        except BaseException:
            self.close()
            raise

    def _wait(self, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + OPENING_SECONDS
        while not (value := found()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._text().strip().splitlines()[-LAST_LINES:]
                raise EdgemoeError(
                    f"{self._command}: the server did not begin; its last output: {' / '.join(lines)}.",
                    "It may need more memory than there is.",
                )
            time.sleep(0.05)
        return value

    def _text(self) -> str:
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace")

    def _said_port(self) -> int | None:
        found = re.search(r"serving at http://[^ ]*:(\d+) ", self._text())
        return int(found[1]) if found else None

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=OPENING_SECONDS)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        return False

    def answer(self, prompt: Sequence[int], tokens: int) -> Answer:
        """Ask for an answer of so many tokens. Raises EdgemoeError."""
        body = {
            "prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        headers = {"Content-Type": "application/json", "Connection": "close"}
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS)) as connection:
            asked_s = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            received = _Received(connection.sock)
        reply = http.client.HTTPResponse(received)  # type: ignore[arg-type]
        reply.begin()
        if reply.status != http.HTTPStatus.OK:
            raise EdgemoeError(f"A server answered with status {reply.status}: {reply.read()[:300]!r}.")
        arrived_s, written = [], 0
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            if any(choice.get("text") for choice in event.get("choices", ())):
                arrived_s.append(received.at_s)
            written = (event.get("usage") or {}).get("completion_tokens", written)
        return Answer(asked_s, arrived_s, written)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Read what the page's live picture is made of, as fast as the server sends it. Raises EdgemoeError."""
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS)) as connection:
            connection.request("GET", "/edgemoe/live")
            reply = connection.getresponse()
            if reply.status != http.HTTPStatus.OK:
                raise EdgemoeError(f"The server answered with status {reply.status}: {reply.read()[:300]!r}.")
            reader = threading.Thread(target=_discard, args=(connection.sock,), daemon=True)
            reader.start()
            yield
            connection.sock.shutdown(socket.SHUT_RDWR)
            reader.join()

    def close(self) -> None:
        """End the process, and wait for its end."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()


def _discard(connection: socket.socket) -> None:
    """Take what comes through a socket until that is closed."""
    while connection.recv(1 << 16):
        pass


class _Timed(NamedTuple):
    """The answers of some clients at once."""

    rate: float
    first_s: float


class ClientsMeasurement:
    """Measures one model. Raises UsageError for numbers that are out of range, and for a peer that is not there."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        kernels: KernelChoice,
        options: EngineOptions,
        counts: Sequence[int],
        progress: Progress = lambda doing, done, total: None,
        peer_file: Path | None = None,
        start: Start = start_process,
        watch: bool = False,
    ) -> None:
        """`counts` are the numbers of clients; `peer_file` is a GGUF file that llama-server serves beside.

        `watch`: measure each number of clients again while somebody watches the engine.
        """
        if not counts or any(not 1 <= count <= MOST_SEQUENCES for count in counts):
            found = ", ".join(map(str, counts)) or "none"
            raise UsageError(
                f"`clients`: expected numbers of 1 to {MOST_SEQUENCES}, found {found}.", "Give numbers such as 1,4."
            )
        if peer_file is not None and shutil.which(LLAMA_SERVER) is None:
            raise UsageError(
                f"{LLAMA_SERVER}: expected the program of llama.cpp among those that PATH names, found none.",
                "Build it, and put its folder into PATH.",
            )
        self._folder = folder
        self._settings = settings
        self._context = settings.room_tokens or 2 * (settings.prompt_tokens + settings.decode_tokens)
        self._threads = kernels.threads
        self._options = replace(
            options, threads=kernels.threads, context_length=self._context, speculate="off", warm_start=False
        )
        self._counts = counts
        self._progress = progress
        self._peer_file = peer_file
        self._start = start
        self._watch = watch
        self._random = np.random.default_rng(settings.seed)

    def run(self) -> ClientsReport:
        """Raises what the engine raises, and EdgemoeError where a server or worker dies."""
        with ExitStack() as stack:
            writer = stack.enter_context(Worker("edgemoe", COMMAND, self._start))
            about = writer.ask("open", model=str(self._folder), options=self._options.to_json())
            server = stack.enter_context(HttpServer(self._command()))
            peer = stack.enter_context(self._peer()) if self._peer_file is not None else None
            vocabulary = about["vocabulary"]
            direct: list[Mapping[str, float]] = []
            served, watched, beside = self._empty(), self._empty(), self._empty()
            for number in rounds(self._settings.repeats, self._progress):
                (prompt,) = self._prompts(1, vocabulary)
                written = writer.ask("write", prompt=prompt, tokens=self._settings.decode_tokens)
                ours = {count: self._pair(server, count, vocabulary) for count in self._counts}
                theirs = {count: self._timed(peer, count, vocabulary) for count in self._counts if peer}
                if number:
                    direct.append(written)
                    for count in self._counts:
                        for found, timed in zip((served, watched), ours[count], strict=False):
                            found[count].append(timed)
                        if peer is not None:
                            beside[count].append(theirs[count])
        rate_of_one = Spread.of(one["tokens_per_s"] for one in direct)

        def reports(found: Mapping[int, list[_Timed]], again: Mapping[int, list[_Timed]]) -> list[ServedReport]:
            return [
                ServedReport(
                    count,
                    (rates := Spread.of(one.rate for one in timed)),
                    rates.over(rate_of_one),
                    Spread.of(one.first_s for one in timed),
                    Spread.of(one.rate for one in again[count]) if again.get(count) else None,
                )
                for count, timed in found.items()
                if timed
            ]

        settings = self._settings
        return ClientsReport(
            model_name(self._folder),
            about["kernels"],
            settings.prompt_tokens,
            settings.decode_tokens,
            settings.repeats,
            rate_of_one,
            Spread.of(one["first_s"] for one in direct),
            reports(served, watched),
            LLAMA_SERVER if self._peer_file is not None else None,
            reports(beside, {}),
        )

    def _empty(self) -> dict[int, list[_Timed]]:
        return {count: [] for count in self._counts}

    def _prompts(self, count: int, vocabulary: int) -> list[list[int]]:
        found: list[list[int]] = self._random.integers(0, vocabulary, (count, self._settings.prompt_tokens)).tolist()
        return found

    def _pair(self, server: HttpServer, clients: int, vocabulary: int) -> list[_Timed]:
        """The answers of some clients and, if asked, of as many while somebody watches."""
        found = [self._timed(server, clients, vocabulary)]
        if self._watch:
            with server.watched():
                found.append(self._timed(server, clients, vocabulary))
        return found

    def _timed(self, server: HttpServer, clients: int, vocabulary: int) -> _Timed:
        prompts, tokens = self._prompts(clients, vocabulary), self._settings.decode_tokens
        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(lambda prompt: server.answer(prompt, tokens), prompts))
        if any(len(one.arrived_s) < 2 for one in answers):
            raise EdgemoeError("An answer came in one piece, which has no rate.", "Give a larger `decode_tokens`.")
        begin, end = max(one.arrived_s[0] for one in answers), min(one.arrived_s[-1] for one in answers)
        if end <= begin:
            raise EdgemoeError("The clients' answers did not overlap.", "Give a larger `decode_tokens`.")
        pieces = sum(
            sum(begin < at <= end for at in one.arrived_s) * one.tokens / len(one.arrived_s) for one in answers
        )
        return _Timed(pieces / (end - begin), statistics.median(one.first_s for one in answers))

    def _command(self) -> list[str]:
        ram = [] if self._options.ram is None else ["--ram", str(self._options.ram)]
        return [
            sys.executable, "-m", "edgemoe", "serve", str(self._folder), "--port", "0", "--speculate", "off",
            "--no-warm-start", "--threads", str(self._threads), "--context", str(self._context),
            "--sequences", str(max(self._counts)), *ram,
        ]  # fmt: skip

    def _peer(self) -> HttpServer:
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        most = max(self._counts)
        command = [
            LLAMA_SERVER, "--model", str(self._peer_file), "--host", HOST, "--port", str(port), "--parallel", str(most),
            "--ctx-size", str(most * self._context), "--threads", str(self._threads),
        ]  # fmt: skip
        return HttpServer(command, port)
