"""Text to token ids and back, with the tokenizer.json of the model (read by the `tokenizers` library)."""

from __future__ import annotations

import numbers
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.process import no_threads
from edgemoe.session.model_files import read_json_object, read_text
from edgemoe.session.template import special_tokens

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_LIMIT_BYTES = 64 << 20
ENCODE_LIMIT_SECONDS = 30.0
LONGEST_TOKEN_CHARACTERS = 1 << 16
"""More than any honest token stands for, less than would hurt."""
HELD_TOKENS = 32
"""Tokens after which an unfinished character is given up for broken: four make the longest one."""

Result = TypeVar("Result")


class Tokenizer:
    """A tokenizer, and the tokens that end an answer.

    A store may have none (random weights have none): then there are ids without text, and whatever needs text
    raises StoreError.
    """

    def __init__(self, library_tokenizer: tokenizers.Tokenizer | None, vocabulary: int, stop_ids: frozenset[int]):
        self._tokenizer = library_tokenizer
        self.vocabulary = vocabulary
        self.stop_ids = stop_ids

    @property
    def has_text(self) -> bool:
        """Whether ids stand for text."""
        return self._tokenizer is not None

    def require(self) -> tokenizers.Tokenizer:
        """The library's tokenizer. Raises StoreError where the store has none."""
        if self._tokenizer is None:
            raise StoreError(
                "this model has no tokenizer (tokenizer.json), so it can neither read nor write text.",
                "Give it token ids, from Python; a model that was converted from a checkpoint has one.",
            )
        return self._tokenizer

    @classmethod
    def load(cls, folder: Path, vocabulary: int) -> Tokenizer:
        """The tokenizer of a model folder whose model has `vocabulary` rows in its embedding. Raises StoreError."""
        library_tokenizer = load_library_tokenizer(folder)
        return cls(library_tokenizer, vocabulary, stop_ids(folder, library_tokenizer))

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """The ids of a text. `special_tokens` adds what the tokenizer puts around a plain text (such as BOS).

        Markers like `<|im_start|>` in the text become their tokens either way, as chat templates need.
        Raises UsageError for a text that is not Unicode or takes too long, StoreError for ids beyond the vocabulary
        and where there is no tokenizer.
        """
        tokenizer = self.require()
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text is not valid Unicode: expected UTF-8, found a stray byte or surrogate at {error.start}.",
                "Convert it to UTF-8 first, for example with iconv.",
            ) from None
        ids: list[int] = _within(
            ENCODE_LIMIT_SECONDS,
            # only the batch call lets other threads run meanwhile, so that the time can be limited
            lambda: tokenizer.encode_batch([text], add_special_tokens=special_tokens)[0].ids,
        )
        if ids and max(ids) >= self.vocabulary:
            raise StoreError(
                f"tokenizer.json: expected ids below {self.vocabulary} (the model's vocabulary), found {max(ids)}.",
                "The tokenizer belongs to another model: copy the original one.",
            )
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids.

        Raises UsageError for an id outside the vocabulary, StoreError without a tokenizer or where it fails.
        """
        check_token_ids(token_ids, self.vocabulary)
        tokenizer = self.require()
        try:
            text = tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is a BaseException
            raise _failure("these ids", error) from None
        if len(text) > LONGEST_TOKEN_CHARACTERS * max(1, len(token_ids)):
            raise StoreError(
                f"tokenizer.json: it makes {len(text)} characters of {len(token_ids)} tokens.",
                "It is broken or hostile: copy the original model's.",
            )
        return text


def check_token_ids(token_ids: Sequence[int], vocabulary: int) -> None:
    """Raises UsageError where an id is not a token of the model."""
    for token in token_ids:
        if not isinstance(token, numbers.Integral) or not 0 <= token < vocabulary:
            raise UsageError(
                f"token id {token!s:.80}: expected 0 to {vocabulary - 1}.",
                "Were the ids made with this model's tokenizer?",
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder has a tokenizer.json; whether it ought to have one, its manifest says."""
    return (folder / TOKENIZER_NAME).exists()


def load_library_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer.json of a folder. Raises StoreError where it is missing, too large or does not load."""
    import tokenizers

    path = folder / TOKENIZER_NAME
    text = read_text(path, TOKENIZER_LIMIT_BYTES)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is a BaseException
        raise StoreError(
            f"{path}: the tokenizer does not load ({str(error)[:300]}).",
            "The file is damaged or made for a newer tokenizers library: copy the original model's again,"
            " or update tokenizers.",
        ) from None
    tokenizer.no_truncation()  # some files carry the training's limits, which would cut prompts in silence
    tokenizer.no_padding()
    return tokenizer


class Detokeniser:
    """Turns ids into text one at a time: the pieces put together are the text of all ids.

    A character whose bytes are spread over several tokens comes out whole with the last of them. Each
    piece is found by decoding a few ids before it too, as some decoders drop the space that begins a text.
    Without a tokenizer all pieces are empty.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before`: the ids that stand before the first one, whose text is already known."""
        self._tokenizer = tokenizer
        self._ids = list(before[-8:])
        self._done = len(self._ids)  # ids before it are context, those from it on wait for their text

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        if not self._tokenizer.has_text:
            return ""
        self._ids.append(token)
        return self._take(last=len(self._ids) - self._done >= HELD_TOKENS)

    def finish(self) -> str:
        """The text of what is still held back: an unfinished character, as U+FFFD."""
        return self._take(last=True) if self._done < len(self._ids) else ""

    def _take(self, last: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._done])
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd") and not last:
            return ""
        # what has just been decoded is the context of the next piece
        del self._ids[: self._done]
        self._done = len(self._ids)
        return text[len(before) :]


def stop_ids(folder: Path, tokenizer: tokenizers.Tokenizer | None) -> frozenset[int]:
    """The ids that end an answer: generation_config.json's, or config.json's, and the tokenizer's own."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value: Any = read_json_object(folder / name, required=False).get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        ids |= {entry for entry in listed if isinstance(entry, int) and not isinstance(entry, bool)}
        if ids:
            break
    eos = special_tokens(read_json_object(folder / "tokenizer_config.json", required=False)).get("eos_token")
    if eos is not None and tokenizer is not None:
        token = tokenizer.token_to_id(eos)
        ids |= set() if token is None else {token}
    return frozenset(ids)


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """The result of `work`, done on a thread of its own. Raises UsageError when it takes longer."""
    result: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # a panic of the library is a BaseException
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise UsageError(
            f"the text could not be tokenised within {seconds:.0f} seconds.",
            "Shorten it; if it is short already, tokenizer.json is broken or hostile: copy the original model's.",
        )
    if errors:
        raise _failure("this text", errors[0])
    return result[0]


def _failure(what: str, error: BaseException) -> EdgemoeError:
    if "ThreadPoolBuildError" in str(error):  # the library panics where the system starts no thread for it
        return no_threads("The tokenizer cannot begin")
    return StoreError(
        f"tokenizer.json: it fails on {what} ({str(error)[:300]}).",
        "The file is damaged: copy the original model's again.",
    )
