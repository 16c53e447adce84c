"""Templates and sampling mean what they mean in transformers."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgemoe.model.sampling import SamplingOptions, read_generation_config
from edgemoe.session.processors import processors
from edgemoe.session.sampler import candidates
from edgemoe.session.template import ChatTemplate
from tests.session.test_special_tokens import CASES, TEXT, spelled, write_folder
from tests.support.small_tokenizer import END, START, write_model_folder

pytestmark = pytest.mark.oracle

CONVERSATION = [
    {"role": "system", "content": 'Be <kind> & "brief".'},
    {"role": "user", "content": "  Größe?\n\nline two "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Go on"},
]
TEMPLATES = [
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}",
    "{{- bos_token }}\n{%- for m in messages %}\n    {{- '[' ~ m.role | upper ~ '] ' + m.content | trim }}\n"
    "    {% if not loop.last %}\n, {% endif %}\n{%- endfor %}\n{% if add_generation_prompt %}\n  >\n{% endif %}\nend",
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role == 'user' %}{% set ns.n = ns.n + 1 %}"
    "{{ m | tojson }}{{ [ns.n, tools, documents] | tojson(indent=2) }}{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %} {{ m.content }} {% endgeneration %}"
    "{% continue %}{% endif %}{{ m.content.split('\n')[-1] }}"
    "{% if loop.index == 4 %}{% break %}{% endif %}{% endfor %}",
    "{{ strftime_now('%d %b %Y') }} {{ pad_token is defined }} {{ messages[1:] | map(attribute='role') | join(',') }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_a_template_renders_the_same_text(tmp_path: Path, source: str, add_generation_prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_model_folder(tmp_path / "model", template=source)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=START, eos_token=END
    )
    expected = theirs.apply_chat_template(
        CONVERSATION, chat_template=source, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert ChatTemplate.load(folder).render(CONVERSATION, add_generation_prompt) == expected


@pytest.mark.parametrize("case", CASES)
def test_special_tokens_are_the_same(tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, special_map, names, special = CASES[case]
    if case == "nothing":
        config = {"pad_token": None, "add_bos_token": True}  # it refuses names that are neither text nor token
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(write_folder(tmp_path, config, special_map)))
    assert theirs.special_tokens_map == names
    assert theirs(TEXT, add_special_tokens=False).input_ids == spelled(*special)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(0.7, top_k=20),
        SamplingOptions(1.3, top_p=0.8),
        SamplingOptions(0.9, min_p=0.2),
        SamplingOptions(0.6, top_k=50, top_p=0.9),
        SamplingOptions(1.5, top_k=40, top_p=0.95, min_p=0.05),
    ],
)
def test_filters_leave_the_same_probabilities(options: SamplingOptions) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(5).normal(scale=3, size=1000).astype(np.float32)
    scores = torch.from_numpy(logits)[None].double()
    steps = [process.TemperatureLogitsWarper(options.temperature)]
    steps += [process.TopKLogitsWarper(options.top_k)] if options.top_k else []
    steps += [process.TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    steps += [process.MinPLogitsWarper(options.min_p)] if options.min_p else []
    for step in steps:
        scores = step(None, scores)
    expected = torch.softmax(scores[0], dim=-1).numpy()
    tokens, probabilities = candidates(logits, options)
    found = np.zeros_like(expected)
    found[tokens] = probabilities
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12)


VOCABULARY = 60
ENDS = [7, 11]


def random_settings(chooser: random.Random) -> dict[str, Any]:
    """A generation_config.json with some of the settings that are carried out."""

    def ids(most: int) -> list[int]:
        return [chooser.randrange(VOCABULARY) for _ in range(chooser.randint(1, most))]

    every = {
        "repetition_penalty": chooser.choice([0.7, 1.05, 1.3, 2.0]),
        "no_repeat_ngram_size": chooser.randint(1, 4),
        "bad_words_ids": [ids(4) for _ in range(chooser.randint(1, 12))],
        "min_length": chooser.randint(0, 40),
        "min_new_tokens": chooser.randint(0, 9),
        "suppress_tokens": ids(6),
        "begin_suppress_tokens": ids(6),
        "temperature": chooser.choice([0.3, 0.7, 1.4]),
        "top_k": chooser.choice([0, 3, 20]),
        "top_p": chooser.choice([0.5, 0.9]),
        "min_p": chooser.choice([0.02, 0.2]),
        "typical_p": chooser.choice([0.3, 0.9]),
    }
    return {name: value for name, value in every.items() if chooser.random() < 0.4}


@pytest.mark.parametrize("seed", range(300))
def test_published_settings_leave_the_same_probabilities(seed: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.generation.utils import GenerationMixin

    chooser = random.Random(seed)
    settings = random_settings(chooser)
    # few different ids, so that n-grams and bad words come again
    prompt = [chooser.randrange(12) for _ in range(chooser.randint(1, 30))]
    answer = [chooser.randrange(12) for _ in range(chooser.randint(0, 12))]
    logits = np.random.default_rng(seed).normal(scale=3, size=VOCABULARY).astype(np.float32)

    biases = {
        token: chooser.choice([-100.0, -1.5, 0.25, 4.0]) for token in range(0, VOCABULARY, chooser.randint(1, 20))
    }
    biases = biases if chooser.random() < 0.4 else {}
    sequence_bias = {(token,): bias for token, bias in biases.items()} or None

    theirs = transformers.GenerationConfig(do_sample=True, eos_token_id=ENDS, sequence_bias=sequence_bias, **settings)
    theirs.update(**theirs._get_default_generation_params(), defaults_only=True)
    theirs._eos_token_tensor = torch.tensor(ENDS)
    if theirs.min_new_tokens is not None:
        theirs.min_length = theirs.min_new_tokens + len(prompt)  # as _prepare_generated_length does
    model = GenerationMixin()
    model.config = SimpleNamespace(is_encoder_decoder=False)
    steps = model._get_logits_processor(theirs, input_ids_seq_length=len(prompt), device="cpu", model_kwargs={})
    scores = steps(torch.tensor([prompt + answer]), torch.from_numpy(logits.copy())[None])
    expected = torch.softmax(scores[0].double(), dim=-1).numpy()

    options = read_generation_config({"do_sample": True, **settings}).sampling.changed(logit_bias=biases)
    for step in processors(options, prompt, ENDS):
        for token in answer:
            step.add(token)
        step.apply(logits)
    tokens, probabilities = candidates(logits, options)
    found = np.zeros_like(expected)
    found[tokens] = probabilities
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-9), (settings, biases)
