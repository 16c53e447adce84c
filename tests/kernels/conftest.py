"""The backends that the kernel tests run over: those of one name are held to the same bits, as one backend."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.library import available_isas
from tests.kernels.device_chain import TOKENS, Chain
from tests.support.agreeing import AgreeingBackends

_ISAS = available_isas()
BACKENDS = ("jit", "jit 3 threads", *(f"native {isa}" for isa in _ISAS), f"native {_ISAS[0]} 3 threads")
"""All that this machine can run."""


def make_backend(name: str) -> Backend:
    """The backend of that name."""
    threads = 3 if name.endswith("3 threads") else 1
    if name == "reference":
        from edgemoe.kernels.reference.backend import ReferenceBackend

        return ReferenceBackend()
    if name.startswith("jit"):
        from edgemoe.kernels.jit import JitBackend

        return JitBackend(threads)
    if name.startswith("device"):
        from edgemoe.kernels.device.backend import DeviceBackend
        from edgemoe.kernels.device.host import HostRuntime

        return DeviceBackend(HostRuntime(items_in_any_order), 1)
    from edgemoe.kernels.native.backend import NativeBackend

    return NativeBackend(threads, name.split()[1])


def items_in_any_order(items: int) -> Iterable[tuple[int, int]]:
    """Cut items into some ranges in a random order: single ones, where there are few."""
    bounds = np.linspace(0, items, min(items, 64) + 1).astype(int)
    ranges = list(itertools.pairwise(bounds.tolist()))
    random.shuffle(ranges)
    return ranges


@pytest.fixture(scope="session", autouse=True)
def _threads_share_small_work() -> Iterator[None]:
    """Lets the jit backend's threads share products of any size, as they do large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemoe.kernels.jit.backend._WORTH_A_THREAD", 1)
        yield


def _agreeing(name: str) -> AgreeingBackends:
    """All backends of that name, whatever their instruction set and threads."""
    names = [each for each in ("reference", *BACKENDS) if each.split()[0] == name]
    if name == "device":  # held to the bits of the native kernels
        names = [f"native {_ISAS[0]}", "device host"]
    return AgreeingBackends({each: make_backend(each) for each in names})


def _close(backend: AgreeingBackends) -> None:
    """Close a backend, of which no device may have failed: the processor would have run all in its place."""
    assert all(getattr(member, "failure", None) is None for member in backend.members.values())
    backend.close()


@pytest.fixture(scope="session", params=("jit", "native", pytest.param("device", marks=pytest.mark.slow)))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that is held to the reference."""
    made = _agreeing(request.param)
    yield made
    _close(made)


@pytest.fixture(scope="session", params=("reference", "jit", "native", pytest.param("device", marks=pytest.mark.slow)))
def any_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend, the reference too."""
    made = _agreeing(request.param)
    yield made
    _close(made)


@pytest.fixture(scope="session", params=("reference", *BACKENDS))
def lone_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend with each instruction set and number of threads, by itself: for what is not the same in all."""
    made = make_backend(request.param)
    yield made
    made.close()


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


@pytest.fixture(scope="module")
def left(chain: Chain) -> bytes:
    """The memory that native runs of 2 and 5 tokens leave."""
    from edgemoe.kernels.native.backend import NativeBackend

    native = NativeBackend(1)
    found = chain.run_on(native, (2, TOKENS))
    native.close()
    return found
