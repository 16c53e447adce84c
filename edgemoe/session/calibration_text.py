"""The text that a conversion is calibrated with: a file, or what every Python installation has."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgemoe.conversion.calibration.importance_file import ImportanceFile
from edgemoe.conversion.calibration.settings import Calibration, TextTokens
from edgemoe.conversion.pipeline import Weighed
from edgemoe.errors import StoreError, UsageError
from edgemoe.session.text_ids import TextIds, ends_of
from edgemoe.session.tokenizer import TOKENIZER_NAME, Tokenizer

DEFAULT = "default"
"""In place of a file: the reference of Python's language, half a megabyte of English prose with code."""


def default_text() -> str:
    """The topics of Python's own help, in the order of their names. Raises UsageError where they are not installed."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError(
            "`calibrate`: the default text is Python's own help, which this installation lacks (pydoc_data).",
            "Give a file with some pages of text of the kind that the model is for.",
        ) from None
    return "\n\n".join(str(topics[name]) for name in sorted(topics))


def weighed(
    text: str | os.PathLike[str] | None, tokens: int, feedback: bool, importance: str | os.PathLike[str] | None
) -> Weighed:
    """Return what a conversion weighs errors by: a text (a file, or `default`), a file of importance, or nothing.

    Raises UsageError for a text that cannot be read, for both, and for a number of tokens below 1; SourceError.
    """
    if tokens < 1:
        raise UsageError(f"`calibrate_tokens`: expected 1 or more, found {tokens}.")
    if text is None:
        return None if importance is None else ImportanceFile.read(Path(importance))
    if importance is not None:
        raise UsageError("`importance` takes the place of `calibrate`: expected one, found both.", "Leave one out.")
    if os.fspath(text) == DEFAULT:
        return Calibration(default_text(), DEFAULT, tokenised, tokens, feedback)
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"`calibrate`: {os.fspath(text)} cannot be read ({reason}).", "Give a file of text.") from None
    return Calibration(content, Path(text).name, tokenised, tokens, feedback)


def tokenised(files: Mapping[str, bytes], vocabulary: int, text: str, tokens: int) -> TextTokens:
    """A text's first tokens by the tokenizer among these files.

    Special tokens in the text are text too. Raises UsageError without a tokenizer, or for one that cannot be read.
    """
    if TOKENIZER_NAME not in files:
        raise UsageError(
            f"`calibrate`: the checkpoint has no {TOKENIZER_NAME}, so the model cannot read a text.",
            "Add its tokenizer to the checkpoint, or convert it without calibration.",
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        try:
            tokenizer = Tokenizer.load(folder, vocabulary)
            ids = TextIds.of(text, tokenizer, tokens).ids
            return TextTokens(ids, *ends_of(tokenizer), tokenizer.gap_marks)
        except StoreError as problem:
            raise UsageError(f"`calibrate`: {problem.message}".replace(f"{folder}/", ""), problem.hint) from None
