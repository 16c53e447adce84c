"""Settings of generation, published and given, as a person meets them in `run` and `chat`."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Done, Edgemoe

ASK = ("-p", "Say hello")


@pytest.fixture
def publish(folder: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A model that publishes these settings; its answers end with id 1."""

    def make(**settings: object) -> Path:
        model = shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **settings}))
        return model

    return make


def test_a_stop_text_ends_the_answer_and_is_not_shown(edgemoe: Edgemoe, folder: Path) -> None:
    assert edgemoe("run", folder, *ASK, "--stop", "rld", "--stop", "zzz") == Done(0, "Hello, wo\n", "")
    data = json.loads(edgemoe("run", folder, *ASK, "--stop", "rld", "--json").output)
    assert (data["text"], data["finish_reason"]) == ("Hello, wo", "stop")
    assert data["generated_tokens"] == len(data["token_ids"])
    assert edgemoe("chat", folder, "--stop", "lo", stdin=b"Hi\n/set stop wor\nHi\n/set stop off\nHi\n").output == (
        "Hel\nHello, \nHello, world!\n"
    )


def test_penalties_act_in_run_and_chat(edgemoe: Edgemoe, folder: Path) -> None:
    # the fake model's logit for the next token of its text is 10, and 0 for all others: no penalty below 10 changes
    # its answer, and a repetition penalty leaves no positive logit below 0
    penalties = ("--repeat-penalty", "1.3", "--presence-penalty", "2", "--frequency-penalty", "-1.5")
    assert edgemoe("run", folder, *ASK, *penalties).output == "Hello, world!\n"
    talk = edgemoe("chat", folder, *penalties, stdin=b"/set\n/set repetition_penalty off\n/set\n")
    assert talk.output.count("presence_penalty: 2.0\n") == talk.output.count("frequency_penalty: -1.5\n") == 2
    assert talk.output.count("repetition_penalty: 1.3\n") == talk.output.count("repetition_penalty: 1.0\n") == 1
    # twice the same token: ten times a penalty of 2 is what it takes
    says = edgemoe("run", folder, *ASK, "--frequency-penalty", "2", "--max-tokens", "12", says="\x01" * 40)
    assert 0 < says.output.count("\x01") <= 6


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--repeat-penalty", "0"], "--repeat-penalty: expected above 0"),
        (["--presence-penalty", "3"], "--presence-penalty: expected -2 to 2"),
        (["--frequency-penalty", "nan"], "--frequency-penalty: expected -2 to 2"),
        (["--stop", ""], "--stop: expected texts of at least one character"),
        (["--top-k", "-2"], "--top-k: expected 0 (off) or more"),
        (["--max-tokens", "0"], "--max-tokens: expected 1 or more"),
        (["--logit-bias", "x=1"], "--logit-bias: expected ID=BIAS, found x=1."),
        (["--logit-bias", "5"], "--logit-bias: expected ID=BIAS, found 5."),
        (["--logit-bias", "5=101"], "--logit-bias: expected a bias from -100 to 100 for each token id, found 101"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "chat"])
def test_unusable_values_are_one_error_that_names_the_option(
    verb: str, arguments: list[str], error: str, edgemoe: Edgemoe, folder: Path
) -> None:
    done = edgemoe(verb, folder, *(ASK if verb == "run" else ()), *arguments, stdin=b"Hi\n")
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith(f"error: {error}")
    assert done.errors.count("\n") == 1


def test_biases_act_in_run_and_chat(edgemoe: Edgemoe, folder: Path) -> None:
    hello = json.loads(edgemoe("run", folder, *ASK, "--json").output)["token_ids"]
    forbidden = ("--logit-bias", f"{hello[0]}=-100", "--logit-bias", f"{hello[1]}=3")
    answer = json.loads(edgemoe("run", folder, *ASK, *forbidden, "--json", "--max-tokens", "3").output)["token_ids"]
    assert hello[0] not in answer
    assert answer[0] == hello[1]  # the other tokens have a logit of 0
    said = f"/set logit_bias {hello[0]}=-100 7=1\n/set\nHi\n/set logit_bias off\nHi\n/set logit_bias 5\n".encode()
    talk = edgemoe("chat", folder, "--max-tokens", "50", stdin=said)
    assert f"logit_bias: ((7, 1.0), ({hello[0]}, -100.0))" in talk.output
    assert talk.output.endswith("Hello, world!\n")
    assert talk.output.count("Hello") == 1
    assert "error: logit_bias: expected ID=BIAS, found 5." in talk.errors
    beyond = edgemoe("run", folder, *ASK, "--logit-bias", "123456789=1")
    assert (beyond.code, beyond.output) == (2, "")
    assert "token id 123456789: expected 0 to" in beyond.errors


def test_several_answers_each_with_its_seed(edgemoe: Edgemoe, folder: Path) -> None:
    sampled = ("--temperature", "30", "--max-tokens", "8", "--json")
    three = edgemoe("run", folder, *ASK, *sampled, "--seed", "5", "--n", "3")
    assert three.errors == ""
    answers = [json.loads(line)["token_ids"] for line in three.output.splitlines()]
    alone = [
        json.loads(edgemoe("run", folder, *ASK, *sampled, "--seed", str(seed)).output)["token_ids"]
        for seed in (5, 6, 7)
    ]
    assert answers == alone
    assert answers[0] != answers[1] != answers[2]
    plain = edgemoe("run", folder, *ASK, "--n", "2", "--temperature", "0")
    assert plain.output == "Hello, world!\nHello, world!\n"
    assert plain.errors == (
        "at temperature 0 all answers are the same (--temperature 0.7)\nanswer 1 of 2:\nanswer 2 of 2:\n"
    )


def test_logprobs_are_in_the_json(edgemoe: Edgemoe, folder: Path) -> None:
    answer = json.loads(edgemoe("run", folder, *ASK, "--logprobs", "2", "--json").output)
    entries = answer["logprobs"]
    assert [entry["id"] for entry in entries] == answer["token_ids"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == answer["text"] == "Hello, world!"
    assert "".join(entry["token"] for entry in entries) == answer["text"]
    for entry in entries:
        assert entry["top_logprobs"][0]["id"] == entry["id"]
        assert len(entry["top_logprobs"]) == 2
        assert -0.1 < entry["logprob"] < 0 > entry["top_logprobs"][1]["logprob"]
    assert (
        json.loads(edgemoe("run", folder, *ASK, "--logprobs", "0", "--json").output)["logprobs"][0]["top_logprobs"]
        == []
    )
    assert "logprobs" not in json.loads(edgemoe("run", folder, *ASK, "--json").output)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--n", "0"], "--n: expected 1 to 128 answers, found 0."),
        (["--logprobs", "2"], "--logprobs: the logprobs are a part of what --json prints. Give --json too."),
        (["--logprobs", "21", "--json"], "--logprobs: expected 0 to 20 tokens, found 21."),
    ],
)
def test_numbers_of_answers_and_logprobs_are_checked(
    arguments: list[str], error: str, edgemoe: Edgemoe, folder: Path
) -> None:
    done = edgemoe("run", folder, *ASK, *arguments)
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith(f"error: {error}")


def test_a_cut_answer_says_so_on_stderr(edgemoe: Edgemoe, folder: Path) -> None:
    cut = edgemoe("run", folder, *ASK, "--max-tokens", "2", says="xyzw")
    assert cut == Done(0, "xy\n", "the answer was cut at 2 tokens: --max-tokens N allows more\n")
    full = edgemoe("run", folder, "--raw", *ASK, "--context", "16", says="xyzw" * 20)
    assert full.errors.endswith("tokens, where the context is full: --context N may allow more\n")
    assert edgemoe("run", folder, *ASK, "--max-tokens", "2", "--json").errors == ""
    talk = edgemoe("chat", folder, "--max-tokens", "2", stdin=b"Hi\n", says="xyzw")
    assert talk.output == "xy\n"
    assert talk.errors == "the answer was cut at 2 tokens: --max-tokens N or /set max_tokens N allows more\n"


def test_published_settings_hold_and_given_ones_win(edgemoe: Edgemoe, publish, folder: Path) -> None:  # type: ignore[no-untyped-def]
    hello = json.loads(edgemoe("run", folder, *ASK, "--json").output)["token_ids"]
    model = publish(max_new_tokens=3, stop_strings="wor")
    assert edgemoe("run", model, *ASK).output != "Hello, world!\n"
    assert edgemoe("run", model, *ASK, "--max-tokens", "50").output == "Hello, \n"
    assert edgemoe("run", model, *ASK, "--max-tokens", "50", "--stop", "zzz").output == "Hello, world!\n"
    assert edgemoe("chat", model, stdin=b"Hi\n").errors.startswith("the answer was cut at 3 tokens")
    model = publish(begin_suppress_tokens=hello[:1], do_sample=True, top_k=-1, temperature=0.0)
    suppressed = json.loads(edgemoe("run", model, *ASK, "--json", "--max-tokens", "1").output)
    assert suppressed["token_ids"] == [0]  # the lowest id among those that are equally likely
    shown = edgemoe("chat", publish(do_sample=True, temperature=0.7, suppress_tokens=[5]), stdin=b"/set\n").output
    assert "top_k: 50\n" in shown
    assert "suppress_tokens: (5,)\n" in shown
    assert "bad_words_ids" not in shown


def test_published_settings_that_are_not_carried_out_are_one_line(edgemoe: Edgemoe, publish) -> None:  # type: ignore[no-untyped-def]
    line = (
        "warning: edgemoe does not implement these settings of the model's generation_config.json:"
        " eta_cutoff (0.002), num_beams (4)\n"
    )
    model = publish(num_beams=4, eta_cutoff=0.002, num_return_sequences=1)
    assert edgemoe("run", model, *ASK) == Done(0, "Hello, world!\n", line)
    assert edgemoe("chat", model, stdin=b"Hi\n") == Done(0, "Hello, world!\n", line)


@pytest.mark.parametrize("verb", ["run", "chat"])
def test_a_store_with_an_unusable_setting_is_one_error(verb: str, edgemoe: Edgemoe, publish) -> None:  # type: ignore[no-untyped-def]
    done = edgemoe(verb, publish(repetition_penalty=0), *(ASK if verb == "run" else ()), stdin=b"Hi\n")
    assert (done.code, done.output) == (1, "")
    assert "generation_config.json: repetition_penalty: expected above 0" in done.errors
