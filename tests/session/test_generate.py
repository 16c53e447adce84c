import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from edgemoe.engine.prompt_times import PromptEstimate
from edgemoe.errors import StoreError, UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session import prompt_clock
from edgemoe.session.generate import check_text_fits
from edgemoe.session.model import Model
from edgemoe.session.sampler import Sampler
from edgemoe.session.tokenizer import Tokenizer
from tests.support.fake_engine import FakeEngine
from tests.support.small_tokenizer import write_model_folder

MakeModel = Callable[..., Model]


def fake(model: Model) -> FakeEngine:
    assert isinstance(model.engine, FakeEngine)
    return model.engine


def test_an_answer_ends_where_the_model_ends_it(make_model: MakeModel) -> None:
    model = make_model("Hello, world! \U0001f642")
    result = model.generate(model.encode("Say hello."))
    assert result.text == "Hello, world! \U0001f642"
    assert result.token_ids == model.encode("Hello, world! \U0001f642")
    assert result.finish_reason == "stop"
    assert result.prompt_tokens == len(model.encode("Say hello."))
    assert result.generated_tokens == len(result.token_ids)


def test_an_answer_ends_at_max_tokens_or_where_the_context_does(make_model: MakeModel) -> None:
    model = make_model("xyzw" * 20, context_length=20)
    prompt = model.encode("abc")
    assert model.generate(prompt, max_tokens=2).finish_reason == "length"
    assert model.generate(prompt, max_tokens=2).generated_tokens == 2
    full = make_model("xyzw" * 20, context_length=20).generate(prompt, None)
    assert full.finish_reason == "context"
    # the last token needs no place: nothing is computed after it
    assert full.prompt_tokens + full.generated_tokens == 21


def test_a_stop_is_heard_between_tokens_and_between_chunks_of_the_prompt(make_model: MakeModel) -> None:
    model = make_model()
    generation = model.stream(model.encode("Hi"))
    pieces = []
    for piece in generation:
        pieces.append(piece)
        generation.stop()
    assert (generation.finish_reason, len(generation.token_ids)) == ("interrupted", 1)
    assert generation.text == "".join(pieces) != ""

    model = make_model()
    long = model.stream([5] * 400)
    long.stop()
    assert list(long) == []
    assert (long.finish_reason, fake(model).calls) == ("interrupted", [])
    assert long.statistics is not None


def test_a_prompt_ends_where_it_is_stopped(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    good = fake(model).forward

    def forward(token_ids: list[int], **how: Any) -> Any:
        logits = good(token_ids, **how)
        if len(fake(model).calls) == 2:
            long.stop()
            assert fake(model).pause is not None
            fake(model).pause(0.5)
        return logits

    monkeypatch.setattr(model.engine, "forward", forward)
    long = model.stream([5] * 400)
    assert list(long) == []
    assert long.finish_reason == "interrupted"
    assert model.held.ids == [5] * 128
    assert fake(model).pause is None


def test_a_long_prompt_is_told_once_while_it_is_run(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 20 of 400 tokens take 30 seconds, in which kernels are compiled; each of the others takes 0.1."""
    model, now_s, told = make_model(), [100.0], []
    good = fake(model).forward

    def forward(token_ids: list[int], **how: Any) -> Any:
        done = 0.0
        for share in (1 / 128, 20 / 128, 30 / 128, 40 / 128, 50 / 128, 1.0):
            tokens = len(token_ids) * share
            first = len(token_ids) == 128 and not fake(model).calls and tokens <= 20
            now_s[0] += (tokens - done) * (1.5 if first else 0.1)
            done = tokens
            if fake(model).pause:
                fake(model).pause(share)
        return good(token_ids, **how)

    monkeypatch.setattr(model.engine, "forward", forward)
    monkeypatch.setattr(prompt_clock.time, "perf_counter", lambda: now_s[0])
    for ids in ([5] * 400, [9] * 7):
        generation = model.stream(ids, max_tokens=2)
        generation.on_long_prompt = told.append
        list(generation)
    assert [(estimate.tokens, round(estimate.least_seconds), round(estimate.most_seconds)) for estimate in told] == [
        (400, 68, 68)
    ]


def test_a_long_prompt_is_told_before_it_begins_and_again_where_that_was_wrong(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token takes 0.1 seconds, then 0.2, then 0.1 again. Events: the tokens of a chunk, and seconds that are told."""
    model, now_s, token_s, events = make_model(), [100.0], [0.1], list[Any]()
    good = fake(model).forward

    def forward(token_ids: list[int], **how: Any) -> Any:
        events.append(len(token_ids))
        for share in (0.25, 0.5, 0.75, 1.0):
            now_s[0] += len(token_ids) * 0.25 * token_s[0]
            if fake(model).pause:
                fake(model).pause(share)
        return good(token_ids, **how)

    monkeypatch.setattr(model.engine, "forward", forward)
    monkeypatch.setattr(prompt_clock.time, "perf_counter", lambda: now_s[0])

    def tell(estimate: PromptEstimate) -> None:
        assert (estimate.tokens, estimate.least_seconds) == (400, estimate.most_seconds)
        events.append(f"{estimate.most_seconds:.3f} s")

    for number, (seconds, expected) in enumerate([
        (0.1, [128, "40.000 s", 128, 128, 16]),
        (0.2, ["40.000 s", 128, "80.000 s", 128, 128, 16]),
        (0.2, ["80.000 s", 128, 128, 128, 16]),
        (0.1, ["80.000 s", 128, "40.000 s", 128, 128, 16]),
    ]):  # fmt: skip
        token_s[0] = seconds
        events.clear()
        generation = model.stream([5 + number] * 400, max_tokens=1)
        generation.on_long_prompt = tell
        list(generation)
        assert events == expected


def test_a_prompt_that_nobody_is_told_of_is_not_estimated(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    monkeypatch.delattr(model.engine, "prompt_times")
    assert model.generate([5] * 400, max_tokens=1).prompt_tokens == 400


def test_prompts_run_in_the_chunks_that_the_plan_names(make_model: MakeModel) -> None:
    model = make_model()
    fake(model).memory.chunk_tokens = 150
    model.generate([5] * 400, max_tokens=1)
    assert [len(call) for call in fake(model).calls] == [150, 150, 100]


def test_only_what_is_new_is_computed(make_model: MakeModel) -> None:
    model = make_model(None)
    first = model.generate([5, 6, 7], max_tokens=3)
    calls = len(fake(model).calls)
    again = model.generate([5, 6, 7], max_tokens=3)
    assert fake(model).calls[calls] == [7]
    assert again.token_ids == first.token_ids
    assert again.statistics.prefill_tokens == 1
    model.generate([5, 9, 7], max_tokens=1)
    assert fake(model).calls[-1] == [9, 7]


def test_a_failed_run_leaves_nothing_behind(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(None)
    expected = model.generate([5, 6, 7], max_tokens=4).token_ids
    good = fake(model).forward

    def fail(token_ids: list[int], **how: object) -> None:
        good(token_ids)
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "forward", fail)
        with pytest.raises(OSError, match="gone"):
            model.generate([5, 8], max_tokens=1)
    assert len(model.held.ids) == model.engine.position
    assert model.generate([5, 6, 7], max_tokens=4).token_ids == expected


def test_statistics_are_those_of_decoding(make_model: MakeModel) -> None:
    model = make_model("Hello, world!")
    statistics = model.generate(model.encode("Hi")).statistics
    assert statistics.expert_hit_rate == 0.75
    assert statistics.disk_bytes_per_token == 4096
    assert statistics.decode_tokens_per_s
    assert statistics.prefill_tokens_per_s
    assert statistics.peak_rss_bytes > 1 << 20
    assert model.generate([5], max_tokens=1).statistics.decode_tokens_per_s is None


def test_the_json_of_a_result_has_what_was_promised(make_model: MakeModel) -> None:
    data = make_model().generate([5, 6]).to_json()
    promised = {"text", "token_ids", "prompt_tokens", "generated_tokens", "finish_reason", "stats"}
    assert set(data) == promised
    model = make_model()
    model.engine.keep_ledger()
    timed = model.generate([5, 6]).to_json()
    assert set(timed) == {*promised, "ledger_ms"}
    assert timed["ledger_ms"]["sampling"] > 0
    assert {
        "prefill_tokens_per_s", "decode_tokens_per_s", "expert_hit_rate", "disk_bytes_per_token", "peak_rss_bytes",
    } <= set(data["stats"])  # fmt: skip


def sparse_tokenizer() -> tokenizers.Tokenizer:
    """A token for each word, and none for spaces."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"\S"), "isolated")
    tokenizer.normalizer = normalizers.Replace(" ", "")
    return tokenizer


def test_prompts_that_cannot_be_answered_are_refused(make_model: MakeModel) -> None:
    model = make_model(context_length=20)
    for wrong in ([], [5] * 20, [-1], [model.tokenizer.vocabulary], [1.0], "text"):
        with pytest.raises(UsageError):
            model.generate(wrong)  # type: ignore[arg-type]
    for few in (0, 1.5, "many"):
        with pytest.raises(UsageError, match="max_tokens"):
            model.generate([5], max_tokens=few)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="in the first 160 of its 4000 characters"):
        model.encode("x" * 4000)
    spaces = Tokenizer(sparse_tokenizer(), 10, frozenset())
    check_text_fits(" " * 300, spaces, 20)  # few tokens, however long
    with pytest.raises(UsageError, match="in the first 640 of"):
        check_text_fits(" " * 300 + "x" * 500, spaces, 20)
    assert model.generate([5] * 19, max_tokens=1).generated_tokens == 1


def test_logits_of_every_position(make_model: MakeModel) -> None:
    model = make_model(None)
    logits = model.logits([5, 6, 7])
    assert logits.shape == (3, model.tokenizer.vocabulary)
    assert logits.dtype == np.float32
    assert model.logits([5] * model.engine.context_length).shape[0] == model.engine.context_length
    for wrong in ([], [-1], [5] * (model.engine.context_length + 1)):
        with pytest.raises(UsageError):
            model.logits(wrong)
    # and the sequence held is still the one that was computed
    assert model.generate([5, 6, 7], max_tokens=1).token_ids == [int(np.argmax(logits[-1]))]


def test_sampling_with_a_seed_is_reproducible(make_model: MakeModel) -> None:
    model = make_model(None)
    first = model.generate([5], max_tokens=8, temperature=1.0, seed=1).token_ids
    assert model.generate([5], max_tokens=8, temperature=1.0, seed=1).token_ids == first
    assert model.generate([5], max_tokens=8, temperature=1.0, seed=2).token_ids != first
    assert isinstance(model.default_sampling, SamplingOptions)


def test_an_answer_ends_before_a_stop_text(make_model: MakeModel) -> None:
    model = make_model("one, two, three")
    prompt = model.encode("Count.")
    whole = model.generate(prompt)
    result = model.generate(prompt, stop=[", th", "zzz"])
    assert (result.text, result.finish_reason) == ("one, two", "stop")
    # the ids are those that were generated, up to the token that completed the stop text
    assert result.token_ids == whole.token_ids[: result.generated_tokens]
    assert ", th" in model.decode(result.token_ids)
    assert ", th" not in model.decode(result.token_ids[:-1])
    assert result.generated_tokens < whole.generated_tokens
    # as many decoding steps as tokens after the first
    assert model.engine.position == len(prompt) + result.generated_tokens - 1


def test_text_is_shown_only_when_it_cannot_become_a_stop_text(make_model: MakeModel) -> None:
    model = make_model("one, two, three")
    pieces = list(model.stream(model.encode("Count."), options=SamplingOptions(stop=(", two, four",))))
    assert "".join(pieces) == "one, two, three"
    # held back token by token, until the second comma says that it is not the stop text
    assert next(piece for piece in pieces if piece.startswith(",")) == ", two"
    ids = model.encode("one, two, three")
    comma = next(count for count in range(1, len(ids)) if model.decode(ids[:count]) == "one,")
    cut = model.generate(model.encode("Count."), max_tokens=comma, stop=[", two"])
    assert (cut.text, cut.finish_reason) == ("one,", "length")  # what was held back is not lost


def test_a_marker_as_a_stop_text_is_its_token(make_model: MakeModel) -> None:
    # a special token leaves no text behind: <|im_start|> is id 0 of the small tokenizer
    model = make_model("one<|im_start|>two")
    assert model.generate([5]).text == "onetwo"
    result = model.generate([5], stop="<|im_start|>")
    assert (result.text, result.finish_reason) == ("one", "stop")
    assert 0 not in result.token_ids


def test_stop_texts_that_cannot_be_used_are_one_error(make_model: MakeModel) -> None:
    model = make_model()
    for wrong in ("", [""], [5], 5):
        with pytest.raises(UsageError, match="stop: expected"):
            model.generate([5], stop=wrong)  # type: ignore[arg-type]
    without_text = Model(model.engine, Tokenizer(None, 400, frozenset()), model.folder)
    with pytest.raises(StoreError, match="no tokenizer"):
        without_text.generate([5], stop="x")


def test_published_stop_texts_do_not_keep_a_store_without_a_tokenizer_from_running(
    make_model: MakeModel, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text('{"stop_strings": ["x"], "repetition_penalty": 1.5}')
    without_text = Model(make_model().engine, Tokenizer(None, 400, frozenset()), tmp_path)
    assert without_text.default_sampling == SamplingOptions(repetition_penalty=1.5)


def test_penalties_count_the_prompt_and_the_answer(make_model: MakeModel) -> None:
    model = make_model(None)
    settings = {"repetition_penalty": 3.0, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    found = model.generate([5, 6, 7], max_tokens=12, **settings).token_ids  # type: ignore[arg-type]
    ids = [5, 6, 7]
    sampler = Sampler(SamplingOptions(**settings), ids, model.tokenizer.stop_ids)  # type: ignore[arg-type]
    for _ in found:
        ids.append(sampler.sample(model.logits(ids)[-1]))
    assert found == ids[3:]
    unlike = model.stream([5, 6, 7], 100, SamplingOptions(no_repeat_ngram_size=1))
    list(unlike)
    assert len({5, 6, 7, *unlike.token_ids}) == 3 + len(unlike.token_ids)


def test_logprobs_are_those_of_the_models_own_logits(make_model: MakeModel) -> None:
    model = make_model("Hello")
    prompt = model.encode("Say hello.")
    plain = model.generate(prompt)
    assert plain.logprobs == []
    result = model.generate(prompt, temperature=1.5, seed=1, logit_bias={0: 1.5}, top_logprobs=3, max_tokens=6)
    rows = model.logits([*prompt, *result.token_ids])[len(prompt) - 1 :].astype(float)
    assert [one.token for one in result.logprobs] == result.token_ids
    for row, one in zip(rows, result.logprobs, strict=False):
        expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert one.logprob == pytest.approx(expected[one.token], abs=1e-12)
        assert [token for token, _ in one.top] == np.argsort(-expected, kind="stable")[:3].tolist()
    for wrong in (-1, 1.5, True):
        with pytest.raises(UsageError, match="`top_logprobs`: expected 0 or more"):
            model.generate(prompt, top_logprobs=wrong)  # type: ignore[arg-type]


def test_published_settings_are_those_of_a_conversation(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("Hello, world!")
    config = {"max_new_tokens": 2, "suppress_tokens": model.encode("Hello, world!")[1:2], "num_beams": 4}
    model.folder = write_model_folder(tmp_path / "model")
    (model.folder / "generation_config.json").write_text(json.dumps(config))
    chat = model.chat()
    assert chat.max_tokens == 2
    answer = chat.send("Hi")
    list(answer)
    assert len(answer.generation.token_ids) == 2
    assert answer.generation.token_ids[1] != config["suppress_tokens"][0]  # type: ignore[index]
    assert model.generation_defaults.not_honoured == {"num_beams": 4}
    assert model.chat(options=SamplingOptions(), max_tokens=9).max_tokens == 9
    (model.folder / "generation_config.json").write_text('{"top_p": 7}')
    del model.generation_defaults
    with pytest.raises(StoreError, match=r"generation_config\.json: top_p: expected .* found 7\."):
        model.chat()
