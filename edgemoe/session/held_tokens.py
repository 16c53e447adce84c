"""The token ids whose keys and values the engine holds, so that only new tokens are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgemoe.engine.phase import VERIFY
from edgemoe.errors import EdgemoeError
from edgemoe.session.draft_gate import StepCosts
from edgemoe.session.drafts import Drafts, Guesses

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgemoe.engine.engine import Engine
    from edgemoe.session.draft_model import DraftModel


class HeldTokens:
    """An engine with the ids it has seen. Invariant: `len(ids) == engine.position`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids: list[int] = []
        self._input: list[int] = []
        self.costs = StepCosts()
        """The times of this engine's steps, with drafts and without."""
        self.draft_model: DraftModel | None = None
        """The model that guesses; None where guesses repeat what followed the same tokens earlier."""
        self._guesses: Guesses | None = None
        engine.rewind(0)

    def guesses(self, token_ids: Sequence[int]) -> Guesses:
        """The guesses for a text that begins with these tokens, which take the place of those for the text before."""
        self.end_guesses()
        if self.draft_model is None:
            self._guesses = Drafts(token_ids)
        else:
            self._guesses = self.draft_model.begin(token_ids, self.engine.sequence)
        return self._guesses

    def end_guesses(self) -> None:
        """Give the place of the guesses in a draft model to another text."""
        if self._guesses is not None:
            self._guesses.end()

    @property
    def start(self) -> list[int] | None:
        """The tokens with which the text of a model with an encoder begins; None for any other."""
        encoder = self.engine.spec.encoder
        return None if encoder is None else [encoder.start_token]

    def read(self, token_ids: Sequence[int]) -> int:
        """Give a model with an encoder its input, unless that is the one it has; returns the tokens that were run."""
        self.rewind(0)
        if list(token_ids) == self._input:
            return 0
        self._input = []
        self.engine.encode(token_ids)
        self._input = list(token_ids)
        return len(token_ids)

    def keep_prefix(self, token_ids: Sequence[int]) -> int:
        """Forget all but the longest common prefix with `token_ids`; returns its length.

        The last of `token_ids` is never kept, as its logits are to be computed.
        """
        common = 0
        for held, wanted in zip(self.ids, token_ids[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        self.rewind(common)
        tier = self.engine.sequences.tier
        if tier is not None and self.start is None and tier.kept(token_ids) > self.engine.sequence.resumes_at:
            common = self.engine.adopt(token_ids)
            self.ids = list(token_ids[:common])
        return common

    def forward(
        self, token_ids: Sequence[int], all_logits: bool = False, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Run new tokens; returns their logits, in `out` if given. Shapes: `(V,)` of the last one, or `(T, V)`.

        Raises EdgemoeError if a logit is not finite; the tokens are then not held.
        """
        try:
            logits = self.engine.forward(token_ids, all_logits=all_logits, out=out)
            check_finite(logits, self.engine.memory.kv_format)
        except BaseException:
            self.rewind(len(self.ids))  # what the failed run has left behind is not part of the sequence
            raise
        self.ids.extend(token_ids)
        return logits

    def forward_unchecked(self, token_ids: Sequence[int], out: npt.NDArray[np.float32]) -> None:
        """Run generated tokens, of which all but the first may be taken back; writes their logits `(T, V)` to `out`."""
        turn = self.engine.turn
        if len(token_ids) > 1:
            turn.phase = VERIFY
        try:
            self.engine.forward(token_ids, all_logits=True, out=out)
        finally:
            turn.begin_decoding()
        self.ids.extend(token_ids)

    def take_back(self, tokens: int) -> None:
        """Forget the last tokens, which were no part of the answer."""
        if tokens:
            self.rewind(len(self.ids) - tokens)
            self.engine.turn.step -= tokens

    @property
    def room(self) -> int:
        """How many tokens more the context has room for."""
        return self.engine.context_length - len(self.ids)

    def rewind(self, position: int) -> None:
        """Forget everything from this position on."""
        del self.ids[position:]
        self.engine.rewind(position)


def check_finite(logits: npt.NDArray[np.float32], kv_format: str) -> None:
    """Raises EdgemoeError for logits that are not finite, with the remedy for this format of keys and values."""
    if math.isfinite(logits.min()) and math.isfinite(logits.max()):
        return
    way_out = "Its weights are damaged or overflow: check a store with edgemoe verify, or download a GGUF file again."
    if kv_format == "f16":
        way_out = (
            "A key or value may be beyond float16, which ends at 65504: open the model with `kv=q8`. If that does not"
            " help, its weights are damaged: check a store with edgemoe verify, or download a GGUF file again."
        )
    raise EdgemoeError("the model's logits are not all finite numbers.", way_out)
