"""A checkpoint in a folder, as Hugging Face saves it: config.json and safetensors files, one or sharded."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from edgemoe.conversion.folder_contents import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAMES,
    CONFIG_NAME,
    INDEX_NAME,
    SINGLE_NAME,
    adapter_error,
    checkpoint_folder,
    missing_file,
    no_tokenizer,
    no_weights,
    refuse_lfs_pointer,
    refuse_store,
    single_before_shards,
)
from edgemoe.conversion.rank_shards import named_by_rank, rank_shards
from edgemoe.conversion.safetensors_rows import SafetensorsRows, Spans
from edgemoe.conversion.sampling import sample_sha256
from edgemoe.conversion.source import TensorInfo
from edgemoe.conversion.tokenizers.files import VOCABULARY_NAMES, vocabulary_name
from edgemoe.errors import SourceError
from edgemoe.store.headers import HeaderTensor, parse_json, read_header
from edgemoe.store.side_files import SIDE_FILES

MAX_JSON_BYTES = 1 << 26
_DAMAGED = "Was the checkpoint cut short or altered? Download it again."
_ESCAPE = "Copy the real file into the folder, or give the folder that holds it."


class FolderSource(SafetensorsRows):
    """A folder with config.json and .safetensors files. A `Source`; constructing it reads all headers.

    A symbolic link in the folder is followed wherever it points: the user or the hub's library put it there. A name
    given by a downloaded file, such as the index, is never allowed to point outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = checkpoint_folder(folder.resolve())
        self.name = self._folder.name
        refuse_store(self._folder)
        self._refuse_adapter()
        config = read_json_file(self._file(CONFIG_NAME), "a config.json of a checkpoint")
        self.config: Mapping[str, Any] = config
        self._places: dict[str, HeaderTensor] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._unlisted: dict[str, str] = {}
        self._descriptors: dict[str, int] = {}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        self._shards = self._find_shards()
        for shard, wanted in self._shards.items():
            header = read_header(self._file(shard), SourceError, _DAMAGED)
            digest.update(repr((shard, header, self._sample(shard))).encode())
            self._take(shard, header if wanted else named_by_rank(shard, header), wanted)
        for name in sorted(self.side_files()):
            digest.update(repr((name, self._sample(name))).encode())
        self.fingerprint = digest.hexdigest()

    def _refuse_adapter(self) -> None:
        """Raises SourceError if the folder holds a LoRA adapter, alone or beside a model."""
        if os.path.lexists(self._folder / ADAPTER_CONFIG_NAME):
            adapter = read_json_file(self._file(ADAPTER_CONFIG_NAME), "the config of an adapter")
            raise adapter_error(self._folder, ADAPTER_CONFIG_NAME, adapter, (self._folder / CONFIG_NAME).exists())
        weights = {path.name for pattern in ("*.safetensors", "*.bin") for path in self._folder.glob(pattern)}
        if weights and weights <= set(ADAPTER_WEIGHTS_NAMES):
            raise adapter_error(self._folder, min(weights), {}, False)

    def _find_shards(self) -> dict[str, set[str] | None]:
        """Each shard with the tensors that the index lists for it; None if no index is used.

        A single file takes precedence over an index, as in transformers (`_get_resolved_checkpoint_files`): a folder
        has both if a model was saved as one file over an older, sharded one.
        """
        if self._exists(SINGLE_NAME):
            return {SINGLE_NAME: None}
        if os.path.lexists(self._folder / INDEX_NAME):
            return self._read_index()
        names = sorted(path.name for path in self._folder.glob("*.safetensors"))
        if len(names) == 1:
            return {names[0]: None}
        if ranks := rank_shards(self._folder, names):
            return dict.fromkeys(ranks)
        if names:
            raise SourceError(
                f"{self._folder}: expected {INDEX_NAME} or one .safetensors file,"
                f" found {len(names)} of them ({names[0]}, ...) and no index.",
                f"Download {INDEX_NAME} of the checkpoint too.",
            )
        raise no_weights(self._folder)

    def _read_index(self) -> dict[str, set[str] | None]:
        index = read_json_file(self._file(INDEX_NAME), "the index of the shards")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise SourceError(f"{INDEX_NAME}: expected a weight_map of tensor names to file names.", _DAMAGED)
        shards: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            shards.setdefault(shard, set()).add(tensor)
        missing = [name for name in sorted(shards) if not self._exists(name)]
        if missing:
            raise SourceError(
                f"{self._folder}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}.",
                "Download them again.",
            )
        return {name: shards[name] for name in sorted(shards)}

    def _take(self, shard: str, header: Mapping[str, HeaderTensor], wanted: set[str] | None) -> None:
        absent = sorted((wanted or set()) - header.keys())
        if absent:
            raise SourceError(
                f"{shard}: expected tensor {absent[0]}, as {INDEX_NAME} says, found none of that name.", _DAMAGED
            )
        for name, place in header.items():
            if wanted is None or name in wanted:
                self._places[name] = place
                self._tensors[name] = TensorInfo(place.shape, place.dtype, shard)
            else:
                self._unlisted[name] = shard

    def _sample(self, name: str) -> str:
        try:
            return sample_sha256(self._file(name))
        except OSError as problem:
            raise SourceError(f"{name}: cannot be read ({problem.strerror}).", "Check the disk.") from problem

    def _exists(self, name: str) -> bool:
        return os.path.exists(self._inside(name))  # noqa: PTH110 (returns False for an invalid file name)

    def _inside(self, name: str) -> Path:
        """The path of a name given by the checkpoint. Raises SourceError if it points outside the folder."""
        pure = PurePosixPath(name)
        if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
            raise SourceError(
                f"{self._folder}: the checkpoint names a file {name!r}, which lies outside of its folder.",
                "Do not use this checkpoint: it may be malicious.",
            )
        return self._folder / pure

    def _file(self, name: str) -> Path:
        """The path of a regular file of the checkpoint, by its name in the folder."""
        path = self._inside(name)
        try:
            real = path.resolve(strict=True)
            regular = stat.S_ISREG(real.stat().st_mode)
        except (OSError, RuntimeError):
            raise missing_file(self._folder, name) from None
        if len(path.relative_to(self._folder).parts) > 1:  # a path with folders, which only a downloaded index gives
            roots = [self._folder]
            if self._folder.parent.name == "snapshots":
                roots.append(self._folder.parent.parent / "blobs")
            if not any(real.is_relative_to(root) for root in roots):
                raise SourceError(
                    f"{path}: expected a file of the checkpoint, found a link out of it, to {real}.", _ESCAPE
                )
        if not regular:
            raise SourceError(f"{path}: expected a file, found something else.", _DAMAGED)
        refuse_lfs_pointer(path)
        return real

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def shards(self) -> Sequence[str]:
        return list(self._shards)

    def read_spans(self, tensor: str, spans: Spans) -> None:
        shard, begin = self._tensors[tensor].shard, self._places[tensor].offset
        for offset, into in spans:
            self._read(shard, begin + offset, into)

    def _read(self, shard: str, offset: int, into: memoryview) -> None:
        try:
            if shard not in self._descriptors:
                self._descriptors[shard] = os.open(self._file(shard), os.O_RDONLY)
            while into:
                count = os.preadv(self._descriptors[shard], [into], offset)
                if not count:
                    raise SourceError(f"{shard}: ends at byte {offset}, in the middle of a tensor.", _DAMAGED)
                into, offset = into[count:], offset + count
        except OSError as problem:
            raise SourceError(f"{shard}: cannot be read ({problem.strerror}).", "Check the disk.") from problem

    def release(self, shard: str) -> None:
        descriptor = self._descriptors.pop(shard, None)
        if descriptor is not None:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def side_files(self) -> Mapping[str, bytes | Path]:
        here = [name for name in (*SIDE_FILES, *VOCABULARY_NAMES) if os.path.lexists(self._folder / name)]
        return {name: self._file(name) for name in here if name in SIDE_FILES or name == vocabulary_name(here)}

    def unlisted(self) -> Mapping[str, str]:
        return {name: shard for name, shard in self._unlisted.items() if name not in self._tensors}

    def notices(self) -> Sequence[str]:
        names = sorted(path.name for path in self._folder.iterdir())
        notices = single_before_shards(names)
        if "tokenizer.json" not in names and vocabulary_name(names) is None:
            notices.append(no_tokenizer(names))
        return notices

    def close(self) -> None:
        for shard in list(self._descriptors):
            self.release(shard)


def read_json_file(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object from a checkpoint's file. Raises SourceError if the file is not a JSON object."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"over {MAX_JSON_BYTES} bytes")
        data = parse_json(text)
    except OSError as problem:
        raise SourceError(f"{path}: cannot be read ({problem.strerror}).", _DAMAGED) from None
    except ValueError as problem:
        raise SourceError(f"{path}: expected {what}, found no JSON ({problem}).", _DAMAGED) from None
    if not isinstance(data, dict):
        raise SourceError(f"{path}: expected {what}, found another JSON value.", _DAMAGED)
    return data
