"""Reads SentencePiece models (tokenizer.model, spiece.model): BPE by scores, or unigram."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from edgemoe.conversion.tokenizers.building import SPACE, add_around, in_pieces, scored_merges
from edgemoe.conversion.tokenizers.made import (
    DAMAGED,
    LONGEST_TOKEN_BYTES,
    Made,
    Special,
    add_specials,
    described,
    library_errors,
)
from edgemoe.errors import SourceError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_UNIGRAM, _BPE = 1, 2
_AROUND = {"T5Tokenizer": (False, True), "Ernie4_5_Tokenizer": (False, False)}
"""Whether texts begin with BOS and end with EOS, by the class of tokenizer_config.json; others' begin with BOS."""
_GAPS = 100
"""Tokens of gaps in a text that T5 has where its settings do not count them."""
_MOST_GAPS = 1000


def read_pieces(file: str, content: bytes, settings: Mapping[str, Any], vocab_size: int) -> Made:
    """The tokenizer of a SentencePiece model, by the settings of its tokenizer_config.json. Raises SourceError.

    Tokens of BPE are SentencePiece's own for every text. Unigram's differ, as those of published tokenizer.json files
    do, where two cuts have equal sums of scores, which both libraries round in their own way, and where combining marks
    follow characters that are normalised, of which `tokenizers` loses some.
    """
    by_default = "T5Tokenizer" if file == "spiece.model" else ""
    named = str(settings.get("tokenizer_class") or by_default).removesuffix("Fast")
    model = _parse(file, content)
    pieces = [(piece.piece, float(piece.score), int(piece.type)) for piece in model.pieces]
    _check(file, model, pieces)
    ids = {text: number for number, (text, _, _) in enumerate(pieces)}
    specials = {number: token for number, token in described(settings).items() if number >= len(pieces)}
    if named == "T5Tokenizer" and not specials and "<extra_id_0>" not in ids:
        specials = dict(_gaps(len(pieces), settings))
    with library_errors(file):
        if model.trainer_spec.model_type == _BPE:
            ids |= {token.text: number for number, token in specials.items()}
            built: models.Model = _bpe(pieces, ids, model)
        else:
            built = _unigram(pieces, model)
        tokenizer = in_pieces(built, model.normalizer_spec.add_dummy_prefix, list(_normalizers(model.normalizer_spec)))
        _keep_whole(tokenizer, [text for text, _, kind in pieces if kind == _USER_DEFINED])
        add_specials(tokenizer, [Special(text) for text, _, kind in pieces if kind in (_CONTROL, _UNKNOWN)])
        add_specials(tokenizer, specials.values())
    spec = model.trainer_spec
    texts = {"bos": spec.bos_piece, "eos": spec.eos_piece, "unk": spec.unk_piece, "pad": spec.pad_piece}
    names = {f"{name}_token": text for name, text in texts.items() if text in ids}
    begins, ends = _AROUND.get(named, (True, False))
    add_around(
        tokenizer,
        names.get("bos_token") if _setting(settings, "add_bos_token", begins) else None,
        names.get("eos_token") if _setting(settings, "add_eos_token", ends) else None,
    )
    return Made(tokenizer, names)


def _parse(file: str, content: bytes) -> Any:
    """The model as the package's own description of the format reads it."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise SourceError(
            f"{file} needs the package `sentencepiece`, which is not installed.",
            "Run: pip install 'edgemoe[sentencepiece]'",
        ) from error
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made as the module is imported
    with contextlib.suppress(DecodeError):
        model.ParseFromString(content)
        if model.pieces and all(
            isinstance(piece.piece, str) for piece in model.pieces
        ):  # bytes that are not UTF-8 stay
            return model
    raise SourceError(f"{file}: expected a SentencePiece model, found something else.", DAMAGED)


def _check(file: str, model: Any, pieces: list[tuple[str, float, int]]) -> None:
    """Raises SourceError for a model that is damaged or that the library `tokenizers` cannot express."""
    trained, normal = model.trainer_spec, model.normalizer_spec
    texts = {text for text, _, _ in pieces}
    wrong = (
        (len(texts) < len(pieces), "each piece once", "one of them twice"),
        ("" in texts, "pieces with text", "an empty one"),
        (any(len(text.encode()) > LONGEST_TOKEN_BYTES for text in texts), "pieces as long as words", "a longer one"),
        (any(score != score for _, score, _ in pieces), "scores that are numbers", "another"),
        (trained.model_type not in (_UNIGRAM, _BPE), "BPE or unigram", f"the model type {trained.model_type}"),
        (all(kind != _UNKNOWN for _, _, kind in pieces), "a piece for unknown text", "none"),
        (trained.treat_whitespace_as_suffix, "spaces before words", "spaces after them"),
        (not normal.escape_whitespaces, f"{SPACE} for spaces", "spaces as they are"),
        (
            trained.model_type == _UNIGRAM and any(kind == _UNUSED for _, _, kind in pieces),
            "pieces that are all used",
            "unused ones",
        ),
    )
    for failed, expected, found in wrong:
        if failed:
            raise SourceError(f"{file}: expected {expected}, found {found}.", DAMAGED)


def _bpe(pieces: list[tuple[str, float, int]], ids: Mapping[str, int], model: Any) -> models.BPE:
    joined = {text: number for number, (text, _, kind) in enumerate(pieces) if kind == _NORMAL}
    scores = [score for _, score, kind in pieces if kind == _NORMAL]
    return models.BPE(
        vocab=dict(ids),
        merges=scored_merges(list(joined), scores, joined),
        unk_token=next(text for text, _, kind in pieces if kind == _UNKNOWN),
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        # A piece that is kept whole need not follow from merges.
        ignore_merges=any(kind == _USER_DEFINED for _, _, kind in pieces),
    )


def _unigram(pieces: list[tuple[str, float, int]], model: Any) -> models.Unigram:
    unknown = next(number for number, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN)
    return models.Unigram([(text, score) for text, score, _ in pieces], unknown, model.trainer_spec.byte_fallback)


def _normalizers(spec: Any) -> Iterator[normalizers.Normalizer]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")


def _keep_whole(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Cut text around these pieces, of which the longest counts."""
    if texts:
        pattern = "|".join(_escaped(text) for text in sorted(texts, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")


def _escaped(text: str) -> str:
    """A pattern that matches this text alone."""
    return "".join(rf"\x{{{ord(character):x}}}" for character in text)


def _gaps(begin: int, settings: Mapping[str, Any]) -> Iterator[tuple[int, Special]]:
    """The tokens of gaps by id, which are numbered backwards."""
    given = settings.get("extra_ids")
    count = given if type(given) is int and 0 <= given <= _MOST_GAPS else _GAPS
    for place in range(count):
        yield begin + place, Special(f"<extra_id_{count - 1 - place}>")


def _setting(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key)
    return value if isinstance(value, bool) else default
