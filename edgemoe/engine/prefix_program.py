"""The program that computes keys, values and fixed state: by its digest files of prefixes are used again or not.

A token's bits depend on weights, text and settings alone, so the digest covers the weights and the settings, and how
state lies in arrays. It covers the code too, since another version of it may compute other bits.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.pages import PREFIX_HASH_BYTES, PageGroup
from edgemoe.engine.prefix_disk import PrefixDisk
from edgemoe.errors import UsageError
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.native.library import library_path
from edgemoe.model.build import Graph
from edgemoe.paths import cache_folder
from edgemoe.sizes import parse_size
from edgemoe.store.reader import Store

FOLDER = "prefixes"
PACKAGES = ("engine", "experts", "kernels", "model", "store")
"""Packages whose code has a part in a token's bits."""


def open_prefix_disk(
    size: str | int,
    store: Store,
    graph: Graph,
    memory: MemoryPlan,
    backend: Backend,
    groups: Sequence[PageGroup],
    fixed: FixedState | None,
) -> PrefixDisk:
    """The files of prefixes, of at most this size. Raises UsageError where there can be none."""
    most_bytes = parse_size(size) if isinstance(size, str) else size
    folder = cache_folder()
    if folder is None:
        raise UsageError(
            "`prefix_disk`: prefixes are kept in the user's cache folder, and there is none.",
            "Name a folder for it in the variable EDGEMOE_CACHE_DIR, or leave it out.",
        )
    limits = [value.rope.longest_short for value in graph.lasting if value.rope is not None]
    facts = (
        store.digest,
        graph.spec,
        memory.kv_format,
        backend.name,
        [limit is not None and memory.context_length > limit for limit in limits],
        [(group.window, [(array.dtype.str, array.shape) for array in group.arrays_of(0)]) for group in groups],
        [] if fixed is None else [(array.dtype.str, array.shape) for array in fixed.copies(0)],
        np.__version__,
        version("llvmlite") if backend.name == "jit" else "",  # it compiles that backend's kernels
    )
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=PREFIX_HASH_BYTES, key=_code_digest())
    return PrefixDisk(folder / FOLDER, digest.digest(), most_bytes)


@functools.cache
def _code_digest() -> bytes:
    """The digest of the package's code that computes, the native library's included."""
    root = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=PREFIX_HASH_BYTES)
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    library = library_path()
    if library is not None:
        digest.update(library.read_bytes())
    return digest.digest()
