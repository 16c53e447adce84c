"""Compares weight formats on the bundled model: perplexity and KL divergence, by rounding, importance and feedback.

`python quantised.py GGUF TEXT experts|ffns`: prints a JSON line for each choice of format and method, then a table of
docs/performance.md. GGUF is `edgemoe export` of the bundled store; TEXT calibrates with its first tokens, and those
that follow are held out. It needs llama-cpp-python, for ggml's types.

All weights are float16 but those that are compared, which are decoded to float16 after rounding; so activations stay
floats, and no noise of theirs hides a small divergence. Every method goes through the model layer by layer, on what
earlier layers have become: ggml gets the importance of columns from there too. The widths of this model are no
multiples of 256, so ggml gets 2 or 4 rows as one, which costs it no bits.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.conversion.calibration.layers import windows_of
from edgemoe.conversion.calibration.matrices import Matrices, Slices, weighing_of
from edgemoe.conversion.calibration.measuring import Reference
from edgemoe.conversion.calibration.passing import CalibrationPass
from edgemoe.conversion.calibration.settings import Calibration
from edgemoe.conversion.calibration.weights import SourceWeights
from edgemoe.conversion.encoding import encode
from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.journal import Journal
from edgemoe.conversion.plan import Piece, Plan, plan_conversion
from edgemoe.conversion.side_files import side_files_of
from edgemoe.conversion.source import Source, TensorInfo
from edgemoe.conversion.transfer import Transfer
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.file_rows import Rows, decode_rows
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS
from edgemoe.kernels.row_types import ROW_TYPES, row_bytes
from edgemoe.kernels.select import select_backend
from edgemoe.model.build import build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.quant.quantise import quantise
from edgemoe.session.calibration_text import tokenised
from edgemoe.store.reader import Store
from edgemoe.store.writer import StoreWriter

Floats = np.ndarray
Code = Callable[[Floats, Floats], Floats]
"""Gets a matrix and its inputs' second moments; returns the matrix as it is after rounding."""

FLOATS = FormatChoice("f16", "f16", "f16")
CALIBRATION_TOKENS, HELD_OUT_TOKENS = 4096, 2048
GGML_TYPES = {"Q2_K": 2.625, "Q3_K": 3.4375, "IQ2_XS": 2.3125, "IQ3_XXS": 3.0625}
"""Bits for a weight."""
BLOCK = 256
SCOPES = {
    "experts": re.compile(r"layers\.\d+\.experts\.\d+\.(gate|up|down)"),
    "ffns": re.compile(r"layers\.\d+\.(experts\.\d+|shared)\.(gate|up|down)"),
}


class Ggml:
    """ggml's quantiser."""

    def __init__(self) -> None:
        import llama_cpp

        [path] = sorted(Path(llama_cpp.__file__).parent.rglob("libggml-base.*"))[:1]
        self._quantise = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self._quantise.restype = ctypes.c_size_t
        self._quantise.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def code(self, kind: str) -> Code:
        def coded(values: Floats, moments: Floats) -> Floats:
            rows, columns = values.shape
            joined = next(n for n in itertools.count(1) if n * columns % BLOCK == 0)
            own = np.ascontiguousarray(values.reshape(rows // joined, joined * columns), np.float32)
            importance = np.tile(np.ascontiguousarray(np.diagonal(moments), np.float32), joined)
            data = np.zeros((len(own), row_bytes(kind, own.shape[1])), np.uint8)
            number, places = ROW_TYPES[kind].number, (own.ctypes.data, data.ctypes.data)
            written = self._quantise(number, *places, 0, *own.shape, importance.ctypes.data)
            assert written == data.nbytes
            found = decode_rows(data, kind)
            return (found if isinstance(found, np.ndarray) else dequantise(found)).reshape(rows, columns)

        return coded


def own_code(name: str, method: str) -> Code:
    """The code of one of edgemoe's formats by rounding, importance or feedback."""
    fmt = FORMATS[name]

    def coded(values: Floats, moments: Floats) -> Floats:
        weighing = None if method == "rounding" else weighing_of(moments, fmt, method == "feedback", name)
        return dequantise(quantise(values, fmt, weighing))

    return coded


class OffGrid:
    """A source whose experts are on no grid: each weight is moved by up to half a step of the q4 that it comes in."""

    def __init__(self, source: GgufSource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensors(self) -> dict[str, TensorInfo]:
        infos = self._source.tensors()
        return {name: replace(info, dtype="F32") if "_exps" in name else info for name, info in infos.items()}

    def read_rows(self, tensor: str, index: int | None, start: int, stop: int) -> Rows:
        rows = self._source.read_rows(tensor, index, start, stop)
        if "_exps" not in tensor or not isinstance(rows, Blocks):
            return rows
        values = dequantise(rows)
        steps = np.repeat(np.abs(rows.scales).astype(np.float32), GROUP_COLUMNS, axis=1)[:, : values.shape[1]]
        random = np.random.default_rng([zlib.crc32(tensor.encode()), index or 0])
        of_matrix = random.uniform(-0.5, 0.5, self._source.tensors()[tensor].shape[-2:]).astype(np.float32)
        return values + steps * of_matrix[start:stop]


class Decoded(Matrices):
    """The matrices of a scope, which are rounded by a code and kept as floats."""

    def __init__(
        self, source: Source, plan: Plan, graph: Any, calibration: Calibration, scope: str, code: Code
    ) -> None:
        self._scope, self._code = SCOPES[scope], code
        super().__init__(source, plan, graph, calibration)
        self.error = self.weight = 0.0

    def takes(self, piece: Piece) -> bool:
        return self._scope.fullmatch(piece.name) is not None

    def quantised(
        self, names: Sequence[str], moments: Floats, first: Sequence[tuple[Slices, Floats]] = ()
    ) -> list[tuple[Slices, Floats]]:
        found: list[tuple[Slices, Floats]] = []
        for name in names:
            piece = self.pieces.get(name)
            if piece is None:
                found.append(([], self.plain(self.all[name])))
                continue
            exact = self.plain(piece)
            values = self._code(exact, moments)
            self.error += float(np.square(values - exact).sum())
            self.weight += float(np.square(exact).sum())
            spans = piece.place.row_slices()
            rows = [(start, stop, encode(values[start:stop], FORMATS["f16"], name)) for start, stop in spans]
            found.append((rows, values))
        return found


class Bench:
    """The model, the text, the reference that all choices are compared with, and a store for their floats."""

    def __init__(self, gguf: Path, text: Path, folder: Path, off_grid: bool) -> None:
        self.source: Any = OffGrid(GgufSource(gguf)) if off_grid else GgufSource(gguf)
        self.plan = plan_conversion(self.source, FLOATS, {})
        self.folder = folder
        store = Store(Path(), self.plan.manifest)
        self.graph = build_graph(store_spec(store), build_options(store))
        files = side_files_of(self.source, self.graph.spec.vocab_size)
        self.calibration = Calibration(
            text.read_text(), text.name, tokenised, CALIBRATION_TOKENS, held_out=HELD_OUT_TOKENS
        )
        self.windows = windows_of(self.calibration, files, self.graph)
        with closing(select_backend()) as backend:
            self.reference = Reference(SourceWeights(self.source, FLOATS), self.windows.held_out(), backend)
        with StoreWriter(folder / "store", self.plan.manifest) as writer, Journal.lock(folder / "base") as journal:
            journal.restart({})
            Transfer(self.source, self.plan, writer, journal, None).run()

    def measure(self, scope: str, code: Code) -> dict[str, Any]:
        """Round the matrices of a scope in place of those that the store has; returns what the model has lost."""
        matrices = Decoded(self.source, self.plan, self.graph, self.calibration, scope, code)
        calibrated = CalibrationPass(matrices, self.graph, self.windows)
        with (
            StoreWriter(self.folder / "store", self.plan.manifest) as writer,
            Journal.lock(Path(tempfile.mkdtemp(dir=self.folder))) as journal,
        ):
            journal.restart({})
            store = Store(writer.folder, self.plan.manifest)
            calibrated.run(store, Transfer(self.source, self.plan, writer, journal, None), ())
            loss = calibrated.loss(store, self.reference)
        found = loss.divergence
        return {
            "error": (matrices.error / matrices.weight) ** 0.5,
            "kl": (found.nats.mean, found.nats.low, found.nats.high),
            "same_top": found.same_top.mean,
            "perplexity": loss.perplexity.mean,
            "reference": loss.exact_perplexity.mean,
            "positions": loss.positions,
        }


def choices() -> list[tuple[str, str, float]]:
    """Formats with methods, and bits for a weight."""
    own = [
        (name, method, FORMATS[name].bits_per_weight)
        for method in ("feedback", "importance", "rounding")
        for name in ("n3", "n2", "n4")
    ]
    own.append(("q4", "rounding", FORMATS["q4"].bits_per_weight))
    return own + [(name, "importance", bits) for name, bits in GGML_TYPES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("gguf", "text"):
        parser.add_argument(name, type=Path)
    parser.add_argument("scope", choices=SCOPES)
    parser.add_argument("--off-grid", action="store_true", help="experts that q4 does not hold exactly, as others are")
    parser.add_argument("--only", nargs="+", help="choices in their order, such as n3:feedback")
    options = parser.parse_args()
    rows = []
    found = {f"{name}:{method}": (name, method, bits) for name, method, bits in choices()}
    ggml = Ggml()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.gguf, options.text, Path(folder), options.off_grid)
        for choice in options.only or found:
            name, method, bits = found[choice]
            code = ggml.code(name) if name in GGML_TYPES else own_code(name, method)
            row = {"scope": options.scope, "format": name, "method": method, "bits": bits}
            rows.append(row | bench.measure(options.scope, code))
            print(json.dumps(rows[-1]), flush=True)
    print("\n| matrices | bits | format | method | error | KL, nats (95 %) | perplexity | same top |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in sorted(rows, key=lambda row: (row["scope"], row["bits"])):
        mean, *bounds = row["kl"]
        within = "" if None in bounds else " ({:.4f} to {:.4f})".format(*bounds)
        print(
            f"| {row['scope']} | {row['bits']:.2f} | {row['format']} | {row['method']} | {row['error']:.3f}"
            f" | {mean:.4f}{within} | {row['perplexity']:.2f} | {row['same_top']:.1%} |"
        )


if __name__ == "__main__":
    main()
