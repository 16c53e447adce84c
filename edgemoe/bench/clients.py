"""Answers that clients have written over HTTP, compared with those that are written without a server in between.

Every round runs, in turn, one answer without HTTP and each number of clients of `edgemoe serve`, and the same clients
of llama.cpp's llama-server if asked. Prompts are random, each client has its own, answers are greedy and do not end,
and nothing is drafted. A rate counts the tokens that arrive while all clients of a round have begun and none has ended,
by the clients' clock. The first piece of an answer is timed from its request on. If asked, the same clients are
measured once more in each round, while a reader takes what the page's live picture is made of.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemoe.bench.counts import rounds
from edgemoe.bench.http_server import HOST, HttpServer
from edgemoe.bench.measure import Progress, Settings
from edgemoe.bench.plain_report import PlainReport
from edgemoe.bench.protocol import Start, Worker, start_process
from edgemoe.bench.spread import Spread
from edgemoe.engine.options import MOST_SEQUENCES, EngineOptions
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.select import KernelChoice
from edgemoe.session.default_model import model_name

LLAMA_SERVER = "llama-server"
COMMAND = [sys.executable, "-m", "edgemoe.bench.writer_worker"]


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
class ClientsReport(PlainReport):
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
