"""Logarithms of probabilities, and the answer that keeps them."""

from __future__ import annotations

import numpy as np

from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.continuation import Continuation
from edgemoe.session.logprobs import LogprobReader
from edgemoe.session.tokenizer import Tokenizer


def test_the_likeliest_come_in_order_and_the_lower_id_first_on_a_tie() -> None:
    logits = np.log(np.array([1, 4, 2, 4, 5], np.float32))
    found = LogprobReader(logits, 4).of(2)
    assert [token for token, _ in found.top] == [4, 1, 3, 2]
    assert np.allclose(np.exp([value for _, value in found.top]), [5 / 16, 4 / 16, 4 / 16, 2 / 16])
    assert (found.token, found.logprob) == (2, found.top[3][1])
    assert LogprobReader(logits, 0).of(0).top == ()
    assert len(LogprobReader(logits, 20).of(0).top) == 5


def test_an_answer_keeps_what_the_model_says_before_penalties(tokenizer: Tokenizer) -> None:
    options = SamplingOptions(presence_penalty=2.0)
    written = Continuation(tokenizer, [5], options, 3, 100, 2)
    logits = np.random.default_rng(3).normal(size=tokenizer.vocabulary).astype(np.float32)
    for _ in range(3):
        token = written.choose(logits.copy())
        assert token is not None
        written.take(token)
    assert written.finish_reason == "length"
    assert [one.token for one in written.logprobs] == written.token_ids
    assert {one.top for one in written.logprobs} == {LogprobReader(logits, 2).of(0).top}
    assert len(set(written.token_ids)) > 1
