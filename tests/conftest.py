"""Fixtures of all tests: no setting of the caller or the user reaches the commands that tests start."""

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator

# Tests start a hundred commands: Python keeps what it compiles, whatever the environment says. It keeps Hypothesis too,
# which pytest compiles anew with its own assertions, for seconds, where it may not.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read by numpy: threads that wait for each other take minutes

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests.support.examples import ALL, examples  # noqa: E402

pytest_plugins = ["tests.support.hub_fixtures"]

os.environ["EDGEMOE_CACHE_DIR"] = ""  # nobody notes hot experts in the user's cache
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, which they would inherit


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests are made and none is dropped: Python need not search them for garbage, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)  # what tests leave behind is small, and Hypothesis looks at each search too
        gc.enable()


if not ALL:
    # on top of Hypothesis's own profile for where CI is set, or else without a deadline as that is: how long an example
    # takes is for a busy machine to say
    hypothesis.settings.register_profile("quick", hypothesis.settings(), max_examples=examples(100), deadline=None)
    hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="module")
def _no_waits_for_the_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each store is synchronised ten times; what a process that is killed has written is there without that.

    A module whose tests ask which pages are in the page cache says `SYNCHRONISES = True`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "SYNCHRONISES", False):
            patch.setattr(os, "fsync", lambda descriptor: None)
        yield
