"""The text that a device's compiler gets, in C, OpenCL C, CUDA or Metal's language.

`source/` has what kernels compute, as functions of one work-item. An entry, which is printed here, calls such a
function for each item of a launch: it unpacks the arguments as its dialect has them, and adds the constants that make a
kernel of one format out of the function for all.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Literal

from edgemoe.kernels.device.table import FILES, KernelSpec, kernels

Dialect = Literal["host", "opencl", "cuda", "metal"]


def program_text(dialect: Dialect) -> str:
    """Return the whole text of a device program."""
    source, entry = files("edgemoe.kernels.device").joinpath("source"), _ENTRIES[dialect]
    parts = [source.joinpath(name).read_text("utf-8") for name in FILES]
    return "\n".join((*parts, *(entry(spec) for spec in kernels().values())))


def _constants(spec: KernelSpec) -> list[str]:
    return [f"    const format numbers = {{{', '.join(map(str, spec.format))}}};"] if spec.format else []


def _call(spec: KernelSpec) -> str:
    names = [argument.name for argument in spec.arguments]
    return f"{spec.function}({', '.join((*names, *spec.constants, 'item'))});"


def _host_entry(spec: KernelSpec) -> str:
    """Print an entry that runs a range of items, with its arguments in an array."""
    unpacked = []
    for number, argument in enumerate(spec.arguments):
        member = {"i32": "whole", "float": "number"}.get(argument.type, "buffer")
        unpacked.append(f"    {argument.type.replace(' *', '')} {'' if argument.is_number else '*'}{argument.name}"
                        f" = arguments[{number}].{member};")  # fmt: skip
    head = f"void em_{spec.name}(const argument *arguments, i32 begin, i32 end) {{"
    loop = f"    for (i32 item = begin; item < end; item++) {_call(spec)}"
    return "\n".join((head, *unpacked, *_constants(spec), loop, "}", ""))


def _opencl_entry(spec: KernelSpec) -> str:
    """Print an entry whose buffers come with the place in bytes at which they begin."""
    parameters, unpacked = [], []
    for argument in spec.arguments:
        if argument.is_number:
            parameters.append(f"{argument.type} {argument.name}")
            continue
        element = argument.type.replace(" *", "")
        const = "const " if element.startswith("const ") else ""
        parameters += [f"__global {const}u8 *{argument.name}_buffer", f"u64 {argument.name}_at"]
        unpacked.append(f"    __global {element} *{argument.name} ="
                        f" (__global {element} *)({argument.name}_buffer + {argument.name}_at);")  # fmt: skip
    head = f"__kernel void em_{spec.name}({', '.join((*parameters, 'i32 items'))}) {{"
    item = "    const i32 item = (i32)get_global_id(0);"
    return "\n".join((head, *unpacked, *_constants(spec), item, f"    if (item < items) {_call(spec)}", "}", ""))


def _cuda_entry(spec: KernelSpec) -> str:
    """Print an entry whose buffers come as addresses."""
    parameters = [
        f"{argument.type}{'' if argument.type.endswith('*') else ' '}{argument.name}" for argument in spec.arguments
    ]
    head = f'extern "C" __global__ void em_{spec.name}({", ".join((*parameters, "i32 items"))}) {{'
    item = "    const i32 item = (i32)(blockIdx.x * blockDim.x + threadIdx.x);"
    return "\n".join((head, *_constants(spec), item, f"    if (item < items) {_call(spec)}", "}", ""))


def _metal_entry(spec: KernelSpec) -> str:
    """Print an entry whose arguments are bound by their numbers, the number of items after all others."""
    parameters = []
    for number, argument in enumerate(spec.arguments):
        space = f"constant {argument.type} &" if argument.is_number else f"device {argument.type}"
        parameters.append(f"{space}{argument.name} [[buffer({number})]]")
    parameters.append(f"constant i32 &items [[buffer({len(spec.arguments)})]]")
    head = f"kernel void em_{spec.name}({', '.join((*parameters, 'u32 at [[thread_position_in_grid]]'))}) {{"
    item = "    const i32 item = (i32)at;"
    return "\n".join((head, *_constants(spec), item, f"    if (item < items) {_call(spec)}", "}", ""))


_ENTRIES: dict[Dialect, Callable[[KernelSpec], str]] = {
    "host": _host_entry,
    "opencl": _opencl_entry,
    "cuda": _cuda_entry,
    "metal": _metal_entry,
}
