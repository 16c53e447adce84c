"""The backends that the kernel tests run over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgemoe.errors import KernelError
from edgemoe.kernels.operations import Backend

BACKENDS = ("jit", "jit 3 threads", "native generic", "native avx2", "native avx2 3 threads")


def make_backend(name: str) -> Backend:
    """The backend of that name; skips what this machine or this build does not have."""
    threads = 3 if name.endswith("3 threads") else 1
    if name == "reference":
        from edgemoe.kernels.reference import ReferenceBackend

        return ReferenceBackend()
    if name.startswith("jit"):
        from edgemoe.kernels.jit import JitBackend

        return JitBackend(threads)
    from edgemoe.kernels.native.backend import NativeBackend

    try:
        return NativeBackend(threads, name.split()[1])
    except KernelError as error:
        pytest.skip(error.message)


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
