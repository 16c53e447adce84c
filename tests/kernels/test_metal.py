"""The text in Metal's language, a dialect of C++: no Mac runs these tests, so a compiler of C++ reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemoe.kernels.device.entries import program_text
from edgemoe.kernels.device.metal import MetalRuntime
from edgemoe.kernels.device.runtime import DeviceError
from edgemoe.kernels.device.table import kernels

MOST_BUFFERS = 31
"""The most buffers of a kernel in Metal."""

DIALECT = """
#include <cmath>
#include <cstring>
#define __METAL_VERSION__ 310
#define device
#define constant const
#define kernel
typedef unsigned char uchar;
template <class T, class F> T as_type(F from) {
    T to;
    static_assert(sizeof to == sizeof from, "as_type");
    std::memcpy(&to, &from, sizeof to);
    return to;
}
namespace metal {
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
namespace precise { inline float sqrt(float x) { return std::sqrt(x); } }
}
"""


def test_each_kernel_has_an_entry_with_its_arguments_in_order() -> None:
    entries = dict(re.findall(r"^kernel void em_(\w+)\((.*)\) \{$", program_text("metal"), re.MULTILINE))
    assert list(entries) == list(kernels())
    for name, spec in kernels().items():
        numbered = re.findall(r"(\w+) \[\[buffer\((\d+)\)\]\]", entries[name])
        names = [*(argument.name for argument in spec.arguments), "items"]
        assert numbered == [(name, str(number)) for number, name in enumerate(names)]
        assert len(numbered) <= MOST_BUFFERS


@pytest.mark.skipif(sys.platform == "darwin", reason="there is Metal here")
def test_without_metal_one_error_says_so() -> None:
    with pytest.raises(DeviceError, match="Metal is part of macOS, and this is another system"):
        MetalRuntime()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_compiler_reads_the_text(tmp_path: Path) -> None:
    source = tmp_path / "device.cc"
    source.write_text(DIALECT + program_text("metal"))
    command = ["c++", "-std=c++14", "-fsyntax-only", "-Wall", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas"]
    subprocess.run([*command, "-Wno-unused-function", str(source)], check=True)
