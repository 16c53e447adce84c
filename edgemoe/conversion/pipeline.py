"""Converts a checkpoint to a store: streamed, bounded in memory, resumable at any point with identical bytes.

While it is written the store lies in `DEST.partial/store`, beside the journal that records which parts are done
and a hub's unfinished downloads. When all is on the disk the folder is renamed to `DEST` as a whole.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import AUDIO, FURTHER_TOKENS, INDEXER, VISION, model_spec, unused_tensors
from edgemoe.conversion.bits import formats_for
from edgemoe.conversion.calibration.importance_file import ImportanceFile
from edgemoe.conversion.calibration.settings import CALIBRATION, Calibration, Windows
from edgemoe.conversion.formats import BY_DEFAULT, FormatChoice
from edgemoe.conversion.journal import JOURNAL_NAME, Journal
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.plan import Plan, plan_conversion
from edgemoe.conversion.progress import Callback, DownloadCallback, NoticeCallback
from edgemoe.conversion.side_files import side_files_of
from edgemoe.conversion.source import Source
from edgemoe.conversion.transfer import Transfer
from edgemoe.errors import EdgemoeError, SourceError, StoreError, UsageError
from edgemoe.model.build import build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.model.sampling import CONFIG_LIMIT_BYTES, GENERATION_CONFIG, end_ids, read_generation_config
from edgemoe.paths import expanded
from edgemoe.store.headers import parse_json
from edgemoe.store.manifest import MANIFEST_NAME
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files
from edgemoe.store.writer import StoreWriter, sync_folder

if TYPE_CHECKING:
    from edgemoe.conversion.calibration.passing import CalibrationPass

STORE_FOLDER = "store"
DOWNLOADS_FOLDER = "downloads"

Weighed = Union[Calibration, ImportanceFile, None]
"""The source of what errors of columns cost: a text that goes through the model, or a file; None: all the same."""

Planning = Callable[[Source, FormatChoice, Mapping[str, Any]], Plan]
"""Makes the plan of a conversion, given its formats and the provenance of the store."""

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
) -> Path:
    """Convert a checkpoint (folder, .gguf file or hub id) to a store at `destination`; returns its path.

    `experts`, `dense` and `head` name formats (see `FormatChoice`); without them quantised blocks carry over exactly,
    and other weights become q4 and q8. `bits`, in place of `experts`, are the most that weights of experts may have on
    average (`bits.py`). An interrupted conversion resumes; `force` discards an unfinished conversion of
    another checkpoint or with other options. A finished store of the same conversion is left unchanged. `keep` leaves
    downloaded shards in the hub's cache. `notice` receives remarks for the user before the weights are read: those of
    the source, and those that `examine` makes on the small files. With a `calibration`, matrices in formats with a
    trellis are quantised by the inputs that a text gives them, or gave when a file was made that says so.
    Raises UsageError, SourceError or StoreError; in no case is a half-written store left at `destination`.
    """

    def opened(downloads: Path) -> Source:
        return open_source(source, downloads=downloads, keep=keep, downloading=downloading)

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
    if bits is not None and choice.experts is not None:
        raise UsageError("`bits` takes the place of `experts`: expected one of them, found both.", "Leave one out.")
    target = _target(destination)
    partial = target.with_name(target.name + ".partial")
    with _disk_errors(partial):
        _refuse_foreign(partial)
        with Journal.lock(partial) as journal:
            begun = False
            try:
                existing = _existing_store(target)
                opened = open_it(partial / DOWNLOADS_FOLDER)
                try:
                    if bits is not None:
                        shapes = model_spec(opened.config).tensors()
                        choice = dataclasses.replace(choice, experts=formats_for(bits, shapes))
                    provenance = _provenance(opened, choice, calibration)
                    if existing is not None:
                        _require_same(existing, provenance)
                    else:
                        plan = planning(opened, choice, provenance)
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
                            if bits is not None:
                                said.append(f"Experts get the formats {choice.experts}.")
                            for text in (*opened.notices(), *_left_out(opened), *found, *said):
                                notice(text)
                        _begin(journal, {**provenance, "plan": plan.digest()}, force)
                        begun = True
                        _write_store(opened, plan, side_files, journal, progress, calibrated, importance)
                        _publish(partial, target)
                finally:
                    opened.close()
            except BaseException:
                if not begun and journal.identity is None:
                    _remove_partial(partial)
                raise
            _remove_partial(partial)
    return target


def _left_out(opened: Source) -> Iterator[str]:
    """Say once for each part of the checkpoint that is left out which it is."""
    unused = unused_tensors(opened.config, opened.tensors())
    for part in (FURTHER_TOKENS, VISION, AUDIO, INDEXER):
        names = [name for name, reason in unused.items() if reason == part]
        if names:
            which = f"{len(names)} tensors, such as {names[0]}, are left out: they belong"
            yield (which if len(names) > 1 else f"1 tensor, {names[0]}, is left out: it belongs") + f" to {part}."


def _target(destination: str | os.PathLike[str]) -> Path:
    """The destination as an absolute path with a name of its own."""
    text = os.fspath(destination)
    found = expanded(text)
    if found is None and text:
        raise UsageError(
            f"{text}: expected a folder to make, found no home folder that {Path(text).parts[0]} stands for.",
            f"Give the path without it; for a folder of that name, ./{text}.",
        )
    path = (found or Path()).absolute()
    if not text or "\0" in text or path.name in ("", ".."):
        raise UsageError(f"{text!r}: expected a folder to make.", "Give it a name, such as ./my-model.")
    return path


@functools.cache
def edgemoe_version() -> str:
    """The version of this program, as its installation says."""
    try:
        return importlib.metadata.version("edgemoe")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _provenance(source: Source, choice: FormatChoice, calibration: Weighed) -> dict[str, Any]:
    """A store's source, formats and program version: the same provenance gives the same bytes.

    With a calibration, whose sums libraries compute, that is so on machines of one kind.
    """
    return {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "edgemoe": edgemoe_version(),
        **vars(choice),
        **({CALIBRATION: calibration.described()} if calibration else {}),
    }


def _pass(source: Source, plan: Plan, calibration: Calibration, side_files: Mapping[str, bytes]) -> CalibrationPass:
    """The pass that calibrates. Raises UsageError for a text or a model for which there is none."""
    from edgemoe.conversion.calibration.passing import CalibrationPass  # imports the engine

    store = Store(Path(), plan.manifest)
    graph = build_graph(store_spec(store), build_options(store))
    windows = Windows.of(calibration, side_files, graph.spec.vocab_size, min(graph.longest_contexts))
    return CalibrationPass(source, plan, graph, windows, calibration.feedback)


def _existing_store(target: Path) -> Store | None:
    """The store that stands at the destination already; None where the place is free."""
    if not target.exists() and not target.is_symlink():
        return None
    if target.is_dir() and not any(target.iterdir()):
        return None
    way_out = "Give another destination, or remove it first."
    if not (target / MANIFEST_NAME).is_file():
        raise UsageError(f"{target}: exists, and is not a store.", way_out)
    try:
        store = Store.open(target)
    except StoreError as problem:
        raise UsageError(f"{target}: exists, and is a damaged store ({problem.message})", way_out) from None
    try:
        check_side_files(store)
    except StoreError as problem:
        raise UsageError(f"{target}: exists, and was altered ({problem.message})", problem.hint) from None
    return store


def _require_same(existing: Store, provenance: Mapping[str, Any]) -> None:
    found = existing.manifest.provenance
    different = [key for key in (*provenance, CALIBRATION) if found.get(key) != provenance.get(key)]
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
        for key in ("source", "edgemoe", *vars(BY_DEFAULT), CALIBRATION)
        if found.get(key) != wanted.get(key)
    ]
    return "; ".join(texts) or "the checkpoint has changed"


def _refuse_foreign(partial: Path) -> None:
    """Raises UsageError if the folder for unfinished work holds files that a conversion does not make."""
    if not partial.exists() and not partial.is_symlink():
        return
    ours = {JOURNAL_NAME, STORE_FOLDER, DOWNLOADS_FOLDER}
    names = {path.name for path in partial.iterdir()} if partial.is_dir() else {partial.name}
    if names - ours:
        raise UsageError(
            f"{partial}: expected an unfinished conversion there, found {sorted(names - ours)[0]}.",
            "Move it away, or give another destination.",
        )


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
) -> None:
    with StoreWriter(journal.folder / STORE_FOLDER, plan.manifest) as writer:
        _check_space(writer)
        transfer = Transfer(source, plan, writer, journal, progress, importance)
        transfer.run(() if calibrated is None else calibrated.numbers)
        if calibrated is not None:
            calibrated.run(Store(writer.folder, plan.manifest), transfer, journal.errors.keys())
        transfer.finish()
        writer.finish(transfer.manifest(), side_files)


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


def _publish(partial: Path, target: Path) -> None:
    """Rename the finished store to `target`, atomically and durably."""
    if target.is_dir():
        target.rmdir()  # an empty folder; if it has been filled meanwhile it stays, and this raises
    (partial / STORE_FOLDER).rename(target)
    sync_folder(target.parent)


def _remove_partial(partial: Path) -> None:
    """Remove the remains of an ended conversion. The journal's lock is held, so no other conversion uses them."""
    for name in (STORE_FOLDER, DOWNLOADS_FOLDER):
        if (partial / name).exists():
            shutil.rmtree(partial / name)
    (partial / JOURNAL_NAME).unlink()
    partial.rmdir()


@contextmanager
def _disk_errors(partial: Path) -> Iterator[None]:
    """Turns errors of the destination's disk into a StoreError with a remedy."""
    try:
        yield
    except EdgemoeError:
        raise
    except OSError as problem:
        kept = "what was done is kept: the same command goes on from there."
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{partial}: the disk is full.", f"Free some space; {kept}") from problem
        if problem.errno == errno.EFBIG:
            raise StoreError(
                f"{partial}: a file of the store is larger than this file system or account allows.",
                f"Raise the limit (ulimit -f) or give a destination elsewhere; {kept}",
            ) from problem
        raise StoreError(
            f"{partial}: cannot be written ({problem.strerror or problem}).", f"Mend that; {kept}"
        ) from problem


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
