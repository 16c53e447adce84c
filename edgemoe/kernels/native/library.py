"""Finds and loads the native library, once, and checks that it matches this version of the package."""

from __future__ import annotations

import ctypes
import functools
import itertools
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path

from edgemoe.errors import KernelError
from edgemoe.kernels import native
from edgemoe.kernels.native import structures as st

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
    NOT_FINITE = 18
    CHANGED_FILE = 19
    BAD_RECORD = 20


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "em_abi_version": (c_int32, []),
    "em_status_text": (c_char_p, [c_int32]),
    "em_describe_layout": (c_uint64, [c_char_p, c_uint64]),
    "em_isa_count": (c_int32, []),
    "em_isa_name": (c_char_p, [c_int32]),
    "em_kernels_for": (c_void_p, [c_char_p]),
    "em_crc32c": (c_uint32, [c_void_p, c_uint32, c_void_p, c_uint64]),
    "em_crc32c_combine": (c_uint32, [c_uint32, c_uint32, c_uint64]),
    "em_trellis_scratch_bytes": (c_uint64, [POINTER(st.TrellisStruct), c_int32]),
    "em_trellis_search": (
        c_int32,
        [c_void_p, POINTER(st.TrellisStruct), *[c_void_p] * 4, c_int32, c_int32, c_void_p, c_void_p],
    ),
    "em_trellis_feedback_scratch_bytes": (c_uint64, [POINTER(st.TrellisStruct), POINTER(st.TrellisFedStruct)]),
    "em_trellis_feed_back": (
        c_int32,
        [c_void_p, POINTER(st.TrellisStruct), POINTER(st.TrellisFedStruct), *[c_void_p] * 4],
    ),
    "em_sub1_panel_bytes": (c_uint64, [c_int32, c_int32]),
    "em_sub1_pack": (c_int32, [c_void_p, c_int32, c_int32, c_void_p, c_int32, c_void_p, c_void_p]),
    "em_sub1_check": (c_int32, [c_void_p, c_uint64, c_int32, c_int32, POINTER(c_uint64)]),
    "em_sub1_unpack": (c_int32, [c_void_p, c_uint64, c_int32, c_int32, c_void_p, c_void_p]),
    "em_pool_create": (c_int32, [c_int32, c_int32, POINTER(c_void_p)]),
    "em_pool_destroy": (None, [c_void_p]),
    "em_read_memory": (c_int32, [c_void_p, c_void_p, c_uint64, POINTER(c_uint64), POINTER(c_uint64)]),
    "em_program_scratch_bytes": (c_uint64, [c_void_p, c_int32, c_int32]),
    "em_program_run": (c_int32, [c_void_p, c_int32]),
    "em_program_run_some": (c_int32, [c_void_p, c_int32, c_int32, c_int32]),
    "em_reader_create": (c_int32, [c_int32, c_int32, c_int64, c_int64, POINTER(c_void_p)]),
    "em_reader_destroy": (None, [c_void_p]),
    "em_reader_submit": (c_int32, [c_void_p, POINTER(st.ReadStruct), c_int32, c_int32, POINTER(c_int64)]),
    "em_reader_wait": (c_int32, [c_void_p, c_int64, c_int64, POINTER(c_int64)]),
    "em_reader_wait_any": (c_int32, [c_void_p, POINTER(c_int64), c_int32, c_int64]),
    "em_reader_done": (c_int32, [c_void_p, c_int64]),
    "em_reader_promote": (c_int32, [c_void_p, c_int64]),
    "em_reader_cancel": (c_int32, [c_void_p, c_int64]),
    "em_reader_release": (c_int32, [c_void_p, c_int64]),
    "em_reader_source": (None, [c_void_p, POINTER(st.SourceStruct)]),
    "em_row_pager_bytes": (c_uint64, [c_int32]),
    "em_row_pager_create": (c_int32, [POINTER(st.RowPagerSetupStruct), POINTER(c_void_p)]),
    "em_row_pager_destroy": (None, [c_void_p]),
    "em_pager_bytes": (c_uint64, [c_int32, c_int32, c_int32]),
    "em_pager_create": (c_int32, [POINTER(st.PagerSetupStruct), POINTER(c_void_p)]),
    "em_pager_destroy": (None, [c_void_p]),
    "em_pager_request": (c_int32, [c_void_p, c_int32, c_void_p, c_int32, c_int32]),
    "em_pager_wave": (c_int32, [c_void_p, POINTER(POINTER(c_int32)), POINTER(c_int32)]),
    "em_pager_end": (None, [c_void_p]),
    "em_pager_blame": (c_int32, [c_void_p]),
    "em_pager_prefetch": (c_int32, [c_void_p, c_int32, c_void_p, c_int32]),
    "em_pager_warm": (c_int32, [c_void_p, c_void_p, c_int32]),
    "em_pager_give_up": (c_int32, [c_void_p, c_int32, c_int32]),
    "em_pager_set_phase": (c_int32, [c_void_p, c_int32]),
    "em_pager_note": (c_int32, [c_void_p, c_void_p]),
    "em_pager_loaded": (c_int32, [c_void_p, c_int32, c_int32, c_void_p]),
}

_REINSTALL = "Install edgemoe again so that its library is built anew, or set EDGEMOE_KERNELS=jit to go without it."


def library_path() -> Path | None:
    """The library's file; None where it is not installed."""
    # An editable install keeps the library in another folder of the package than the modules.
    folders = [Path(folder) for folder in native.__path__]
    return next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file()), None)


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the library and declare every signature.

    Raises KernelError if it is missing, cannot be loaded, or belongs to another version of the package.
    """
    path = library_path()
    if path is None:
        raise KernelError(f"The native kernel library {FILE_NAME} is not in the installed package.", _REINSTALL)
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise KernelError(f"The native kernel library could not be loaded: {error}.", _REINSTALL) from error
    _check_interface(library)
    return library


def _check_interface(library: ctypes.CDLL) -> None:
    found = library.em_abi_version()
    if found != st.ABI_VERSION:
        raise KernelError(
            f"The native kernel library has interface version {found}; this package needs {st.ABI_VERSION}.",
            _REINSTALL,
        )
    text = ctypes.create_string_buffer(library.em_describe_layout(None, 0) + 1)
    library.em_describe_layout(text, len(text))
    check_layout(st.describe_layout(), text.value.decode())


def check_layout(expected: str, found: str) -> None:
    """Raise KernelError if two descriptions of the structs differ, naming the first type or field that does."""
    if expected == found:
        return
    lines = itertools.zip_longest(expected.splitlines(), found.splitlines(), fillvalue="nothing")
    wanted, has = next((one, other) for one, other in lines if one != other)
    raise KernelError(
        f"The native kernel library lays out its structs otherwise than this package: expected {wanted}, found {has}"
        " (a type or field, its offset and its bytes).",
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
