"""A server on 127.0.0.1 that speaks as much of the hub's protocol as a download needs, with faults on demand."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import HfApi

COMMIT = "5c1e7f00" * 5


@dataclass
class Fault:
    """A fault in the body of a file, for the first `times` requests of the file."""

    after_bytes: int | None = None
    """Close the connection after so many bytes of the body."""
    content: bytes | None = None
    """Send this in place of the file."""
    status: int | None = None
    code: str = ""
    """The hub's name for the reason, with a status."""
    seconds: float = 0.0
    """Wait so long before the first byte."""
    times: int = 1 << 30


@dataclass
class Repository:
    """A model on the server. `error` is what every request gets: a status and the hub's name for the reason."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    error: tuple[int, str] | None = None
    answer: bytes | None = None
    """The body that the server sends in place of the model's description."""
    with_sha256: bool = True
    with_ranges: bool = True
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, file and Range of each request of a file, in order."""
    tokens: set[str | None] = field(default_factory=set)
    moved_to: str = ""
    """A server that has the contents of the files, to which requests for them are sent on."""

    def gets(self, name: str) -> list[str | None]:
        """The Range of each download of a file; requests of its header alone are left out."""
        ranges = [span for method, file, span in self.requests if (method, file) == ("GET", name)]
        return [span for span in ranges if span is None or not span.startswith("bytes=0-")]


class HubServer(ThreadingHTTPServer):
    """Models by id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Repository] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    server = HubServer()
    # Asked often whether to stop, so that a test need not wait half a second for it.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """The hub of this process is that server, and its cache that folder; waits between attempts are skipped."""
    monkeypatch.setattr("edgemoe.conversion.hub.repository.HfApi", functools.partial(HfApi, endpoint=url))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        model_id = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        model = self.server.models.get(model_id)
        if model is None:
            return self._refuse(404, "RepoNotFound")
        model.tokens.add(self.headers.get("Authorization"))
        if model.error is not None:
            return self._refuse(*model.error)
        revision = (parts[5:6] if parts[0] == "api" else parts[3:4]) or ["main"]
        if revision[0] not in (model.commit, *model.revisions):
            return self._refuse(404, "RevisionNotFound")
        if parts[0] == "api":
            description = json.dumps(_description(model_id, model)).encode()
            return self._send(200, description if model.answer is None else model.answer, {})
        return self._file(model, "/".join(parts[4:]))

    def _file(self, model: Repository, name: str) -> None:
        span = self.headers.get("Range") if model.with_ranges else None
        if model.moved_to and name in model.files:
            return self._send(302, b"", {"Location": model.moved_to + self.path, "X-Repo-Commit": model.commit})
        model.requests.append((self.command, name, span))
        content = model.files.get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": model.commit}
        headers |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        fault = None if span and span.startswith("bytes=0-") else model.faults.get(name)
        if fault and fault.times > 0 and self.command == "GET":
            fault.times -= 1
            threading.Event().wait(fault.seconds)  # not time.sleep, which a test may have patched
            if fault.status is not None:
                return self._refuse(fault.status, fault.code)
            content = content if fault.content is None else fault.content
        else:
            fault = None
        status, start, stop = 200, 0, len(content)
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
            if start >= len(content):
                return self._refuse(416, "")
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status = 206
        self._send(status, content[start:stop], headers, cut=fault.after_bytes if fault else None)
        return None

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": "no"} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _description(model_id: str, model: Repository) -> dict[str, Any]:
    siblings = []
    for name, content in model.files.items():
        sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        if name.endswith((".safetensors", ".gguf")) and model.with_sha256:
            digest = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        siblings.append(sibling)
    return {"_id": "1", "id": model_id, "sha": model.commit, "siblings": siblings, "private": False, "tags": []}
