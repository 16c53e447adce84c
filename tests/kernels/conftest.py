"""The backends that the kernel tests run over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.library import available_isas

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
    from edgemoe.kernels.native.backend import NativeBackend

    return NativeBackend(threads, name.split()[1])


@pytest.fixture(scope="session", autouse=True)
def _threads_share_small_work() -> Iterator[None]:
    """Lets the jit backend's threads share products of any size, as they do large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgemoe.kernels.jit.backend._WORTH_A_THREAD", 1)
        yield


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that is held to the reference."""
    made = make_backend(request.param)
    yield made
    made.close()


@pytest.fixture(scope="session", params=("reference", *BACKENDS))
def any_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend, the reference too."""
    made = make_backend(request.param)
    yield made
    made.close()
