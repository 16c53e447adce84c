"""Converts a checkpoint to a store: streamed, bounded in memory, resumable at any point with identical bytes.

While it is written the store lies in `DEST.partial/store`, beside the journal that records which parts are done
and a hub's unfinished downloads. When all is on the disk the folder is renamed to `DEST` as a whole.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import AUDIO, FURTHER_TOKENS, INDEXER, VISION, model_spec, unused_tensors
from edgemoe.conversion.bits import Errors, formats_for
from edgemoe.conversion.calibration.importance_file import ImportanceFile
from edgemoe.conversion.calibration.settings import BITS, CALIBRATION, Calibration
from edgemoe.conversion.destination import (
    DOWNLOADS_FOLDER,
    STORE_FOLDER,
    disk_errors,
    existing_store,
    publish,
    refuse_foreign,
    remove_partial,
    target_path,
)
from edgemoe.conversion.formats import BY_DEFAULT, FormatChoice
from edgemoe.conversion.journal import Journal
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.plan import Plan, plan_conversion
from edgemoe.conversion.progress import Callback, DownloadCallback, NoticeCallback
from edgemoe.conversion.side_files import side_files_of
from edgemoe.conversion.source import Source
from edgemoe.conversion.transfer import Transfer
from edgemoe.errors import SourceError, StoreError, UsageError
from edgemoe.kernels.formats import SUB1
from edgemoe.model.build import build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.model.sampling import CONFIG_LIMIT_BYTES, GENERATION_CONFIG, end_ids, read_generation_config
from edgemoe.store.headers import parse_json
from edgemoe.store.reader import Store
from edgemoe.store.writer import StoreWriter

if TYPE_CHECKING:
    from edgemoe.conversion.calibration.passing import CalibrationPass

Weighed = Union[Calibration, ImportanceFile, None]
"""The source of what errors of columns cost: a text that goes through the model, or a file; None: all the same."""

Planning = Callable[[Source, FormatChoice, Mapping[str, Any], float | None], Plan]
"""Makes the plan of a conversion, given its formats, the store's provenance, and the most bits of experts in sub1."""

Examination = Callable[[Mapping[str, bytes], int], Iterable[str]]
"""Gets the contents of a checkpoint's small files by their names, and the model's vocabulary; returns paragraphs."""


def convert_checkpoint(
    source: str,
    destination: str | os.PathLike[str],
    *,
    experts: str | None = None,
    dense: str | None = None,
    head: str | None = None,
    bits: float | None = None,
    keep: bool = False,
    force: bool = False,
    progress: Callback | None = None,
    downloading: DownloadCallback | None = None,
    notice: NoticeCallback | None = None,
    examine: Examination | None = None,
    calibration: Weighed = None,
    mtp: bool = False,
) -> Path:
    """Convert a checkpoint (folder, .gguf file or hub id) to a store at `destination`; returns its path.

    `experts`, `dense` and `head` name formats (see `FormatChoice`); without them quantised blocks carry over exactly,
    and other weights become q4 and q8. `bits`, in place of `experts`, are the most that weights of experts may have on
    average, by measured errors (`bits.py`); with experts in sub1 and a calibration they are the most of every expert.
    An interrupted conversion resumes; `force` discards an unfinished conversion of another checkpoint or with other
    options. A finished store of the same conversion is left unchanged. `keep` leaves downloaded shards in the hub's
    cache. `notice` receives remarks for the user before the weights are written: those of the source, and those that
    `examine` makes on the small files; and in the end what a calibrated store has lost. With a `calibration`, matrices
    in formats with a trellis, or in sub1, are quantised by the inputs that a text gives them, or (with a trellis) gave
    when a file was made that says so. With `mtp` the store is that of the checkpoint's MTP head alone.
    Raises UsageError, SourceError or StoreError; in no case is a half-written store left at `destination`.
    """

    def opened(downloads: Path) -> Source:
        opened = open_source(source, downloads=downloads, keep=keep, downloading=downloading)
        if not mtp:
            return opened
        from edgemoe.conversion.mtp import MtpSource

        try:
            return MtpSource(opened)
        except BaseException:
            opened.close()
            raise

    if mtp and calibration is not None:
        raise UsageError("An MTP head reads no text by itself: `mtp` excludes a calibration.", "Leave one out.")

    return convert_source(
        opened,
        destination,
        choice=FormatChoice(experts, dense, head),
        bits=bits,
        force=force,
        progress=progress,
        notice=notice,
        examine=examine,
        calibration=calibration,
    )


def convert_source(
    open_it: Callable[[Path], Source],
    destination: str | os.PathLike[str],
    *,
    choice: FormatChoice = BY_DEFAULT,
    bits: float | None = None,
    force: bool = False,
    progress: Callback | None = None,
    notice: NoticeCallback | None = None,
    examine: Examination | None = None,
    calibration: Weighed = None,
    planning: Planning = plan_conversion,
) -> Path:
    """As `convert_checkpoint`, for the source that `open_it` opens (given a folder for downloads) and then closes.

    `planning` makes the plan, for a source whose tensors are not those of a family.
    """
    choice.check()
    if calibration is not None and choice.base is not None:
        raise UsageError(
            f"`experts={choice.experts}`: experts in two planes are rounded without a text: found one, or the"
            " importance of columns, beside it.",
            "Leave that out, or give one format.",
        )
    asked = bits if choice.experts == SUB1.name else None
    if asked is not None and not isinstance(calibration, Calibration):
        raise UsageError(
            f"`bits` of experts in {SUB1.name}: expected a text by which their weights are chosen, found none.",
            "Give one (`calibrate`), or leave `bits` out.",
        )
    if isinstance(calibration, Calibration):
        calibration = dataclasses.replace(calibration, bits=asked)
    if bits is not None and choice.experts is not None and asked is None:
        raise UsageError("`bits` takes the place of `experts`: expected one of them, found both.", "Leave one out.")
    target = target_path(destination)
    partial = target.with_name(target.name + ".partial")
    with disk_errors(partial):
        refuse_foreign(partial)
        with Journal.lock(partial) as journal:
            begun = False
            try:
                existing = existing_store(target)
                opened = open_it(partial / DOWNLOADS_FOLDER)
                try:
                    if bits is not None and asked is None:
                        recorded = journal.identity if existing is None else existing.manifest.provenance
                        choice = _with_bits(opened, choice, calibration, bits, recorded or {})
                    provenance = _provenance(opened, choice, calibration, bits)
                    if existing is not None:
                        _require_same(existing, provenance)
                    else:
                        plan = planning(opened, choice, provenance, asked)
                        vocab_size = plan.manifest.model["vocab_size"]
                        side_files = side_files_of(opened, vocab_size)
                        _check_generation_settings(opened.config, side_files)
                        calibrated, importance = None, None
                        if isinstance(calibration, Calibration):
                            calibrated = _pass(opened, plan, calibration, side_files)
                        elif calibration is not None:
                            importance = calibration.of_pieces(plan.pieces)
                        if notice is not None:
                            found = examine(side_files, vocab_size) if examine else ()
                            said = calibrated.notices() if calibrated else []
                            if bits is not None and asked is None:
                                said.append(f"Experts get the formats {choice.experts}.")
                            for text in (*opened.notices(), *_left_out(opened), *found, *said):
                                notice(text)
                        _begin(journal, {**provenance, "plan": plan.digest()}, force)
                        begun = True
                        tell = notice or (lambda text: None)
                        _write_store(opened, plan, side_files, journal, progress, calibrated, importance, tell)
                        publish(partial, target)
                finally:
                    opened.close()
            except BaseException:
                if not begun and journal.identity is None:
                    remove_partial(partial)
                raise
            remove_partial(partial)
    return target


def _left_out(opened: Source) -> Iterator[str]:
    """Say once for each part of the checkpoint that is left out which it is."""
    unused = unused_tensors(opened.config, opened.tensors())
    for part in (FURTHER_TOKENS, VISION, AUDIO, INDEXER):
        names = [name for name, reason in unused.items() if reason == part]
        if names:
            which = f"{len(names)} tensors, such as {names[0]}, are left out: they belong"
            yield (which if len(names) > 1 else f"1 tensor, {names[0]}, is left out: it belongs") + f" to {part}."


@functools.cache
def edgemoe_version() -> str:
    """The version of this program, as its installation says."""
    try:
        return importlib.metadata.version("edgemoe")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _provenance(
    source: Source, choice: FormatChoice, calibration: Weighed, bits: float | None = None
) -> dict[str, Any]:
    """A store's source, formats and program version: the same provenance gives the same bytes.

    With a calibration, whose sums libraries compute, that is so on machines of one kind.
    """
    return {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "edgemoe": edgemoe_version(),
        **vars(choice),
        **({CALIBRATION: calibration.described()} if calibration else {}),
        **({BITS: bits} if bits is not None else {}),
    }


def _with_bits(
    source: Source, choice: FormatChoice, calibration: Weighed, bits: float, recorded: Mapping[str, Any]
) -> FormatChoice:
    """The choice with formats of experts for a number of bits: as recorded by a conversion of the same, else measured.

    Raises UsageError for a number that no choice reaches, SourceError, OSError, and what running a model raises.
    """
    wanted = {**_provenance(source, choice, calibration, bits), "experts": recorded.get("experts")}
    if all(recorded.get(key) == value for key, value in wanted.items()) and recorded.get("experts"):
        return dataclasses.replace(choice, experts=recorded["experts"])
    from edgemoe.conversion.calibration.format_errors import measured_errors

    spec = model_spec(source.config)

    def measure() -> Errors:
        text = calibration if isinstance(calibration, Calibration) else None
        return measured_errors(source, text, side_files_of(source, spec.vocab_size))

    return dataclasses.replace(choice, experts=formats_for(bits, spec.tensors(), measure))


def _pass(source: Source, plan: Plan, calibration: Calibration, side_files: Mapping[str, bytes]) -> CalibrationPass:
    """The pass that calibrates. Raises UsageError for a text or a model for which there is none."""
    from edgemoe.conversion.calibration.layers import windows_of
    from edgemoe.conversion.calibration.matrices import Matrices
    from edgemoe.conversion.calibration.passing import CalibrationPass  # imports the engine

    store = Store(Path(), plan.manifest)
    graph = build_graph(store_spec(store), build_options(store))
    windows = windows_of(calibration, side_files, graph)
    return CalibrationPass(Matrices(source, plan, graph, calibration), graph, windows)


def _require_same(existing: Store, provenance: Mapping[str, Any]) -> None:
    found = existing.manifest.provenance
    different = [key for key in (*provenance, CALIBRATION, BITS) if found.get(key) != provenance.get(key)]
    if different:
        way_out = "Give another destination, or remove it first."
        if not vars(BY_DEFAULT).keys() & set(different):
            way_out += f" If only its small files have changed, edgemoe update {existing.path} takes those."
        raise UsageError(
            f"{existing.path}: exists, and is of another conversion ({_differences(found, provenance)}).", way_out
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Describe the differences between two conversions, for messages."""
    texts = [
        f"{key} {found.get(key) or 'by default'}, not {wanted.get(key) or 'by default'}"
        for key in ("source", "edgemoe", *vars(BY_DEFAULT), CALIBRATION, BITS)
        if found.get(key) != wanted.get(key)
    ]
    return "; ".join(texts) or "the checkpoint has changed"


def _begin(journal: Journal, identity: Mapping[str, Any], force: bool) -> None:
    """Resume the conversion in the journal if it is this one; else restart. Raises UsageError if `force` is needed."""
    if journal.identity == identity:
        return
    if journal.identity is not None and not force:
        raise UsageError(
            f"{journal.folder}: holds an unfinished conversion of another kind"
            f" ({_differences(journal.identity, identity)}).",
            "Run that one to its end, give another destination, or discard it with `force`.",
        )
    store = journal.folder / STORE_FOLDER
    if store.exists():
        shutil.rmtree(store)
    journal.restart(identity)


def _write_store(
    source: Source,
    plan: Plan,
    side_files: Mapping[str, bytes],
    journal: Journal,
    progress: Callback | None,
    calibrated: CalibrationPass | None,
    importance: Mapping[int, npt.NDArray[np.float32]] | None,
    tell: NoticeCallback,
) -> None:
    with StoreWriter(journal.folder / STORE_FOLDER, plan.manifest) as writer:
        _check_space(writer)
        transfer = Transfer(source, plan, writer, journal, progress, importance)
        numbers = () if calibrated is None else calibrated.numbers
        transfer.run(numbers, release=calibrated is None or not calibrated.measures)
        if calibrated is not None:
            store = Store(writer.folder, plan.manifest)
            calibrated.run(store, transfer, journal.errors.keys())
            if calibrated.measures:
                tell("Every weight is written. To compare, text that calibrated nothing goes through the checkpoint.")
                for text in _loss(source, plan, calibrated, store, progress):
                    tell(text)
        transfer.finish()
        writer.finish(transfer.manifest(), side_files)


def _loss(
    source: Source, plan: Plan, calibrated: CalibrationPass, store: Store, progress: Callback | None
) -> Iterator[str]:
    """Say what a calibrated store has lost, and what would lose less."""
    from edgemoe.conversion.calibration.advice import advice
    from edgemoe.conversion.calibration.weights import SourceWeights

    try:
        loss = calibrated.loss(store, SourceWeights(source), progress)
    except SourceError as problem:  # of blocks that no format holds, though it can be rounded
        yield f"What the store has lost was not measured: {problem.message}"
        return
    yield loss.described()
    yield from advice(plan, loss)


def _check_space(writer: StoreWriter) -> None:
    needed = writer.missing_bytes()
    free = shutil.disk_usage(writer.folder).free
    if needed > free:
        raise StoreError(
            f"{writer.folder.parent}: the store needs {_size(needed)} more, and {_size(free)} are free on that disk.",
            "Free some space and run the same command again, or give a destination on another disk.",
        )


def _check_generation_settings(config: Mapping[str, Any], side_files: Mapping[str, bytes]) -> None:
    """Raises SourceError where a store of these files could be made, but would refuse to generate."""
    content = side_files.get(GENERATION_CONFIG, b"{}")
    if len(content) > CONFIG_LIMIT_BYTES:
        raise _unusable(GENERATION_CONFIG, f"expected at most {_size(CONFIG_LIMIT_BYTES)}, found more.")
    try:
        published = parse_json(content.decode())
    except ValueError as problem:
        raise _unusable(GENERATION_CONFIG, f"it is not valid JSON ({problem}).") from None
    if not isinstance(published, dict):
        raise _unusable(GENERATION_CONFIG, f"expected a JSON object, found {type(published).__name__}.")
    try:
        read_generation_config(published)
    except UsageError as problem:
        raise _unusable(GENERATION_CONFIG, problem.message) from None
    try:
        end_ids(config)
    except UsageError as problem:
        raise _unusable("config.json", problem.message) from None


def _unusable(name: str, found: str) -> SourceError:
    or_remove = ", or remove it: without it decoding is greedy" if name == GENERATION_CONFIG else ""
    return SourceError(f"{name} of the checkpoint: {found}", f"Mend it in the checkpoint{or_remove}.")


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
