"""A source over another one, which shows several of its tensors as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgemoe.conversion.source import Source, TensorInfo


class SourceOver:
    """The methods of a `Source` that do not read; `tensors` are those that it shows.

    A tensor that is made of others lies in the last of their shards. The earlier ones are released with that one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tensors: dict[str, TensorInfo] = {}
        self.name, self.fingerprint, self.config = source.name, source.fingerprint, source.config
        self._order = {shard: place for place, shard in enumerate(source.shards())}
        self._released: set[str] = set()
        self._needed: dict[str, set[str]] = {}

    def _last_shard(self, parts: Iterable[TensorInfo]) -> str:
        """The shard of a tensor that is made of these, for which the shards of all of them are held."""
        *earlier, last = sorted({part.shard for part in parts}, key=self._order.__getitem__)
        if earlier:
            self._needed.setdefault(last, set()).update(earlier)
        return last

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def shards(self) -> Sequence[str]:
        return self._source.shards()

    def release(self, shard: str) -> None:
        """Release what no tensor of a shard that is still to be read needs."""
        self._released.add(shard)
        held = {own for last, needed in self._needed.items() if last not in self._released for own in needed}
        for name in sorted(self._released - held):
            self._source.release(name)

    def side_files(self) -> Mapping[str, bytes | Path]:
        return self._source.side_files()

    def unlisted(self) -> Mapping[str, str]:
        return self._source.unlisted()

    def notices(self) -> Sequence[str]:
        return self._source.notices()

    def close(self) -> None:
        self._source.close()
