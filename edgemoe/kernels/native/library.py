"""Finds and loads the native library, once, and checks that it matches this version of the package."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path

from edgemoe.errors import KernelError
from edgemoe.kernels import native
from edgemoe.kernels.native import structures as st
from edgemoe.kernels.paging import RECORD, CacheStatistics

FILE_NAME = "libedgemoe.so"


class Status(IntEnum):
    """The members of `em_status` that the binding treats differently."""

    OK = 0
    NO_THREADS = 3
    FORKED = 4
    BUSY = 5
    TIMEOUT = 11
    CANCELLED = 12
    READ_FAILED = 13
    SHORT_READ = 14
    FULL = 15
    BAD_TICKET = 16
    BAD_CHECKSUM = 17


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "em_abi_version": (c_int32, []),
    "em_status_text": (c_char_p, [c_int32]),
    "em_sizeof_operation": (c_uint64, []),
    "em_sizeof_kind": (c_uint64, [c_int32]),
    "em_sizeof_program": (c_uint64, []),
    "em_sizeof_program_times": (c_uint64, []),
    "em_sizeof_read_counters": (c_uint64, []),
    "em_sizeof_pager_setup": (c_uint64, []),
    "em_sizeof_pager_counters": (c_uint64, []),
    "em_sizeof_record": (c_uint64, []),
    "em_sizeof_read_failure": (c_uint64, []),
    "em_isa_count": (c_int32, []),
    "em_isa_name": (c_char_p, [c_int32]),
    "em_kernels_for": (c_void_p, [c_char_p]),
    "em_crc32c": (c_uint32, [c_void_p, c_uint32, c_void_p, c_uint64]),
    "em_crc32c_combine": (c_uint32, [c_uint32, c_uint32, c_uint64]),
    "em_pool_create": (c_int32, [c_int32, c_int32, POINTER(c_void_p)]),
    "em_pool_destroy": (None, [c_void_p]),
    "em_read_memory": (c_int32, [c_void_p, c_void_p, c_uint64, POINTER(c_uint64), POINTER(c_uint64)]),
    "em_program_scratch_bytes": (c_uint64, [c_void_p, c_int32, c_int32]),
    "em_program_run": (c_int32, [c_void_p, c_int32, c_int32]),
    "em_reader_create": (c_int32, [c_int32, c_int32, c_int64, POINTER(c_void_p)]),
    "em_reader_destroy": (None, [c_void_p]),
    "em_reader_submit": (c_int32, [c_void_p, POINTER(st.ReadStruct), c_int32, c_int32, POINTER(c_int64)]),
    "em_reader_wait": (c_int32, [c_void_p, c_int64, c_int64, POINTER(c_int64)]),
    "em_reader_wait_any": (c_int32, [c_void_p, POINTER(c_int64), c_int32, c_int64]),
    "em_reader_done": (c_int32, [c_void_p, c_int64]),
    "em_reader_promote": (c_int32, [c_void_p, c_int64]),
    "em_reader_cancel": (c_int32, [c_void_p, c_int64]),
    "em_reader_release": (c_int32, [c_void_p, c_int64]),
    "em_reader_counters": (c_int32, [c_void_p, POINTER(st.ReadCountersStruct)]),
    "em_reader_source": (None, [c_void_p, POINTER(st.SourceStruct)]),
    "em_pager_create": (c_int32, [POINTER(st.PagerSetupStruct), POINTER(c_void_p)]),
    "em_pager_destroy": (None, [c_void_p]),
    "em_pager_request": (c_int32, [c_void_p, c_int32, c_void_p, c_int32, c_int32]),
    "em_pager_wave": (c_int32, [c_void_p, POINTER(POINTER(c_int32)), POINTER(c_int32)]),
    "em_pager_end": (None, [c_void_p]),
    "em_pager_blame": (c_int32, [c_void_p]),
    "em_pager_prefetch": (c_int32, [c_void_p, c_int32, c_void_p, c_int32]),
    "em_pager_warm": (c_int32, [c_void_p, c_void_p, c_int32]),
    "em_pager_loaded": (c_int32, [c_void_p, c_int32, c_int32, c_void_p]),
}

_REINSTALL = "Install edgemoe again so that its library is built anew, or set EDGEMOE_KERNELS=jit to go without it."


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library and declare every signature.

    Raises KernelError if it is missing, cannot be loaded, or belongs to another version of the package.
    """
    # An editable install keeps the library in another folder of the package than the modules.
    folders = [Path(folder) for folder in native.__path__]
    path = next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file()), None)
    if path is None:
        raise KernelError(f"The native kernel library {FILE_NAME} is not in the installed package.", _REINSTALL)
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise KernelError(f"The native kernel library could not be loaded: {error}.", _REINSTALL) from error
    _check_version(library)
    return library


def _check_version(library: ctypes.CDLL) -> None:
    found = library.em_abi_version()
    if found != st.ABI_VERSION:
        raise KernelError(
            f"The native kernel library has interface version {found}; this package needs {st.ABI_VERSION}.",
            _REINSTALL,
        )
    sizes: list[tuple[str, type[ctypes.Structure], int]] = [
        ("em_operation", st.OperationStruct, library.em_sizeof_operation()),
        ("em_program", st.ProgramStruct, library.em_sizeof_program()),
        ("em_program_times", st.ProgramTimesStruct, library.em_sizeof_program_times()),
        ("em_read", st.ReadStruct, library.em_sizeof_read()),
        ("em_read_counters", st.ReadCountersStruct, library.em_sizeof_read_counters()),
        ("em_pager_setup", st.PagerSetupStruct, library.em_sizeof_pager_setup()),
        ("em_read_failure", st.ReadFailureStruct, library.em_sizeof_read_failure()),
    ]
    for kind, (name, member) in enumerate(st.UNION_MEMBERS):
        sizes.append((f"em_{name}", member, library.em_sizeof_kind(kind)))
    found_sizes = [(name, ctypes.sizeof(struct), size) for name, struct, size in sizes]
    found_sizes.append(("em_record", RECORD.itemsize, library.em_sizeof_record()))
    found_sizes.append(("em_pager_counters", CacheStatistics().counts.nbytes, library.em_sizeof_pager_counters()))
    for name, expected, size in found_sizes:
        if expected != size:
            raise KernelError(
                f"The native kernel library's {name} has {size} bytes; expected {expected}.",
                _REINSTALL,
            )


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that the library was built for and this machine can run, best first."""
    library = load_library()
    return tuple(library.em_isa_name(i).decode() for i in range(library.em_isa_count()))


def status_text(status: int) -> str:
    """Return the description of a status of the library."""
    text: bytes = load_library().em_status_text(status)
    return text.decode()
