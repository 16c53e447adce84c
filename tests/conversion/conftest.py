"""Fixtures of the tests of conversion, which do not wait for the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_waits_for_the_disk() -> Iterator[None]:
    """Each store is synchronised ten times; what a process that is killed has written is there without that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
