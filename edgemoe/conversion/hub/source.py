"""A checkpoint on the Hugging Face hub: small files first, then one shard at a time, each deleted after use.

Only the files named here are ever fetched, never a pickle or a program. The shapes of all tensors come from the shards'
headers, read by range requests before any shard is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgemoe.conversion.folder import read_json_file
from edgemoe.conversion.folder_contents import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    SINGLE_NAME,
    adapter_error,
    no_tokenizer,
    single_before_shards,
)
from edgemoe.conversion.hub.errors import AGAIN, explained
from edgemoe.conversion.hub.gguf_names import gguf_models
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.conversion.rank_shards import named_by_rank, rank_shards
from edgemoe.conversion.safetensors_rows import SafetensorsRows, Spans
from edgemoe.conversion.source import TensorInfo
from edgemoe.conversion.tokenizers.files import vocabulary_name
from edgemoe.errors import SourceError
from edgemoe.store.headers import HeaderTensor, read_header
from edgemoe.store.side_files import SIDE_FILES

_HEADERS_AT_ONCE = 8


class HubSource(SafetensorsRows):
    """A checkpoint in a repository of the hub (see `Source`). Opening it fetches the small files.

    Without `side_files` the tokenizer's files are not downloaded.
    """

    def __init__(self, repository: HubRepository, *, side_files: bool = True) -> None:
        self._repository = repository
        self._remote = repository.files
        if ADAPTER_CONFIG_NAME in self._remote:
            adapter = read_json_file(self._repository.small_file(ADAPTER_CONFIG_NAME), "the config of an adapter")
            raise adapter_error(repository.id.repository, ADAPTER_CONFIG_NAME, adapter, CONFIG_NAME in self._remote)
        if CONFIG_NAME not in self._remote:
            raise self._unreadable(CONFIG_NAME)
        self._config = read_json_file(self._repository.small_file(CONFIG_NAME), "a config.json of a checkpoint")
        self._unlisted: dict[str, str] = {}
        self._shards = self._find_shards()
        self._tensors = self._find_tensors()
        wanted = (*SIDE_FILES, vocabulary_name(self._remote)) if side_files else ()
        self._side_files = {
            name: self._repository.small_file(name) for name in wanted if name is not None and name in self._remote
        }
        self._open: dict[str, tuple[Path, dict[str, HeaderTensor]]] = {}

    @property
    def name(self) -> str:
        return self._repository.name

    @property
    def fingerprint(self) -> str:
        return self._repository.commit

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def shards(self) -> Sequence[str]:
        return list(self._shards)

    def read_spans(self, tensor: str, spans: Spans) -> None:
        path, header = self._fetch_shard(self._tensors[tensor].shard)
        with explained(self._repository.id.repository), path.open("rb", buffering=0) as file:
            for offset, into in spans:
                file.seek(header[tensor].offset + offset)
                found = file.readinto(into)
                if found != len(into):
                    raise SourceError(f"{path}: {tensor}: expected {len(into)} bytes, found {found}.", AGAIN)

    def release(self, shard: str) -> None:
        self._open.pop(shard, None)
        self._repository.discard(shard)

    def side_files(self) -> Mapping[str, bytes | Path]:
        return self._side_files

    def unlisted(self) -> Mapping[str, str]:
        return {name: shard for name, shard in self._unlisted.items() if name not in self._tensors}

    def notices(self) -> Sequence[str]:
        notices = single_before_shards(self._remote)
        if "tokenizer.json" not in self._remote and vocabulary_name(self._remote) is None:
            notices.append(no_tokenizer(sorted(self._remote)))
        return notices

    def download(self) -> Path:
        """Download all shards, to where the repository keeps files; the folder of the config. Raises SourceError."""
        self._repository.expect(self._shards)
        for shard in self._shards:
            self._fetch_shard(shard)
        return self._repository.small_file(CONFIG_NAME).parent

    def close(self) -> None:
        """Clean up, but keep the partial downloads that a later run can resume."""
        self._open.clear()
        self._repository.tidy(self._shards)

    def _find_shards(self) -> dict[str, set[str] | None]:
        """Each shard with the tensors that the index lists for it; None if no index is used.

        A single file takes precedence over an index, as in transformers and in `FolderSource`.
        """
        if SINGLE_NAME in self._remote:
            return {SINGLE_NAME: None}
        if INDEX_NAME not in self._remote:
            if ranks := rank_shards(self.name, (name for name in self._remote if "/" not in name)):
                return dict.fromkeys(ranks)
            raise self._unreadable(SINGLE_NAME)
        index = read_json_file(self._repository.small_file(INDEX_NAME), "the index of the shards")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SourceError(f"{self.name}: {INDEX_NAME}: expected a weight_map of tensor names to file names.")
        shards: dict[str, set[str] | None] = {}
        for tensor, shard in weight_map.items():
            # Only a plain name of a file in the repository may become part of a local path.
            if shard not in self._remote or Path(shard).name != shard or Path(shard).suffix != ".safetensors":
                raise SourceError(
                    f"{self.name}: {INDEX_NAME} names {shard!r:.80}, which is not a file of the checkpoint."
                )
            wanted = shards.setdefault(shard, set())
            if wanted is not None:
                wanted.add(tensor)
        return dict(sorted(shards.items()))

    def _find_tensors(self) -> dict[str, TensorInfo]:
        with explained(self._repository.id.repository), ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
            headers = list(pool.map(self._remote_header, self._shards))
        tensors: dict[str, TensorInfo] = {}
        for (shard, wanted), header in zip(self._shards.items(), headers, strict=True):
            absent = (wanted or set()) - header.keys()
            if absent:
                raise SourceError(f"{self.name}: {shard}: expected the tensor {min(absent)}, as {INDEX_NAME} says.")
            for name, info in header.items():
                if wanted is None or name in wanted:
                    tensors[name] = info
                else:
                    self._unlisted[name] = shard
        return tensors

    def _remote_header(self, shard: str) -> dict[str, TensorInfo]:
        header = self._repository.parse_header(shard)
        found = {name: TensorInfo(tuple(info.shape), info.dtype, shard) for name, info in header.tensors.items()}
        return found if self._shards[shard] else named_by_rank(shard, found)

    def _fetch_shard(self, shard: str) -> tuple[Path, dict[str, HeaderTensor]]:
        """The local path of a shard, downloaded if necessary, and its header."""
        if shard not in self._open:
            path = self._repository.file(shard)
            header: dict[str, HeaderTensor] = dict(read_header(path, SourceError, AGAIN))
            header = header if self._shards[shard] else named_by_rank(shard, header)
            for name, info in self._tensors.items():
                place = header.get(name)
                if info.shard == shard and (place is None or (place.shape, place.dtype) != (info.shape, info.dtype)):
                    raise SourceError(f"{shard}: {name}: the file differs from the header that the hub sent.", AGAIN)
            self._open[shard] = (path, header)
        return self._open[shard]

    def _unreadable(self, missing: str) -> SourceError:
        ggufs = gguf_models(self._remote)
        if ggufs:
            hint = f"It has GGUF files: name one, such as {self._repository.id}:{ggufs[0].quantisation}."
        elif any(name.endswith((".bin", ".pth", ".pt")) for name in self._remote):
            hint = "Its weights are pickles, which can run code and are not read; choose a checkpoint in safetensors."
        else:
            hint = "Give the id of a language model's checkpoint."
        return SourceError(f"{self._repository.id}: expected {missing} in it, found none.", hint)
