"""An answer's ids as text in which special tokens stand by their names, as forms of answers need it."""

from __future__ import annotations

from collections.abc import Sequence

from edgemoe.session.tokenizer import Detokeniser, Tokenizer


class SpelledTexts:
    """As `Detokeniser`, with the names of special tokens as their texts."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        """`before`: the ids that stand before the first one."""
        self._tokenizer = tokenizer
        special = tokenizer.special_ids if tokenizer.has_text else frozenset()
        last = max((place + 1 for place, token in enumerate(before) if token in special), default=0)
        self._special = special
        self._texts = Detokeniser(tokenizer, before[last:])

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        if token not in self._special:
            return self._texts.push(token)
        rest = self._texts.finish()
        self._texts = Detokeniser(self._tokenizer)
        return rest + (self._tokenizer.require().id_to_token(token) or "")

    def finish(self) -> str:
        """The text of what is still held back."""
        return self._texts.finish()
