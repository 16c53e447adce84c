"""Chooses the backend that runs the model: native if possible, else jit; environment variables may override it."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass

from edgemoe.errors import KernelError, UsageError
from edgemoe.kernels.backend import Backend
from edgemoe.process import physical_cores, processor_quota, usable_processors
from edgemoe.sizes import parse_size

KERNELS_VARIABLE = "EDGEMOE_KERNELS"
ISA_VARIABLE = "EDGEMOE_ISA"

BACKENDS = ("native", "jit", "reference")
"""Best first."""
ISAS = ("avx512vbmi", "avx512", "avxvnni", "avx2", "neon", "generic")
"""Best first, on processors that have them; `neon` means 64-bit ARM with the dot product instructions."""
THREADS_MAX = 256
DEVICES = ("auto", "cpu", "cuda", "opencl", "metal", "host")
"""The devices that may be beside the native kernels; after a kind may come a colon, and a number or part of a name."""


@dataclass(frozen=True)
class KernelChoice:
    """A backend, its instruction set (`-` where that does not apply), and the reason for the choice."""

    backend: str
    isa: str
    threads: int
    reason: str


def select_backend(threads: int | None = None, device: str | None = None, vram: str | int | None = None) -> Backend:
    """Make the backend that `describe_backend` chooses, with a device beside it.

    Raises UsageError for threads outside 1 to 256, an environment variable that names an unknown backend or
    instruction set, an unknown device or a budget that it does not have, and DeviceError where it cannot be opened.
    """
    choice = describe_backend(threads)
    check_device(device, vram)
    if device not in (None, "cpu"):
        if choice.backend != "native":
            raise UsageError(f"`device={device}` needs the native kernels; {choice.reason}.", "Leave it out.")
        from edgemoe.kernels.device.opening import open_device

        return open_device(str(device), vram, choice.threads, choice.isa)
    if choice.backend == "native":
        from edgemoe.kernels.native.backend import NativeBackend

        return NativeBackend(choice.threads, choice.isa)
    if choice.backend == "jit":
        from edgemoe.kernels.jit.backend import JitBackend

        return JitBackend(choice.threads)
    from edgemoe.kernels.reference.backend import ReferenceBackend

    return ReferenceBackend()


def check_device(device: str | None, vram: str | int | None) -> None:
    """Raise UsageError for an unknown kind of device, and for a budget without a device, or that is no size."""
    kind, _, which = (device or "cpu").partition(":")
    if kind not in DEVICES or (which and kind in ("auto", "cpu", "host")):
        expected = "auto, cpu, cuda, opencl or metal, the last three with a number or a name, such as cuda:1"
        raise UsageError(f"`device={device}`: expected {expected}.", "Leave it out for cpu.")
    if vram is not None and kind == "cpu":
        raise UsageError(
            f"`vram={vram}` is a budget of a device, and none is asked for.", "Give `device`, or leave it out."
        )
    if isinstance(vram, str) and vram not in ("auto", "floor"):
        try:
            parse_size(vram)
        except UsageError:
            raise UsageError(
                f"`vram={vram}`: expected a size such as 6GiB, auto or floor.", "Leave it out for auto."
            ) from None


def describe_backend(threads: int | None = None) -> KernelChoice:
    """Return the choice that `select_backend` would make, and why. Raises UsageError as `select_backend` does."""
    count = default_threads() if threads is None else threads
    if not 1 <= count <= THREADS_MAX:
        raise UsageError(f"{count} threads: expected 1 to {THREADS_MAX}.", "Leave the option out for the default.")
    wanted = _from_environment(KERNELS_VARIABLE, BACKENDS)
    wanted_isa = _from_environment(ISA_VARIABLE, ISAS)
    if wanted in ("jit", "reference"):
        return KernelChoice(wanted, "-", count if wanted == "jit" else 1, f"{KERNELS_VARIABLE}={wanted} asks for it")
    try:
        isa, why = _choose_isa(wanted_isa)
    except KernelError as error:
        return KernelChoice("jit", "-", count, f"the native kernels cannot be used: {error.message}")
    return KernelChoice("native", isa, count, why)


def _choose_isa(wanted: str | None) -> tuple[str, str]:
    from edgemoe.kernels.native.library import available_isas

    available = available_isas()
    if wanted is None:
        return available[0], "the best that this processor offers"
    if wanted in available:
        return wanted, f"{ISA_VARIABLE}={wanted} asks for it"
    return available[0], f"{ISA_VARIABLE}={wanted} is not offered by this processor or build; this is the best that is"


def _from_environment(variable: str, valid: tuple[str, ...]) -> str | None:
    value = os.environ.get(variable, "")
    if value and value not in valid:
        raise UsageError(f"{variable}={value}: expected {', '.join(valid)}.", "Unset it for the default.")
    return value or None


@functools.cache
def default_threads() -> int:
    """Return the number of physical cores, limited by the affinity and control group quotas of this process."""
    usable = usable_processors()
    cores = physical_cores() or usable
    quota = processor_quota()
    granted = THREADS_MAX if quota is None else math.ceil(quota.amount)
    return max(1, min(cores, usable, granted, THREADS_MAX))
