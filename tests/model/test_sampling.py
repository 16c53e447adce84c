import json
import math
from typing import Any

import pytest

from edgemoe.errors import UsageError
from edgemoe.model.sampling import GenerationDefaults, SamplingOptions, end_ids, read_generation_config
from tests.support.every_case import every_case


@every_case(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "x"),
        ("temperature", True), ("top_k", -2), ("top_k", 1.5), ("top_k", False), ("top_p", 0.0), ("top_p", 1.1),
        ("top_p", math.nan), ("top_p", [1]), ("min_p", -0.1), ("min_p", 2.0), ("min_p", "0.1"), ("seed", -1),
        ("seed", 2**64), ("seed", 0.5), ("typical_p", 0.0), ("typical_p", 2), ("repetition_penalty", 0.0),
        ("repetition_penalty", -1), ("repetition_penalty", math.nan), ("presence_penalty", 2.5),
        ("frequency_penalty", -3), ("no_repeat_ngram_size", -1), ("no_repeat_ngram_size", 2.0), ("min_length", -1),
        ("min_new_tokens", "3"), ("suppress_tokens", 5), ("suppress_tokens", [-1]), ("suppress_tokens", ["a"]),
        ("suppress_tokens", [2**70]), ("begin_suppress_tokens", [True]), ("bad_words_ids", [5]),
        ("bad_words_ids", [[]]), ("bad_words_ids", [[1, None]]), ("bad_words_ids", "ab"), ("stop", 5), ("stop", [""]),
        ("stop", ["a", 5]),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name}: expected "):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


def test_lists_become_tuples_and_one_text_a_tuple_of_it() -> None:
    options = SamplingOptions(suppress_tokens=[1, 2], bad_words_ids=[[3], [4, 5]], stop="end", top_k=-1)
    assert options == SamplingOptions(suppress_tokens=(1, 2), bad_words_ids=((3,), (4, 5)), stop=("end",))
    assert hash(options) == hash(options.changed())
    assert options.changed(temperature=0.5, seed=None).temperature == 0.5


def test_a_published_config_says_how_to_sample() -> None:
    # of Qwen1.5-MoE-A2.7B-Chat, on the hub
    config = {
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0",
    }  # fmt: skip
    defaults = read_generation_config(config)
    assert defaults.sampling == SamplingOptions(0.7, 20, 0.8, repetition_penalty=1.05)
    assert (defaults.max_tokens, defaults.not_honoured) == (None, {})
    assert set(end_ids(config)) == {151645, 151643}


@every_case(
    ("config", "top_k"),
    [
        # transformers 4 and 5: a missing top_k means GenerationConfig's 50
        ({"do_sample": True, "temperature": 0.6}, 50),
        ({"do_sample": True, "top_k": 0}, 0),
        ({"do_sample": True, "top_k": -1}, 0),
        ({"do_sample": True, "top_k": None}, 0),
        ({"do_sample": True, "top_k": 7}, 7),
        # nobody asks for sampling: what a person then asks for alone decides
        ({}, 0),
        ({"top_k": 7}, 7),
    ],
)
def test_a_top_k_that_is_missing_and_one_that_is_off(config: dict[str, Any], top_k: int) -> None:
    assert read_generation_config(config).sampling.top_k == top_k


def test_without_do_sample_decoding_is_greedy_with_the_settings_that_greedy_has() -> None:
    config = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    sampling = read_generation_config(config).sampling
    assert sampling == SamplingOptions(0, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=3)
    assert read_generation_config({}) == GenerationDefaults()
    # explicit options win
    assert sampling.changed(temperature=1.0, repetition_penalty=1.0, top_p=None) == SamplingOptions(
        1.0, top_p=0.9, no_repeat_ngram_size=3
    )


def test_everything_that_is_carried_out_is_taken() -> None:
    config = {
        "do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8,
        "repetition_penalty": 1.1, "no_repeat_ngram_size": 4, "bad_words_ids": [[1], [2, 3]], "min_length": 9,
        "suppress_tokens": [7], "begin_suppress_tokens": [8, 9], "stop_strings": ["end"], "max_new_tokens": 64,
    }  # fmt: skip
    defaults = read_generation_config(config)
    assert defaults.sampling == SamplingOptions(
        0.5, 5, 0.9, 0.1, None, 0.8, 1.1, no_repeat_ngram_size=4, bad_words_ids=((1,), (2, 3)), min_length=9,
        suppress_tokens=(7,), begin_suppress_tokens=(8, 9), stop=("end",),
    )  # fmt: skip
    assert defaults.max_tokens == 64
    # transformers (_prepare_generated_length): min_new_tokens takes the place of min_length
    assert read_generation_config({"min_length": 9, "min_new_tokens": 2}).sampling == SamplingOptions(min_new_tokens=2)


def test_what_is_not_carried_out_is_named() -> None:
    loud = {
        "num_beams": 4, "epsilon_cutoff": 3e-4, "sequence_bias": [[[1], 2.0]], "forced_eos_token_id": 0,
        "penalty_last_n": 0,
    }  # fmt: skip
    assert read_generation_config(loud).not_honoured == loud
    # GenerationConfig's own defaults change nothing, and neither does what concerns no answer's tokens
    quiet = {
        "num_beams": 1, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "guidance_scale": None, "length_penalty": 1.0,
        "encoder_repetition_penalty": 1.0, "diversity_penalty": 0.0, "num_return_sequences": 1, "use_cache": True,
        "pad_token_id": 0, "output_scores": False, "_from_model_config": True, "some_note": "x",
    }  # fmt: skip
    assert read_generation_config(quiet).not_honoured == {}


def test_a_max_length_is_named_where_it_would_end_before_the_context() -> None:
    assert read_generation_config({"max_length": 4096}, 4096).not_honoured == {}
    assert read_generation_config({"max_length": 20}, 4096).not_honoured == {"max_length": 20}
    # max_new_tokens goes before max_length in transformers too
    assert read_generation_config({"max_length": 20, "max_new_tokens": 5}, 4096).not_honoured == {}


@every_case(
    ("text", "named"),
    [
        ('{"top_p": 7}', "top_p"), ('{"temperature": "0.7", "do_sample": true}', "temperature"),
        ('{"do_sample": "yes"}', "do_sample"), ('{"max_new_tokens": 0}', "max_new_tokens"),
        ('{"max_new_tokens": true}', "max_new_tokens"), ('{"stop_strings": 5}', "stop_strings"),
        ('{"stop_strings": [""]}', "stop_strings"), ('{"suppress_tokens": "all"}', "suppress_tokens"),
        ('{"bad_words_ids": [1, 2]}', "bad_words_ids"), ('{"repetition_penalty": 0}', "repetition_penalty"),
        ('{"eos_token_id": "</s>"}', "eos_token_id"), ('{"eos_token_id": [1, 2.0]}', "eos_token_id"),
        ('{"eos_token_id": true}', "eos_token_id"),
    ],
)  # fmt: skip
def test_an_unusable_setting_is_named(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"^{named}: expected "):
        read_generation_config(json.loads(text))
