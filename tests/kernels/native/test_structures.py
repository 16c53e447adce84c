"""The structs of the C interface: written from the definitions, and laid out as the compiler lays them out."""

from __future__ import annotations

import ctypes
import runpy
from pathlib import Path

import pytest

import edgemoe
from edgemoe.errors import KernelError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.native import library, structures
from edgemoe.kernels.paging import RECORD, CacheStatistics

NATIVE = Path(edgemoe.__file__).parents[1] / "native"


def test_the_committed_headers_are_those_of_the_definitions() -> None:
    script = runpy.run_path(str(NATIVE / "write_header.py"))
    expected: str = script["header_text"]()
    assert (NATIVE / "include" / "edgemoe_operations.h").read_text() == expected, "run `make header` and commit it"
    grids: str = script["grid_header_text"]()
    assert (NATIVE / "kernels" / "matmul" / "grid_tables.h").read_text() == grids, "run `make header` and commit it"


def test_every_operation_has_its_struct_and_its_place_in_the_enumeration() -> None:
    names = [name for name, *_ in structures.OperationUnion._fields_]
    assert names[:2] == ["embed", "rms_norm"]
    codes = [kind.code for kind in structures.NATIVE_OPERATIONS]
    assert len(set(codes)) == len(codes), "each operation has a code of its own"
    assert len(names) == len(structures.NATIVE_OPERATIONS)
    assert tuple(structures.OPERATION_STRUCTS) == structures.NATIVE_OPERATIONS


def test_two_fields_in_each_others_place_are_found() -> None:
    route = structures.OPERATION_STRUCTS[ex.Route]
    fields = dict(route._fields_)
    order = ["top_k" if name == "num_experts" else "num_experts" if name == "top_k" else name for name in fields]
    swapped = type("RouteStruct", (ctypes.Structure,), {"_fields_": [(name, fields[name]) for name in order]})
    assert ctypes.sizeof(swapped) == ctypes.sizeof(route)
    expected, found = structures.describe_layout([route]), structures.describe_layout([swapped])
    library.check_layout(expected, expected)
    told = r"expected em_route\.num_experts (\d+) 4, found em_route\.top_k \1 4"
    with pytest.raises(KernelError, match=told) as error:
        library.check_layout(expected, found)
    assert "EDGEMOE_KERNELS=jit" in error.value.hint


def test_a_struct_that_the_library_lacks_is_found() -> None:
    described = structures.describe_layout()
    with pytest.raises(KernelError, match=r"expected em_extra 0 8, found nothing"):
        library.check_layout(described + "em_extra 0 8\n", described)


def test_arrays_that_the_pager_shares_have_the_layout_of_its_structs() -> None:
    assert RECORD.itemsize == ctypes.sizeof(structures.RecordStruct)
    for name, (_, offset, *_) in (RECORD.fields or {}).items():
        assert getattr(structures.RecordStruct, name).offset == offset
    assert CacheStatistics().counts.nbytes == ctypes.sizeof(structures.PagerCountersStruct)
