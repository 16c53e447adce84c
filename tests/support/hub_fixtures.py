"""Fixtures of tests that download: a hub on this machine with a repository of GGUF files, and an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the hub's library is imported for the tests that have a hub
    from tests.support.hub_server import HubServer, Repository


@pytest.fixture(scope="session")
def hub_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    from tests.support.hub_models import gguf_files

    return gguf_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    from tests.support.hub_server import hub_server, use_hub

    monkeypatch.chdir(tmp_path)
    with hub_server() as server:
        use_hub(monkeypatch, server.url, hub_cache)
        yield server


@pytest.fixture
def gguf_model(hub: HubServer, hub_files: dict[str, bytes]) -> Repository:
    from tests.support.hub_models import GGUF_MODEL
    from tests.support.hub_server import Repository

    hub.models[GGUF_MODEL] = Repository(dict(hub_files))
    return hub.models[GGUF_MODEL]
