"""A GGUF model on the hub as a checkpoint: its header is read first, and its weights are downloaded when they are read.

Headers are read by range requests into stand-ins, sparse files as long as those of the hub. A model of an unknown
family, or with a type that cannot be read, is thus refused before gigabytes are downloaded for it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO, cast

from edgemoe.conversion.gguf.file import read_gguf_from
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.hub.gguf_names import GgufModel
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.errors import SourceError
from edgemoe.kernels.file_rows import Rows

_READ_AT_ONCE_BYTES = 1 << 22


class HubGgufSource(GgufSource):
    """A GGUF model in a repository of the hub (see `Source`). Opening it reads headers; rows, its files."""

    def __init__(self, repository: HubRepository, model: GgufModel) -> None:
        self._repository, self.model = repository, model
        folder = Path(tempfile.mkdtemp(prefix="edgemoe-headers-"))
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._missing: dict[Path, str] = {}
        for name in model.files:
            path = folder / Path(name).name
            cached = repository.cached(name)
            if cached is None:
                _read_header(repository, name, path)
                self._missing[path] = name
            else:
                path.symlink_to(cached.absolute())
        try:
            super().__init__(folder / Path(model.files[0]).name)
        except SourceError as error:  # it names a stand-in
            raise SourceError(error.message.replace(f"{folder}/", f"{repository.name}/"), error.hint) from error

    @property
    def name(self) -> str:
        return f"{self._repository.name}/{self.model.files[0]}"

    @property
    def fingerprint(self) -> str:
        return f"{self._repository.commit} {self.model.files[0]}"

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        if self._missing:
            self.download()
        return super().read_rows(tensor, index, row_start, row_stop)

    def download(self) -> Path:
        """Download the files, and put them in the place of the stand-ins; the path of the first. Raises SourceError."""
        self._repository.expect(self._missing.values())
        for path, name in list(self._missing.items()):
            link = path.with_suffix(".link")
            link.symlink_to(self._repository.file(name).absolute())
            link.replace(path)
            del self._missing[path]
        return self._repository.file(self.model.files[0])

    def close(self) -> None:
        """Clean up, but keep downloads that a later run can use."""
        self._remove()
        self._repository.tidy(self.model.files)


def _read_header(repository: HubRepository, name: str, stand_in: Path) -> None:
    """Write the header of a file to a sparse file of the same length. Raises SourceError as `read_gguf`."""
    size = repository.files[name].size
    if size is None:
        raise SourceError(f"{repository.name}: {name}: the hub does not say how long it is.", "Try later.")
    with stand_in.open("w+b") as file:
        remote = _RemoteBeginning(repository, name, size, file)
        read_gguf_from(Path(f"{repository.name}/{name}"), cast(BinaryIO, remote), size)
        os.truncate(stand_in, size)


class _RemoteBeginning:
    """Reads a file of the hub from its beginning on, and writes what it reads to a local file."""

    def __init__(self, repository: HubRepository, name: str, size: int, copy: BinaryIO) -> None:
        self._repository, self._name, self._size, self._copy = repository, name, size, copy
        self._position = self._copied = 0

    def read(self, count: int) -> bytes:
        """Read the next `count` bytes, as long as the file has them."""
        end = min(self._position + count, self._size)
        while self._copied < end:
            stop = min(self._copied + _READ_AT_ONCE_BYTES, self._size)
            self._copy.seek(self._copied)
            self._copy.write(self._repository.read_range(self._name, self._copied, stop))
            self._copied = stop
        self._copy.seek(self._position)
        data = self._copy.read(end - self._position)
        self._position = end
        return data
