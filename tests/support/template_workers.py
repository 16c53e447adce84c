"""One process that renders chat templates for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from edgemoe.session.template_process import TemplateProcess


@contextmanager
def one_template_worker() -> Iterator[None]:
    """Let all templates be rendered by one process, since starting it takes longer than what most tests do.

    `tests/session/test_template.py` says that each template has one of its own, which ends with it.
    """
    worker = TemplateProcess()
    shared = SimpleNamespace(ask=worker.ask, close=lambda: None)  # the template that is closed is not the last
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemoe.session.template.TemplateProcess", lambda: shared)
        yield
    worker.close()
