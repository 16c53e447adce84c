"""Checkpoints as the ranks of a tensor-parallel program saved them, without an index (xAI's).

Each shard is that of one rank, or of all in common. Those of several ranks have the same names of tensors in them, each
with a part of the tensor; here a part's name says its rank, and the family's table says which parts make a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from edgemoe.architectures import rank_name
from edgemoe.errors import SourceError

_SHARD = re.compile(r"([\w.-]+)-TP-(common|\d{3})\.safetensors")
_Info = TypeVar("_Info")


def rank_shards(where: object, names: Iterable[str]) -> list[str]:
    """The shards among the files of a checkpoint at `where`, in order; empty where they are not all of ranks.

    Raises SourceError where the shard of a rank is missing.
    """
    shards = sorted(name for name in names if name.endswith(".safetensors"))
    found = [match for name in shards if (match := _SHARD.fullmatch(name))]
    if len(found) < len(shards):
        return []
    stems = dict.fromkeys(match[1] for match in found if match[2] != "common")
    count = max((int(match[2]) + 1 for match in found if match[2] != "common"), default=0)
    wanted = [f"{stem}-TP-{rank:03d}.safetensors" for stem in stems for rank in range(count)]
    missing = [name for name in wanted if name not in shards]
    if missing:
        raise SourceError(
            f"{where}: expected the shards of {count} ranks, as the checkpoint's names say; {len(missing)} are missing:"
            f" {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}.",
            "Download them again.",
        )
    return shards


def named_by_rank(shard: str, tensors: Mapping[str, _Info]) -> dict[str, _Info]:
    """The tensors of a shard; those of a later rank's shard by the names of its parts."""
    found = _SHARD.fullmatch(shard)
    rank = int(found[2]) if found and found[2] != "common" else 0
    return {rank_name(name, rank): info for name, info in tensors.items()}
