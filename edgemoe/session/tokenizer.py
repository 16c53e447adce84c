"""Text to token ids and back, with the tokenizer.json of the model (read by the `tokenizers` library)."""

from __future__ import annotations

import itertools
import numbers
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.model.sampling import end_ids
from edgemoe.process import no_threads
from edgemoe.session.model_files import MEND, read_json_object, read_text
from edgemoe.session.special_tokens import ChannelMarkers, read_special_tokens
from edgemoe.session.twins import Twins
from edgemoe.store.tokenizer_config import CONFIG_NAME
from edgemoe.store.tokenizer_file import library_tokenizer

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_LIMIT_BYTES = 64 << 20
ENCODE_LIMIT_SECONDS = 30.0
SLICE_SECONDS = 0.25
LONGEST_TOKEN_CHARACTERS = 1 << 16
"""Limit on the text of one token: longer than any real token, short enough to be harmless."""
CONTEXT_TOKENS = 8
"""Tokens with text that are decoded before a new one: at least the four bytes of the longest character."""
BROKEN = "\ufffd"
"""Stands for a byte that is not UTF-8."""

GAP_TOKEN = re.compile(r"<extra_id_\d+>")
"""The special tokens that stand for gaps in a text, and before what fills them in an answer (T5)."""
BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")

Result = TypeVar("Result")


class Tokenizer:
    """A tokenizer, and the tokens that end an answer.

    A store may have no tokenizer (random weights have none): its ids then have no text, and every use of text
    raises StoreError.
    """

    def __init__(
        self,
        library_tokenizer: tokenizers.Tokenizer | None,
        vocabulary: int,
        stop_ids: frozenset[int],
        remarks: Sequence[str] = (),
        fills_gaps: bool = False,
    ) -> None:
        """`remarks`: sentences about the model's files that a person should read; `fills_gaps`: whether tokens of gaps
        are a part of answers' texts, as they are where a model fills them.
        """
        self._fills_gaps = fills_gaps
        self._tokenizer = library_tokenizer
        self.vocabulary = vocabulary
        self.stop_ids = stop_ids
        self.remarks = tuple(remarks)

    @property
    def has_text(self) -> bool:
        """Whether ids stand for text."""
        return self._tokenizer is not None

    def has_text_of(self, token: int) -> bool:
        """Whether a decoder sees this token: it is in the tokenizer's vocabulary, and not special."""
        return token not in self.special_ids and self.require().id_to_token(token) is not None

    @cached_property
    def special_ids(self) -> frozenset[int]:
        added = self.require().get_added_tokens_decoder()
        return frozenset(token for token, description in added.items() if description.special) - self._gap_ids

    @cached_property
    def _gap_ids(self) -> frozenset[int]:
        """Special tokens that have text nevertheless."""
        added = self.require().get_added_tokens_decoder() if self._fills_gaps else {}
        return frozenset(token for token, one in added.items() if GAP_TOKEN.fullmatch(one.content))

    @property
    def gap_marks(self) -> tuple[int, ...]:
        """The tokens of gaps in their order; none where the tokenizer has no such tokens."""
        found = (self.require().token_to_id(f"<extra_id_{number}>") for number in itertools.count())
        marks = itertools.takewhile(lambda one: one is not None and one < self.vocabulary, found)
        return tuple(one for one in marks if one is not None)

    @cached_property
    def channel_markers(self) -> ChannelMarkers | None:
        """The special tokens around messages with channels; None for a model without any."""
        return ChannelMarkers.of(self._tokenizer)

    @cached_property
    def _byte_fallback(self) -> bool:
        """Whether tokens such as `<0xE1>` stand for single bytes."""
        decoder = self.require().decoder
        return decoder is not None and decoder.decode(["<0xE1>"]) == BROKEN

    def require(self) -> tokenizers.Tokenizer:
        """The library's tokenizer. Raises StoreError where the store has none."""
        if self._tokenizer is None:
            raise StoreError(
                "this model has no tokenizer (tokenizer.json), so it cannot read or write text.",
                "Copy the checkpoint's tokenizer.json into the store and run edgemoe update STORE, or use token ids"
                " from Python.",
            )
        return self._tokenizer

    @classmethod
    def load(cls, folder: Path, vocabulary: int) -> Tokenizer:
        """The tokenizer of a model folder whose model has `vocabulary` rows in its embedding. Raises StoreError."""
        return cls.around(load_library_tokenizer(folder), folder, vocabulary)

    @classmethod
    def around(
        cls,
        library_tokenizer: tokenizers.Tokenizer | None,
        folder: Path,
        vocabulary: int,
        fills_gaps: bool = False,
    ) -> Tokenizer:
        """A library's tokenizer with the ends that the files of its model folder name. Raises StoreError."""
        ends = stop_ids(folder, library_tokenizer)
        remarks = tuple(_unread_ends(folder, library_tokenizer, ends, vocabulary))
        return cls(library_tokenizer, vocabulary, ends, remarks, fills_gaps)

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The texts of the special tokens, the longest first."""
        return self._twins.texts

    @cached_property
    def _twins(self) -> Twins:
        return Twins(self.require())

    def with_twins(self, text: str) -> str:
        """A text whose special tokens have the names of their twins, for `encode` with `literal`."""
        return self._twins.rename(text)

    def first_known(self, names: Iterable[str]) -> int | None:
        """The id of the first of these tokens that there is, None for none."""
        ids = (self.require().token_to_id(name) for name in names)
        return next((one for one in ids if one is not None), None)

    def encode(self, text: str, special_tokens: bool = False, literal: bool = False) -> list[int]:
        """The ids of a text. `special_tokens` adds what the tokenizer puts around a plain text (such as BOS).

        Markers like `<|im_start|>` in the text become their tokens either way, as chat templates need; with `literal`
        those that are special tokens are text like any other. Raises UsageError for a text that is not Unicode or takes
        too long, or that cannot be literal, StoreError for ids beyond the vocabulary and where there is no tokenizer.
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
            lambda: (
                self._twins.encode(text, special_tokens)
                if literal
                else tokenizer.encode_batch([text], add_special_tokens=special_tokens)[0].ids
            ),
        )
        if ids and max(ids) >= self.vocabulary:
            raise StoreError(
                f"tokenizer.json: expected ids below {self.vocabulary} (the model's vocabulary), found {max(ids)}.",
                f"The tokenizer belongs to another model. {MEND}",
            )
        return ids

    def doubled_beginning(self, token_ids: Sequence[int]) -> str | None:
        """The token that begins a plain text, where these ids begin with it twice."""
        around = self.encode("", special_tokens=True)
        if around and list(token_ids[:2]) == [around[0]] * 2 and around[0] in self.special_ids:
            return self.require().id_to_token(around[0])
        return None

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids.

        Raises UsageError for an id outside the vocabulary, StoreError without a tokenizer or where it fails.
        """
        check_token_ids(token_ids, self.vocabulary)
        tokenizer = self.require()
        token_ids = list(token_ids)
        if skip_special_tokens and self._fills_gaps:  # the library would leave gaps out too
            token_ids = [token for token in token_ids if token not in self.special_ids]
            skip_special_tokens = False
        try:
            text = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
            if BROKEN in text and self._byte_fallback:
                # The library drops all characters of a run of bytes if one of them is broken.
                seen = (t for t in token_ids if not skip_special_tokens or t not in self.special_ids)
                tokens = (tokenizer.id_to_token(token) for token in seen)
                text = tokenizer.decoder.decode(with_whole_characters([t for t in tokens if t is not None]))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is a BaseException
            raise _failure("these ids", error) from None
        if len(text) > LONGEST_TOKEN_CHARACTERS * max(1, len(token_ids)):
            raise StoreError(
                f"tokenizer.json: it decodes {len(token_ids)} tokens to {len(text)} characters.",
                f"It is broken or hostile. {MEND}",
            )
        return text


def with_whole_characters(tokens: Sequence[str]) -> list[str]:
    """The tokens, with U+FFFD for each byte (such as `<0xE1>`) that belongs to no whole character.

    SentencePiece decodes runs of bytes in this way: characters stay whole whatever stands beside them.
    """
    result: list[str] = []
    for is_byte, group in itertools.groupby(tokens, lambda token: BYTE_TOKEN.fullmatch(token) is not None):
        run = list(group)
        if not is_byte:
            result += run
            continue
        at = 0
        # surrogateescape makes one surrogate of each byte that is not UTF-8
        for character in bytes(int(token[3:5], 16) for token in run).decode("utf-8", errors="surrogateescape"):
            broken = "\udc80" <= character <= "\udcff"
            size = 1 if broken else len(character.encode())
            result += [BROKEN] if broken else run[at : at + size]
            at += size
    return result


def check_token_ids(token_ids: Sequence[int], vocabulary: int) -> None:
    """Raises UsageError where an id is not a token of the model."""
    for token in token_ids:
        # `isinstance` of an abstract class takes longer than all else about a token that is decoded
        if not (type(token) is int or isinstance(token, numbers.Integral)) or not 0 <= token < vocabulary:
            raise UsageError(
                f"token id {token!s:.80}: expected 0 to {vocabulary - 1}.",
                "Were the ids made with this model's tokenizer?",
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder has a tokenizer.json; whether it ought to have one, its manifest says."""
    return (folder / TOKENIZER_NAME).exists()


def load_library_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer.json of a folder, with the special tokens that the other files name.

    Raises StoreError where it is missing, too large or does not load, or where it cannot have the ids that files give.
    """
    path = folder / TOKENIZER_NAME
    text = read_text(path, TOKENIZER_LIMIT_BYTES)
    try:
        tokenizer = library_tokenizer(text)
        read_special_tokens(folder).add_to(tokenizer)
    except (KeyboardInterrupt, SystemExit, StoreError):
        raise
    except BaseException as error:  # a panic of the library is a BaseException
        raise StoreError(
            f"{path}: the tokenizer does not load ({str(error)[:300]}).",
            f"The file is damaged, or made for a newer version of the package tokenizers. {MEND}",
        ) from None
    tokenizer.no_truncation()  # some files carry the training's limits, which would cut prompts in silence
    tokenizer.no_padding()
    return tokenizer


class Detokeniser:
    """Turns ids into text one at a time: the pieces put together are what the ids add to the text before them.

    A character whose bytes are spread over several tokens comes out whole with the last of them, also where the first
    of them end the text before. Each piece is found by decoding a few ids before it too, as some decoders drop the
    space that begins a text. These ids may begin inside a character: `Tokenizer.decode` reads bytes so that only the
    last character depends on what follows. Without a tokenizer all pieces are empty.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before`: the ids that stand before the first one, whose text is already known."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the context, and what came since
        self._said = ""  # the part of their text that has been returned
        if tokenizer.has_text:
            self._ids = [token for token in before[-CONTEXT_TOKENS:] if tokenizer.has_text_of(token)]
            self._said = tokenizer.decode(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        if not self._tokenizer.has_text or not self._tokenizer.has_text_of(token):
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip(BROKEN)
        # The longest character has four bytes: what is broken before the last three stays broken.
        piece = self._say(text[: max(len(whole), len(text) - 3)])
        if len(self._ids) >= 2 * CONTEXT_TOKENS:
            unsaid = len(text) - _common_length(text, self._said)
            self._ids = self._ids[-CONTEXT_TOKENS:]
            text = self._tokenizer.decode(self._ids)
            self._said = text[: len(text) - unsaid]
        return piece

    def finish(self) -> str:
        """The text of what is still held back: an unfinished character, as U+FFFD."""
        return self._say(self._tokenizer.decode(self._ids)) if self._ids else ""

    def _say(self, text: str) -> str:
        # Of what stood before, U+FFFD for an unfinished character gives way to the character.
        piece = text[_common_length(text, self._said) :]
        if piece:
            self._said = text
        return piece


def stop_ids(folder: Path, tokenizer: tokenizers.Tokenizer | None) -> frozenset[int]:
    """The ids that end an answer: all that generation_config.json, config.json and the tokenizer name, and channels do.

    Raises StoreError where a file names something else than ids.
    """
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        config = read_json_object(folder / name, required=False)
        try:
            ids.update(end_ids(config))
        except UsageError as error:
            raise StoreError(f"{folder / name}: {error.message}", f"Repair it. {MEND}") from None
    eos = read_special_tokens(folder).names.get("eos_token")
    if eos is not None and tokenizer is not None:
        token = tokenizer.token_to_id(eos)
        ids |= set() if token is None else {token}
    markers = ChannelMarkers.of(tokenizer)
    return frozenset(ids if markers is None else ids | {markers.stop, markers.call})


def _unread_ends(
    folder: Path, tokenizer: tokenizers.Tokenizer | None, ids: frozenset[int], vocabulary: int
) -> Iterator[str]:
    """A sentence for each end of an answer that the files name and the model cannot generate."""
    for token in sorted(token for token in ids if token >= vocabulary):
        yield f"eos_token_id {token} ends no answer: this model's token ids are those below {vocabulary}."
    eos = read_special_tokens(folder).names.get("eos_token")
    if eos is not None and tokenizer is not None and tokenizer.token_to_id(eos) is None:
        yield f"{CONFIG_NAME}: eos_token {eos!r:.80} is not in the vocabulary: it ends no answer."


def _common_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    if one.startswith(other):  # nearly always, at the speed of C
        return len(other)
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _within(seconds: float, work: Callable[[], Result]) -> Result:
    """The result of `work`, done on a thread of its own. Raises UsageError when it takes longer.

    The time is counted in short slices, so that the one in which this program was stopped (Ctrl-Z) does not count.
    """
    result: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # a panic of the library is a BaseException
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    slices = max(1, round(seconds / SLICE_SECONDS))
    for _ in range(slices):
        thread.join(seconds / slices)
        if not thread.is_alive():
            break
    if thread.is_alive():
        raise UsageError(
            f"the text could not be tokenised within {seconds:.0f} seconds.",
            f"Shorten it; if it is short already, tokenizer.json is broken or hostile. {MEND}",
        )
    if errors:
        raise errors[0] if isinstance(errors[0], UsageError) else _failure("this text", errors[0])
    return result[0]


def _failure(what: str, error: BaseException) -> EdgemoeError:
    if "ThreadPoolBuildError" in str(error):  # the library panics where the system starts no thread for it
        return no_threads("The tokenizer cannot start")
    return StoreError(
        f"tokenizer.json: it cannot process {what} ({str(error)[:300]}).",
        f"The file is damaged. {MEND}",
    )
