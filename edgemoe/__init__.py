"""edgemoe: Mixture-of-Experts language models on laptops and edge machines, bigger than their memory.

    import edgemoe

    edgemoe.convert("org/model", "store", experts="q4", dense="q8")
    with edgemoe.load("store", ram="6GiB") as model:
        print(model.chat().ask("Hello!"))

Importing the package is cheap: NumPy and the kernels come with the first call.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # that of typing, whose import would take longer than all the rest here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgemoe.server.server import Server
    from edgemoe.session.model import Model

__all__ = ["convert", "load", "serve"]


def load(
    path: str | os.PathLike[str] | None = None,
    ram: str | int | None = None,
    threads: int | None = None,
    context_length: int | None = None,
    kv: str | None = None,
    policy: str = "lru",
    prefetch: str = "auto",
    warm_start: bool = True,
    *,
    sequences: int = 1,
    prefix_disk: str | int | None = None,
    speculate: str | int = "auto",
    draft: str | os.PathLike[str] | None = None,
    cache_aware_routing: float = 0.0,
    drop_cold: float = 0.0,
    experts_per_token: int | None = None,
    on_miss: str = "wait",
    device: str | None = None,
    vram: str | int | None = None,
) -> Model:
    """Open a store or a GGUF file (None: the bundled model) within a memory budget; use the result in a `with` block.

    A hub id such as `org/Model-GGUF:Q4_K_M` names a GGUF file, downloaded to the hub's cache unless it is there.
    `ram` is in bytes, or text such as `6GiB`, `floor` or `auto` (None); `threads` defaults to the physical cores.
    `kv` is how keys and values are kept: `f16` (None), or `q8` in half the memory, which changes answers a little.
    Where not all experts fit, `policy` says which one leaves for another (`lru`, `lfu`, `lruf`), and `prefetch`
    whether experts are prefetched on a guess (`on`, `off`, or `auto`, by trial); `warm_start` reads in those that were
    in RAM as the model was last closed (noted in the user's cache). `sequences` is how many may be open at a time, each
    with its own context, the model's own sequence among them: `model.engine.sequences` opens more, and
    `model.engine.step` runs several together. `prefix_disk` (a size) keeps what was computed of texts in files for
    later starts, and `speculate` is how many guessed tokens may run beside each generated one (`off`, a number, or
    `auto`, as many as pay): they repeat what followed the same tokens earlier, or are those of `draft`, a smaller model
    with the same tokens, which stays in memory. `device` runs a part of the work beside the processor: `cuda`,
    `opencl` or `metal` (with a number or letters of a name, such as `cuda:1`), or `auto`, the first that works; `vram`
    is the budget of its memory (a size, `auto`, or `floor`: all but routed experts). None of these changes an answer.
    The other settings are lossy and off by default (docs/performance.md has measurements): `cache_aware_routing`
    (0 to 1) prefers experts that are in memory, `drop_cold` (0 to 1) skips those that are not in memory and whose share
    of a token is below it, `experts_per_token` is a smaller number of experts for each token, and
    `on_miss="base"` computes an expert that a generated token misses from its base, in stores whose experts have one.
    Raises StoreError, SourceError, BudgetError and UsageError (`edgemoe.errors`).
    """
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.engine.options import EngineOptions
    from edgemoe.session.model import load as load_model

    lossy = LossySettings(cache_aware_routing, drop_cold, experts_per_token, on_miss)
    options = EngineOptions(
        ram, threads, context_length, kv, policy, prefetch, warm_start, lossy=lossy, sequences=sequences,
        prefix_disk=prefix_disk, speculate=speculate, device=device, vram=vram,
    )  # fmt: skip
    return load_model(path, options, draft)


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    experts: str | None = None,
    dense: str | None = None,
    head: str | None = None,
    bits: float | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    calibrate_tokens: int = 16384,
    feedback: bool = True,
    importance: str | os.PathLike[str] | None = None,
    mtp: bool = False,
    keep: bool = False,
    force: bool = False,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Convert a checkpoint (a folder, a hub id or a GGUF file) into a store; returns the store's path.

    `experts`, `dense` and `head` (the matrix of the logits, by default as `dense`) name formats: q4, q4m, m4, q8,
    bf16, f16, f32, or n4, n3, n2, n15, n1 or n075 (4.2 to 0.75 bits for a weight), or `keep` for the smallest exact
    one; left out, blocks that the source has quantised carry over exactly, other experts become q4 and other weights
    q8. Experts may have others for a matrix, an end of the model, or a layer by its number: `n2,down=n3,first=n4,7=n4`.
    `bits` chooses n075 to n4 for each layer's, of at most as many for a weight, by the errors that are measured; of
    experts in sub1, with `calibrate`, it is the most that each has.

    `calibrate` is a file of text, or `default`: n4 to n075, and sub1, are then made by what its first
    `calibrate_tokens` tokens make of the weights, with `feedback` of errors or without. `importance` is a file of
    llama.cpp's imatrix in place of a text, for n4 to n075. `mtp` converts the checkpoint's MTP head alone, which `load`
    takes as the `draft` of the model. `notice` gets, before the weights are written, paragraphs about what the
    checkpoint lacks, and after a calibration what the store has lost on the text that follows.
    Raises SourceError, StoreError and UsageError.
    """
    from edgemoe.conversion.pipeline import convert_checkpoint
    from edgemoe.session.calibration_text import weighed
    from edgemoe.session.text_faults import text_faults

    return convert_checkpoint(
        os.fspath(source),
        destination,
        experts=experts,
        dense=dense,
        head=head,
        bits=bits,
        keep=keep,
        force=force,
        notice=notice,
        examine=text_faults,
        calibration=weighed(calibrate, calibrate_tokens, feedback, importance),
        mtp=mtp,
    )


def serve(
    path: str | os.PathLike[str] | None = None,
    ram: str | int | None = None,
    threads: int | None = None,
    context_length: int | None = None,
    kv: str | None = None,
    policy: str = "lru",
    prefetch: str = "auto",
    warm_start: bool = True,
    *,
    sequences: int = 4,
    prefix_disk: str | int | None = None,
    speculate: str | int = "auto",
    draft: str | os.PathLike[str] | None = None,
    device: str | None = None,
    vram: str | int | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    api_keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    queue: int = 32,
    name: str | None = None,
) -> Server:
    """Serve a model over HTTP in the background; use the result in a `with` block, whose end stops it.

        with edgemoe.serve("store", ram="6GiB") as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-")

    The settings of the model are those of `load`; `sequences` answers are written at a time, and `queue` may wait.
    `port` 0 takes a free one. A `host` beyond this machine needs `api_keys`; `origins` are those of web pages that may
    ask; `name` is the model's name for clients. Needs the extra `serve`.
    Raises as `load`, and UsageError for settings that would not be safe and a port that is taken.
    """
    from edgemoe.engine.options import EngineOptions
    from edgemoe.server.opening import open_to_serve
    from edgemoe.server.server import Server
    from edgemoe.server.settings import ServerSettings

    settings = ServerSettings(host, port, tuple(api_keys), tuple(origins), queue, name)
    options = EngineOptions(
        ram, threads, context_length, kv, policy, prefetch, warm_start, sequences=sequences,
        prefix_disk=prefix_disk, speculate=speculate, device=device, vram=vram,
    )  # fmt: skip
    return Server(lambda: open_to_serve(path, options, draft=draft), settings).start()
