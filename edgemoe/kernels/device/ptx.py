"""The device's text as NVIDIA's intermediate code (PTX), which a driver compiles for the card that it finds.

It was compiled for the oldest cards that are supported, by `make ptx`, so nobody needs a compiler of CUDA.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from edgemoe.kernels.device.entries import program_text
from edgemoe.kernels.device.runtime import DeviceError

OLDEST = (7, 5)
"""The lowest compute capability: that of cards since 2018."""
VERSION = "6.3"
"""The version of PTX that such cards came with. The compiler writes its own, though it uses nothing of later ones, and
drivers refuse PTX that is newer than they are."""
COMPILER = "nvcc"
OPTIONS = ("-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
"""Every operation rounds by itself, to the nearest number, subnormal ones included."""

_FIRST = "// Compiled by make ptx from the text with SHA-256 "


def shipped_ptx() -> str:
    """Return the PTX that came with edgemoe. Raises DeviceError if it was compiled from another text."""
    text = _path().read_text("utf-8")
    if not text.startswith(_FIRST + digest()):
        raise DeviceError("The device's text has changed since it was compiled for CUDA.", "Run make ptx.")
    return text


def digest() -> str:
    """Return the digest of the text that is compiled."""
    return hashlib.sha256(program_text("cuda").encode()).hexdigest()


def compiled_ptx() -> str:
    """Return what the compiler makes of the text. Raises DeviceError where there is none, or it fails."""
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise DeviceError(f"PTX is made by NVIDIA's compiler, and there is no {COMPILER}.", "Install the CUDA toolkit.")
    with tempfile.TemporaryDirectory(prefix="edgemoe-ptx-") as folder:
        source, made = Path(folder) / "device.cu", Path(folder) / "device.ptx"
        source.write_text(program_text("cuda"), "utf-8")
        target = "-arch=compute_{}{}".format(*OLDEST)
        command = [compiler, "-ptx", target, *OPTIONS, "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DeviceError(f"{compiler} refuses the device's text: {done.stderr.strip()[:2000]}")
        body = re.sub(r"(?m)^\.version .*$", f".version {VERSION}", made.read_text("utf-8"), count=1)
    return f"{_FIRST}{digest()}\n{body}"


def _path() -> Path:
    return Path(str(files("edgemoe.kernels.device").joinpath("kernels.ptx")))


if __name__ == "__main__":
    _path().write_text(compiled_ptx(), "utf-8")
