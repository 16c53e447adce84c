"""Published settings mean what they mean in transformers.

Expected values: transformers 5.24.0, `GenerationMixin._get_logits_processor` on a GenerationConfig with the same
settings and `eos_token_id=[7, 11]`, `input_ids_seq_length=len(PROMPT)`, applied to PROMPT + answer and LOGITS in
float32. None is -inf. `test_against_transformers.py` compares live.
"""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from edgemoe.errors import UsageError
from edgemoe.model.sampling import SamplingOptions, read_generation_config
from edgemoe.session import processors as processors_module
from edgemoe.session.processors import processors
from edgemoe.session.sampler import Sampler, candidates
from tests.support.every_case import every_case

LOGITS = [1.5, -0.25, 3.0, 0.5, -2.0, 2.25, 0.0, 2.75, -1.0, 1.0, 0.75, -0.5]
PROMPT = [2, 5, 7, 2, 5, 9]
ENDS = frozenset({7, 11})

Config = dict[str, Any]

CASES: list[tuple[Config, list[int], dict[int, float | None]]] = [
    (
        {"repetition_penalty": 1.3},
        [3, 2],
        {
            2: 2.307692289352417, 3: 0.38461539149284363, 5: 1.7307692766189575, 7: 2.115384578704834,
            9: 0.7692307829856873,
        },
    ),
    (
        {"repetition_penalty": 0.8},
        [3, 2, 4],
        {2: 3.75, 3: 0.625, 4: -1.600000023841858, 5: 2.8125, 7: 3.4375, 9: 1.25},
    ),
    ({"no_repeat_ngram_size": 2}, [2], {5: None}),
    ({"no_repeat_ngram_size": 3}, [2, 5], {7: None, 9: None}),
    ({"no_repeat_ngram_size": 1}, [], {2: None, 5: None, 7: None, 9: None}),
    ({"no_repeat_ngram_size": 9}, [], {}),
    ({"bad_words_ids": [[0], [9, 3], [5, 9, 6], [7], [7, 11], [1, 2, 5, 7, 2, 5, 9, 8, 8]]}, [],
     {0: None, 3: None, 6: None}),
    ({"bad_words_ids": [[0], [9, 3], [5, 9, 6], [7], [7, 11]]}, [3, 7], {0: None, 11: None}),
    ({"min_length": 7}, [], {7: None, 11: None}),
    ({"min_length": 7}, [3], {}),
    ({"min_new_tokens": 2}, [3], {7: None, 11: None}),
    ({"min_new_tokens": 2, "min_length": 99}, [3, 4], {}),
    ({"suppress_tokens": [2, 7, 500]}, [2], {2: None, 7: None}),
    ({"begin_suppress_tokens": [2, 3]}, [], {2: None, 3: None}),
    ({"begin_suppress_tokens": [2, 3]}, [5], {}),
    (
        {
            "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words_ids": [[0], [2, 10]], "min_new_tokens": 3,
            "suppress_tokens": [5], "begin_suppress_tokens": [2],
        },
        [2],
        {0: None, 2: 2.5, 5: None, 7: None, 9: 0.8333333134651184, 10: None, 11: None},
    ),
]  # fmt: skip
"""Settings, the answer so far, and the logits that they change."""

DRAWN: list[tuple[Config, list[int], dict[int, float]]] = [
    (
        {
            "temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8, "repetition_penalty": 1.3,
            "bad_words_ids": [[2]],
        },
        [3],
        {0: 0.208364093, 5: 0.28973231, 7: 0.501903597},
    ),
    ({"typical_p": 0.5}, [], {2: 0.444213979, 5: 0.209831826, 7: 0.345954195}),
    ({"typical_p": 0.2, "temperature": 1.4}, [], {0: 0.369185087, 5: 0.630814913}),
    (
        {"repetition_penalty": 1.5, "top_p": 0.6, "temperature": 2.0},
        [2, 2],
        {0: 0.194073947, 2: 0.249195881, 5: 0.194073947, 7: 0.229271283, 10: 0.133384943},
    ),
    (
        {"top_k": 4, "suppress_tokens": [2, 5]},
        [],
        {0: 0.179557708, 7: 0.626717981, 9: 0.108907255, 10: 0.084817056},
    ),
]  # fmt: skip
"""Settings beside `do_sample`, the answer so far, and the probabilities with which its next token is drawn."""


def processed(options: SamplingOptions, answer: list[int], logits: list[float] = LOGITS) -> np.ndarray[Any, Any]:
    found = np.array(logits, np.float32)
    steps = processors(options, PROMPT, ENDS)
    for step in steps:
        for token in answer:
            step.add(token)
    for step in steps:
        step.apply(found)
    return found


@every_case(("config", "answer", "changed"), CASES)
def test_logits_are_those_of_transformers_to_the_bit(
    config: Config, answer: list[int], changed: dict[int, float | None]
) -> None:
    expected = np.array(LOGITS, np.float32)
    for token, value in changed.items():
        expected[token] = -math.inf if value is None else value
    assert processed(read_generation_config(config).sampling, answer).tolist() == expected.tolist()


@every_case(("config", "answer", "expected"), DRAWN)
def test_filters_follow_the_processors_as_in_transformers(
    config: Config, answer: list[int], expected: dict[int, float]
) -> None:
    options = read_generation_config({"do_sample": True, **config}).sampling
    tokens, probabilities = candidates(processed(options, answer), options)
    found = {token: p for token, p in zip(tokens.tolist(), probabilities.tolist(), strict=True) if p}
    assert found == pytest.approx(expected, rel=1e-6)  # theirs divides by the temperature in float32


def test_presence_and_frequency_penalties_count_the_tokens_of_the_answer() -> None:
    # OpenAI's API reference: mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting what was sampled so far
    options = SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25)
    found = processed(options, [3, 2, 3, 3])
    expected = np.array(LOGITS, np.float32)
    expected[2] -= 0.25 + 0.5
    expected[3] -= 3 * 0.25 + 0.5
    assert found.tolist() == expected.tolist()
    assert processed(options, []).tolist() == LOGITS  # the prompt's tokens do not count


def test_a_bias_comes_before_penalties() -> None:
    # as the sequence_bias of transformers does, whose sequences are single tokens here
    options = SamplingOptions(repetition_penalty=2.0, logit_bias={7: -5.0, 4: 2.5, 2: 1.0})
    found = processed(options, [])
    expected = np.array(LOGITS, np.float32)
    expected[[7, 4, 2]] += np.array([-5.0, 2.5, 1.0], np.float32)
    for token in set(PROMPT):
        expected[token] = expected[token] * 2 if expected[token] < 0 else expected[token] / 2
    assert found.tolist() == expected.tolist()
    assert Sampler(SamplingOptions(logit_bias={8: 100})).sample(np.array(LOGITS, np.float32)) == 8


def test_biases_are_pairs_in_order_from_either_form() -> None:
    of_json = SamplingOptions(logit_bias={"7": -5, "3": 0.5})  # type: ignore[dict-item]
    assert of_json.logit_bias == ((3, 0.5), (7, -5.0))
    assert of_json == SamplingOptions(logit_bias=[(7, -5), (3, 0.5)])
    assert of_json.changed(temperature=0.5).logit_bias == of_json.logit_bias
    for wrong in ({1: 101}, {1: math.nan}, {1: True}, {-1: 0}, {"x": 0}, {1.5: 0}, [1], [(1, 2, 3)], 5, {1: "2"}):
        with pytest.raises(UsageError, match="logit_bias: expected"):
            SamplingOptions(logit_bias=wrong)  # type: ignore[arg-type]


def test_several_answers_have_seeds_of_their_own() -> None:
    options = SamplingOptions(1.0, seed=2**64 - 2)
    assert [options.of_answer(number).seed for number in range(3)] == [2**64 - 2, 2**64 - 1, 0]
    assert SamplingOptions(1.0).of_answer(1) == SamplingOptions(1.0)


def test_penalties_act_on_greedy_decoding_too() -> None:
    sampler = Sampler(SamplingOptions(frequency_penalty=1.0), PROMPT, ENDS)
    # 3.0, 2.75, 2.25 and 1.5 take turns as each falls by 1 whenever it is taken
    assert [sampler.sample(np.array(LOGITS, np.float32)) for _ in range(6)] == [2, 7, 5, 2, 7, 0]


def test_settings_that_are_off_cost_nothing() -> None:
    assert processors(SamplingOptions(0.7, 40, 0.9, 0.1, 5, typical_p=0.9, stop=("x",)), PROMPT, ENDS) == []
    logits = np.array(LOGITS, np.float32)
    Sampler(SamplingOptions(0.7, 40), PROMPT, ENDS).sample(logits)
    assert logits.tolist() == LOGITS


def test_a_step_takes_memory_for_the_text_and_not_for_the_vocabulary() -> None:
    options = SamplingOptions(
        repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.1, no_repeat_ngram_size=2,
        bad_words_ids=((1, 2), (3,)), min_new_tokens=9, suppress_tokens=(4,), logit_bias={5: 1.0},
    )  # fmt: skip
    logits = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    sampler = Sampler(options, PROMPT, ENDS)
    sampler.sample(logits.copy())
    tracemalloc.start()
    try:
        sampler.sample(logits)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_a_vocabulary_that_is_forbidden_whole_is_one_error() -> None:
    every = list(range(len(LOGITS)))
    for temperature in (0.0, 1.0):
        sampler = Sampler(SamplingOptions(temperature, suppress_tokens=every), PROMPT, ENDS)
        with pytest.raises(UsageError, match="forbid the whole vocabulary"):
            sampler.sample(np.array(LOGITS, np.float32))


def test_a_forbidden_token_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Highest:
        def random(self) -> float:
            return 1.0  # more than a generator gives: what rounding up to the whole would look like

    monkeypatch.setattr(Sampler, "_random", Highest())
    for options in ({}, {"top_k": 12}, {"top_p": 0.999}):
        sampler = Sampler(SamplingOptions(1.0, suppress_tokens=[10, 11], **options))  # type: ignore[arg-type]
        assert sampler.sample(np.array(LOGITS, np.float32)) not in (10, 11)


def test_an_overflowing_penalty_forbids_nothing() -> None:
    found = processed(SamplingOptions(repetition_penalty=0.01), [], [3e38, -3e38] * 6)
    assert np.isfinite(found).all()
    assert found[2] == processors_module.LARGEST


def test_a_long_text_is_taken_up_one_token_at_a_time() -> None:
    rng = np.random.default_rng(3)
    prompt, answer = rng.integers(0, 40, 200).tolist(), rng.integers(0, 40, 100).tolist()
    options = SamplingOptions(
        repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2, no_repeat_ngram_size=3,
        bad_words_ids=((1, 2), (3,), (4, 5, 6)),
    )  # fmt: skip
    logits = rng.normal(size=50).astype(np.float32)
    step_by_step = processors(options, prompt, ENDS)
    for place, token in enumerate(answer):
        at_once = processors(options, prompt, ENDS)
        for earlier in answer[:place]:
            for step in at_once:
                step.add(earlier)
        one, other = logits.copy(), logits.copy()
        for step in step_by_step:
            step.apply(one)
        for step in at_once:
            step.apply(other)
        assert one.tolist() == other.tolist()
        for step in step_by_step:
            step.add(token)
