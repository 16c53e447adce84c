"""Exports a store as a GGUF file for llama.cpp: bit-identical weights in llama.cpp's order and under its names.

The package `gguf` writes the header; the weights follow a slice at a time, so memory use does not depend on the size of
any tensor. The file is written as `FILE.partial` and renamed when all of it is on the disk.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import model_spec
from edgemoe.conversion.formats import expert_of
from edgemoe.conversion.gguf.linear import LinearOrders, Turns, linear_orders
from edgemoe.conversion.gguf.metadata import (
    ARCHITECTURES,
    FAMILY,
    INTERLEAVED,
    NO_GGUF,
    attention_and_ffn,
    check_expressible,
    frequency_divisors,
    remarks,
    write_metadata,
)
from edgemoe.conversion.gguf.names import pairs_order
from edgemoe.conversion.gguf.package import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
)
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.gguf.vocabulary import write_no_tokenizer, write_vocabulary
from edgemoe.conversion.gguf.windowed import WINDOWED
from edgemoe.conversion.places import Place, tensor_places
from edgemoe.conversion.source import take_columns, take_rows
from edgemoe.errors import SourceError, StoreError, UsageError
from edgemoe.kernels.file_rows import TYPE_NAMES, Rows, encode_rows
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS, PANEL_ROWS, Blocks, panel_count, unpack
from edgemoe.model.description import store_spec
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files
from edgemoe.store.writer import sync_folder

ALIGNMENT_BYTES = 32
"""Alignment of the tensors, counted from the end of the header."""

_NAMES = {
    "embedding": MODEL_TENSOR.TOKEN_EMBD,
    "final_norm": MODEL_TENSOR.OUTPUT_NORM,
    "head": MODEL_TENSOR.OUTPUT,
    "attention_norm": MODEL_TENSOR.ATTN_NORM,
    "query": MODEL_TENSOR.ATTN_Q,
    "key": MODEL_TENSOR.ATTN_K,
    "value": MODEL_TENSOR.ATTN_V,
    "output": MODEL_TENSOR.ATTN_OUT,
    "output_gate": MODEL_TENSOR.ATTN_GATE,
    "post_attention_norm": MODEL_TENSOR.ATTN_POST_NORM,
    "post_ffn_norm": MODEL_TENSOR.FFN_POST_NORM,
    "query_norm": MODEL_TENSOR.ATTN_Q_NORM,
    "key_norm": MODEL_TENSOR.ATTN_K_NORM,
    "conv_norm": MODEL_TENSOR.ATTN_NORM,
    "conv_in": MODEL_TENSOR.SHORTCONV_INPROJ,
    "conv_taps": MODEL_TENSOR.SHORTCONV_CONV,
    "conv_out": MODEL_TENSOR.SHORTCONV_OUTPROJ,
    "delta_norm": MODEL_TENSOR.ATTN_NORM,
    "delta_in": MODEL_TENSOR.ATTN_QKV,
    "delta_gate": MODEL_TENSOR.ATTN_GATE,
    "delta_strength": MODEL_TENSOR.SSM_BETA,
    "delta_decay": MODEL_TENSOR.SSM_ALPHA,
    "delta_taps": MODEL_TENSOR.SSM_CONV1D,
    "delta_head_norm": MODEL_TENSOR.SSM_NORM,
    "delta_out": MODEL_TENSOR.SSM_OUT,
    "ffn_norm": MODEL_TENSOR.FFN_NORM,
    "sinks": MODEL_TENSOR.ATTN_SINKS,
    "router": MODEL_TENSOR.FFN_GATE_INP,
    "router_choice": MODEL_TENSOR.FFN_EXP_PROBS_B,
    "experts.gate": MODEL_TENSOR.FFN_GATE_EXP,
    "experts.up": MODEL_TENSOR.FFN_UP_EXP,
    "experts.down": MODEL_TENSOR.FFN_DOWN_EXP,
    "shared.gate": MODEL_TENSOR.FFN_GATE_SHEXP,
    "shared.up": MODEL_TENSOR.FFN_UP_SHEXP,
    "shared.down": MODEL_TENSOR.FFN_DOWN_SHEXP,
    "shared_gate": MODEL_TENSOR.FFN_GATE_INP_SHEXP,
    "ffn.gate": MODEL_TENSOR.FFN_GATE,
    "ffn.up": MODEL_TENSOR.FFN_UP,
    "ffn.down": MODEL_TENSOR.FFN_DOWN,
}
"""GGUF names by the names within our model or layer; a bias is named like its matrix."""

_POST_NORM = {"ffn_norm": MODEL_TENSOR.ATTN_POST_NORM}
_GATED_QUERY = {"output_gate": MODEL_TENSOR.ATTN_Q}
"""Query and gate of each head in turn."""
_OTHER_NAMES = dict.fromkeys(("glm4moe", "gpt-oss"), _POST_NORM) | {
    "bailingmoe2": dict.fromkeys(("query", "key", "value"), MODEL_TENSOR.ATTN_QKV),
    "gemma4": {
        "dense.ffn.gate": MODEL_TENSOR.FFN_GATE,
        "dense.ffn.up": MODEL_TENSOR.FFN_UP,
        "dense.ffn.down": MODEL_TENSOR.FFN_DOWN,
        "dense.ffn_norm": MODEL_TENSOR.FFN_NORM,
        "dense.post_ffn_norm": MODEL_TENSOR.FFN_POST_NORM_1,
        "dense.ffn_sum_norm": MODEL_TENSOR.FFN_POST_NORM,
        "dense.ffn_factor": MODEL_TENSOR.LAYER_OUT_SCALE,
        "experts_norm": MODEL_TENSOR.FFN_PRE_NORM_2,
        "post_ffn_norm": MODEL_TENSOR.FFN_POST_NORM_2,
        "router_norm": MODEL_TENSOR.FFN_GATE_INP,
        "router_expert_scales": MODEL_TENSOR.FFN_DOWN_EXP,
    },
    "lfm2moe": {"final_norm": MODEL_TENSOR.TOKEN_EMBD_NORM},
    "qwen35moe": _POST_NORM | _GATED_QUERY,
    "qwen3next": _POST_NORM
    | _GATED_QUERY
    | dict.fromkeys(("delta_strength", "delta_decay"), MODEL_TENSOR.SSM_BETA_ALPHA),
}
"""Where an architecture has names of its own."""

_WHOLE_NAMES = {"delta_decay_bias": "blk.{bid}.ssm_dt.bias", "delta_rate": "blk.{bid}.ssm_a"}
"""Names in the file that do not follow from a name above."""

_WITHOUT_SUFFIX = {("hy_v3", "router_choice_bias")}
"""Vectors whose names in a file of an architecture do not end in .weight or .bias."""

_SCALES = frozenset({"router_norm", "router_expert_scales"})
"""Vectors that are named after the matrix whose input or output they scale."""

_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8": LlamaFileType.MOSTLY_Q8_0,
    "q4": LlamaFileType.MOSTLY_Q4_0,
    "q4m": LlamaFileType.MOSTLY_Q4_1,
    "m4": LlamaFileType.MOSTLY_MXFP4_MOE,
}


@dataclass
class _Tensor:
    """A tensor of the file: a tensor of the store, or several, whose rows follow one another, or the same matrix of
    all experts of a layer.

    With `head_dim` the rows of each head are reordered from two halves to interleaved pairs. With `block` rows, tensors
    of the store take turns: a block of the first, one of the second, the next of the first. With `turns`, heads of
    values are put in turn.
    """

    type: GGMLQuantizationType
    dimensions: int
    """Number of dimensions of the tensor at one of its places; a `stacked` one has one more, for the experts."""
    stacked: bool
    head_dim: int | None
    rows: int = 0
    """Rows of the matrix that a vector of the store becomes in the file (taps of convolutions); 0: it stays one."""
    block: int = 0
    turns: Turns | None = None
    """From the order of the file to that of the store."""
    places: list[Place] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        place = self.places[0]
        if self.block:
            return (sum(one.rows for one in self.places), place.columns)
        if self.rows:
            return (self.rows, place.rows // self.rows)
        rows = place.rows if self.stacked else sum(part.rows for part in self.places)
        own = (rows * place.columns,) if self.dimensions == 1 else (rows, place.columns)
        return (len(self.places), *own) if self.stacked else own

    @property
    def bytes(self) -> int:
        """Size in the file in bytes, without the padding before the next tensor."""
        block_weights, block_bytes = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block_weights * block_bytes


def check_gguf_destination(destination: str | os.PathLike[str], force: bool) -> Path:
    """The path of the file to write. Raises UsageError if something that exists there would be lost."""
    path = Path(os.path.expanduser(os.fspath(destination)))  # noqa: PTH111 (leaves an unknown ~user unchanged)
    if path.suffix.lower() != ".gguf" or "\0" in str(path):
        raise UsageError(f"{str(path)!r}: expected a name that ends in .gguf.", "Name the file, such as ./model.gguf.")
    if path.is_dir() or (path.exists() and not force):
        kind = "a folder" if path.is_dir() else "a file"
        way_out = "Give another name." if path.is_dir() else "Give another name, or replace it with `force`."
        raise UsageError(f"{path}: {kind} of that name exists.", way_out)
    return path


def export_gguf(
    store: Store,
    destination: str | os.PathLike[str],
    *,
    name: str,
    tokenizer: bool = True,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Write a store as a GGUF file, with its tokenizer if it has one; returns the file's path.

    `name` is the model's name in the file; without `tokenizer` the exported model takes and gives only ids; `force`
    replaces an existing file; `progress` is called with the bytes done and the total; `notice` receives remarks for the
    user before the weights are written. Raises UsageError, or StoreError if llama.cpp does not support the model or its
    tokenizer, the store cannot be read, or the disk is full.
    """
    path = check_gguf_destination(destination, force)
    spec = store_spec(store)
    check_expressible(spec)
    if tokenizer:
        check_side_files(store)
    tensors = _tensors(store, spec)
    divisors = frequency_divisors(spec)
    partial = path.with_name(path.name + ".partial")
    try:
        _check_space(path, sum(tensor.bytes for tensor in tensors.values()))
        try:
            with closing(GGUFWriter(partial, ARCHITECTURES[spec.family])) as writer:
                _write_metadata(writer, store, spec, name, tokenizer)
                _write_header(writer, tensors, divisors)
            _write_divisors(partial, divisors)
            troubles = list(_troubles_on_the_way_back(partial, spec, tensors))
            if troubles and ARCHITECTURES[spec.family] in WINDOWED:
                raise StoreError(
                    f"this model cannot be a GGUF: llama.cpp's {ARCHITECTURES[spec.family]} has fixed patterns of"
                    " layers, positions or weights, which this model does not follow.",
                    NO_GGUF,
                )
            if notice is not None:
                for text in (*remarks(spec), *troubles):
                    notice(text)
            _write_weights(partial, store, tensors, progress)
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path}: the disk is full.", "Free some space, then run it again.") from problem
        raise StoreError(
            f"{path}: cannot be written ({problem.strerror or problem}).", "Check the folder, then run it again."
        ) from problem
    return path


def _tensors(store: Store, spec: ModelSpec) -> dict[str, _Tensor]:
    """The tensors of the file by name, in order. Raises StoreError for a tensor that the format cannot hold."""
    architecture = ARCHITECTURES[spec.family]
    family = FAMILY[architecture]
    interleaved, names = architecture in INTERLEAVED, _NAMES | _OTHER_NAMES.get(architecture, {})
    head_dim = attention_and_ffn(spec)[0].head_dim if interleaved else None
    shapes = spec.tensors()
    tensors: dict[str, _Tensor] = {}
    for name, place in tensor_places(store.manifest, shapes).items():
        layer, _, own = name.removeprefix("layers.").partition(".") if name.startswith("layers.") else ("", "", name)
        expert = expert_of(name)
        stem = (f"experts.{expert[2]}" if expert else own).removesuffix("_bias")
        suffix = "bias" if own.endswith("_bias") else "scale" if own in _SCALES else "weight"
        if place.format and place.format.quantised and place.columns % GROUP_COLUMNS:
            raise StoreError(
                f"{name}: expected a multiple of {GROUP_COLUMNS} columns, as blocks of a GGUF need,"
                f" found {place.columns}.",
                "Convert the checkpoint again with this part in f16 or f32.",
            )
        whole = f"{TENSOR_NAMES[names[stem]]}.{suffix}" if own not in _WHOLE_NAMES else _WHOLE_NAMES[own]
        if (architecture, own) in _WITHOUT_SUFFIX:
            whole = TENSOR_NAMES[names[stem]]
        target = whole.format(bid=layer)
        kind = GGMLQuantizationType[TYPE_NAMES[place.format.name] if place.format else "F32"]
        dimensions = 1 if stem == "shared_gate" else len(shapes[name])
        rotated = head_dim if stem in ("query", "key") else None
        orders = LinearOrders({}, {}, {})
        if layer and family.linear_layers:
            orders = linear_orders(spec.layers[int(layer)].blocks[0].body, family.heads_in_turn)
        turns = orders.turns.get(own)
        blocks_of_columns = turns is not None and turns.columns and place.format and place.format.quantised
        if turns is not None and blocks_of_columns and turns.width % GROUP_COLUMNS:
            raise StoreError(
                f"{name}: expected heads of a multiple of {GROUP_COLUMNS} values, whose blocks can be put in another"
                f" order; found {turns.width}.",
                "Convert the checkpoint again with this part in f16 or f32.",
            )
        rows = orders.channels.get(own, spec.hidden_size if stem == "conv_taps" else 0)
        made = _Tensor(kind, dimensions, expert is not None, rotated, rows, orders.blocks.get(own, 0), turns)
        tensor = tensors.setdefault(target, made)
        if tensor.type != kind:
            raise StoreError(
                f"{name}: expected the format of the layer's other experts, as a GGUF holds them in one tensor;"
                f" found {tensor.type.name} and {kind.name}.",
                "Convert the checkpoint again with one format for all experts.",
            )
        tensor.places.append(place)
    return tensors


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise StoreError(
            f"{path}: it takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on that disk.",
            "Free some space, or give a name on another disk.",
        )


def _write_metadata(writer: GGUFWriter, store: Store, spec: ModelSpec, name: str, tokenizer: bool) -> None:
    layouts = store.manifest.layouts
    mostly = layouts[0].matrices.gate_up_format.name if layouts else store.dense_format
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[mostly])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_metadata(writer, spec)
    if tokenizer and any(file.name == "tokenizer.json" for file in store.manifest.side_files):
        write_vocabulary(writer, store.path, spec.vocab_size)
    else:
        write_no_tokenizer(writer)


def _write_header(writer: GGUFWriter, tensors: dict[str, _Tensor], divisors: npt.NDArray[np.float32] | None) -> None:
    float32 = np.dtype(np.float32)
    if divisors is not None:
        name = TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS] + ".weight"
        writer.add_tensor_info(name, divisors.shape, float32, divisors.nbytes, GGMLQuantizationType.F32)
    for name, tensor in tensors.items():
        # The dtype only makes the writer count the shape in weights, not in bytes.
        writer.add_tensor_info(name, tensor.shape, float32, tensor.bytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _write_divisors(partial: Path, divisors: npt.NDArray[np.float32] | None) -> None:
    """Append the first tensor, the frequency divisors, which are computed rather than copied from the store."""
    if divisors is not None:
        with partial.open("ab") as file:
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            file.write(divisors.tobytes())


def _troubles_on_the_way_back(partial: Path, spec: ModelSpec, tensors: dict[str, _Tensor]) -> Iterator[str]:
    """Yield a sentence for each reason why the file cannot be converted back; called before the weights are written."""
    written = partial.stat().st_size
    room = sum(tensor.bytes + ALIGNMENT_BYTES for tensor in tensors.values())
    try:
        os.truncate(partial, written + room)  # a hole: the reader refuses tensors that lie beyond the end of the file
        back = model_spec(GgufSource(partial).config)
        if replace(back, family=spec.family) != spec:  # several families may share an architecture
            yield "edgemoe would convert this file to another model: the format cannot hold all of its settings."
    except SourceError as problem:
        reason = problem.message.removeprefix(f"{partial}: ")
        yield f"edgemoe cannot convert this file back ({reason.rstrip('.')}). Keep the store."
    finally:
        os.truncate(partial, written)


def _write_weights(
    partial: Path,
    store: Store,
    tensors: dict[str, _Tensor],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Append the tensors in the order of the header, each at its alignment, and make the file durable."""
    total = sum(tensor.bytes for tensor in tensors.values())
    done = 0
    descriptors: dict[str, int] = {}
    try:
        with partial.open("ab") as file:
            for tensor in tensors.values():
                file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
                for place in tensor.places:
                    if place.file not in descriptors:
                        with _reading(store, place):
                            descriptors[place.file] = os.open(store.path / place.file, os.O_RDONLY)
                for rows in _file_rows(descriptors, store, tensor):
                    data = encode_rows(
                        rows if isinstance(rows, Blocks) else Blocks(FORMATS["f32"], rows.reshape(1, -1))
                    )
                    file.write(data.data)
                    done += data.nbytes
                    if progress is not None:
                        progress(done, total)
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _file_rows(descriptors: dict[str, int], store: Store, tensor: _Tensor) -> Iterator[Rows]:
    """Yield the rows of a tensor in the order of the file, a slice at a time."""
    if tensor.block:
        for start in range(0, tensor.places[0].rows, tensor.block):
            for place in tensor.places:
                yield _read_rows(descriptors[place.file], store, place, start, start + tensor.block)
        return
    multiple, turns = math.lcm(PANEL_ROWS, tensor.head_dim or 1), tensor.turns
    for place in tensor.places:
        descriptor = descriptors[place.file]
        for start, stop in place.row_slices(multiple):
            if turns is not None and not turns.columns:
                order = turns.places(start, stop)
                for run in np.split(order, np.flatnonzero(np.diff(order) != 1) + 1):
                    yield _read_rows(descriptor, store, place, int(run[0]), int(run[-1]) + 1)
                continue
            rows = _read_rows(descriptor, store, place, start, stop)
            if tensor.head_dim:
                rows = take_rows(rows, pairs_order(start, stop, tensor.head_dim) - start)
            yield rows if turns is None else take_columns(rows, turns.places(0, place.columns))


def _as_blocks(rows: Rows) -> Blocks:
    return rows if isinstance(rows, Blocks) else Blocks(FORMATS["f32"], rows.reshape(1, -1))


def _read_rows(descriptor: int, store: Store, place: Place, start: int, stop: int) -> Rows:
    """Read rows of a tensor of the store, and whole panels for it."""
    if place.format is None:
        return _read(descriptor, store, place, place.offset + 4 * start, 4 * (stop - start)).view(np.float32)
    first = start // PANEL_ROWS
    panels = panel_count(stop) - first
    span = (panels - 1) * place.panel_stride + place.panel_bytes
    data = np.zeros(panels * place.panel_stride, np.uint8)
    data[:span] = _read(descriptor, store, place, place.offset + first * place.panel_stride, span)
    own = np.ascontiguousarray(data.reshape(panels, -1)[:, : place.panel_bytes]).reshape(-1)
    rows = unpack(own, place.format, stop - first * PANEL_ROWS, place.columns)
    return take_rows(rows, slice(start - first * PANEL_ROWS, None)) if start % PANEL_ROWS else rows


def _read(descriptor: int, store: Store, place: Place, offset: int, size: int) -> npt.NDArray[np.uint8]:
    with _reading(store, place):
        data = np.frombuffer(os.pread(descriptor, size, offset), np.uint8)
    if data.size != size:
        raise StoreError(
            f"{store.path / place.file}: expected {size} bytes at {offset}, found {data.size}.",
            "The file has become shorter: copy the store again.",
        )
    return data


@contextmanager
def _reading(store: Store, place: Place) -> Iterator[None]:
    """Reports read errors as errors of the store's disk, so that they are not taken for errors of the output file."""
    try:
        yield
    except OSError as problem:
        raise StoreError(
            f"{store.path / place.file}: cannot be read ({problem.strerror or problem}).", "Check the disk."
        ) from problem
