"""llama-server's dialect, and the metrics."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.server.client import Client

SAMPLED = {"temperature": 1.0, "seed": 5, "n_predict": 12}
PROMPT = "Once upon"


def test_a_whole_completion_is_that_of_openai_s_interface(client: Client) -> None:
    found = client.post("/completion", prompt=PROMPT, return_tokens=True, **SAMPLED).json
    other = client.post("/v1/completions", prompt=PROMPT, temperature=1.0, seed=5, max_tokens=12).json
    assert found["content"] == other["choices"][0]["text"]
    assert client.server.service.model.decode(found["tokens"]) == found["content"]
    assert (found["stop"], found["stop_type"], found["stopping_word"]) == (True, "limit", "")
    assert (found["tokens_predicted"], found["tokens_evaluated"]) == (12, len(PROMPT))
    assert found["generation_settings"]["seed"] == 5
    assert found["timings"]["predicted_n"] == 12
    assert found["timings"]["predicted_per_second"] > 0
    word = client.post("/completion", prompt=PROMPT, stop=[found["content"][3:5]], **SAMPLED).json
    assert (word["stop_type"], word["stopping_word"]) == ("word", found["content"][3:5])


def test_a_stream(client: Client) -> None:
    whole = client.post("/completion", prompt=PROMPT, **SAMPLED).json
    *pieces, end = (frame.json for frame in client.stream("/completion", prompt=PROMPT, **SAMPLED))
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert [piece["stop"] for piece in pieces] == [False] * len(pieces)
    assert (end["stop"], end["tokens_predicted"], end["stop_type"]) == (True, 12, "limit")
    told = client.stream("/completion", prompt="p" * 200, return_progress=True, n_predict=1)
    progress = [frame.json["prompt_progress"] for frame in told if "prompt_progress" in frame.json]
    assert progress == [{"total": 200, "cache": 0, "processed": number} for number in (0, 200)]


def test_prompts_of_ids_texts_and_both(client: Client) -> None:
    encode = client.server.service.model.encode
    whole = client.post("/completion", prompt=PROMPT, **SAMPLED).json["content"]
    for prompt in (encode(PROMPT), ["Once ", *encode("upon")]):
        assert client.post("/completion", prompt=prompt, **SAMPLED).json["content"] == whole
    several = client.post("/completion", prompt=[PROMPT, "The sea"], **SAMPLED).json
    assert [one["index"] for one in several] == [0, 1]
    assert several[0]["content"] == whole


def test_probabilities(client: Client) -> None:
    found = client.post("/completion", prompt=PROMPT, n_probs=3, **SAMPLED).json
    entries = found["completion_probabilities"]
    assert "".join(entry["token"] for entry in entries) == found["content"]
    assert all(len(entry["top_logprobs"]) == 3 and entry["logprob"] < 0 for entry in entries)


def test_errors_have_the_status_as_their_code(client: Client) -> None:
    reply = client.post("/completion", prompt="x" * 300)
    assert (reply.status, reply.error["code"]) == (400, 400)
    assert reply.error["type"] == "exceed_context_size_error"
    assert (reply.error["n_prompt_tokens"], reply.error["n_ctx"]) == (300, 256)
    for body, says in (
        ({"prompt": PROMPT, "grammar": "root ::= x"}, "`grammar`: it is no grammar in GBNF or Lark"),
        ({"prompt": PROMPT, "mirostat": 2}, "mirostat: this sampler is not there"),
        ({"prompt": PROMPT, "n_predict": 0}, "n_predict: expected 1 or more"),
        ({"prompt": [999]}, "prompt: expected token ids from 0 to 95"),
        ({"prompt": 5.5}, "prompt: expected a text"),
        ({}, "prompt: expected a text"),
        ({"prompt": ""}, "the prompt is empty"),
    ):
        reply = client.post("/completion", **body)
        assert reply.status == 400
        assert says in reply.error["message"]


def test_texts_to_ids_and_back(client: Client) -> None:
    ids = client.post("/tokenize", content="Hi!").json["tokens"]
    assert ids == client.server.service.model.encode("Hi!")
    pieces = client.post("/tokenize", content="Hi!", with_pieces=True).json["tokens"]
    assert pieces == [{"id": token, "piece": letter} for token, letter in zip(ids, "Hi!", strict=True)]
    assert client.post("/detokenize", tokens=ids).json == {"content": "Hi!"}
    assert client.post("/detokenize", tokens=[-1]).status == 400


def test_the_template(client: Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert client.post("/apply-template", messages=messages).json == {"prompt": "u:Hello\na:"}
    continued = [*messages, {"role": "assistant", "content": "Well, "}]
    assert client.post("/apply-template", messages=continued).json == {"prompt": "u:Hello\na:Well, "}


def test_state(client: Client) -> None:
    assert client.get("/health").json == {"status": "ok"}
    props = client.get("/props").json
    assert props["total_slots"] == 3
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert "{% for m in messages %}" in props["chat_template"]
    assert client.get("/slots").json == [{"id": n, "n_ctx": 256, "is_processing": False} for n in range(3)]


@pytest.mark.parametrize(("action", "status"), [("save", 501), ("restore", 501), ("erase", 501), ("fold", 400)])
def test_what_a_sequence_holds_is_not_saved_by_its_number(client: Client, action: str, status: int) -> None:
    reply = client.post(f"/slots/0?action={action}", filename="talk.bin")
    assert reply.status == status
    assert reply.error["message"].startswith("action")
    assert action in reply.error["message"]


def test_metrics_count(serve: Callable[..., Client]) -> None:
    client = serve()
    for _ in range(2):
        assert client.post("/completion", prompt="m" * 100, **SAMPLED).status == 200
    assert client.post("/completion", prompt="x" * 300).status == 400
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.body.decode().splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    form = r"# (HELP|TYPE) (edgemoe_|llamacpp:)\w+ .+|(edgemoe_|llamacpp:)\w+ [0-9.]+"
    assert all(re.fullmatch(form, line) for line in lines)
    assert values["edgemoe_requests_finished_total"] == 2
    assert values["edgemoe_prompt_tokens_total"] == 200
    assert values["edgemoe_cached_prompt_tokens_total"] == 64
    assert values["edgemoe_generated_tokens_total"] == 24
    assert values["llamacpp:prompt_tokens_total"] == 200 - 64
    assert values["llamacpp:tokens_predicted_total"] == values["llamacpp:n_decode_total"] == 24
    assert values["llamacpp:n_tokens_max"] == 100 + 12
    assert values["edgemoe_sequences_in_use"] == values["edgemoe_waiting"] == 0
    assert values["edgemoe_resident_bytes"] <= values["edgemoe_peak_resident_bytes"]


@pytest.mark.parametrize("path", ["/slots", "/props", "/metrics"])
def test_nothing_of_prompts_is_shown(client: Client, path: str) -> None:
    client.post("/completion", prompt="secretsauce", **SAMPLED)
    assert b"secretsauce" not in client.get(path).body


def test_prompts_in_objects_and_chosen_fields(client: Client) -> None:
    whole = client.post("/completion", prompt=PROMPT, **SAMPLED).json
    assert client.post("/completion", prompt={"prompt_string": PROMPT}, **SAMPLED).json["content"] == whole["content"]
    names = ["content", "generation_settings/n_predict", "prompt", "nothing/here"]
    chosen = client.post("/completion", prompt=PROMPT, response_fields=names, **SAMPLED).json
    assert chosen == {"content": whole["content"], "generation_settings/n_predict": 12, "prompt": PROMPT}
    media = {"prompt_string": PROMPT, "multimodal_data": ["x"]}
    assert "prompt.multimodal_data" in client.post("/completion", prompt=media).error["message"]


def test_biases_of_texts_are_those_of_their_tokens(client: Client) -> None:
    ids = client.server.service.model.encode("ei")
    for biases in ([["ei", False]], {"ei": -100}, [[token, -100] for token in ids]):
        found = client.post("/completion", prompt=PROMPT, logit_bias=biases, **{**SAMPLED, "n_predict": 60}).json
        assert not set("ei") & set(found["content"])
        assert found["generation_settings"]["logit_bias"] == [{"token": one, "bias": -100} for one in sorted(ids)]


def test_the_end_of_an_answer_can_be_ignored(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    tokenizer = client.server.service.model.tokenizer
    first = client.post("/completion", prompt=PROMPT, return_tokens=True, **SAMPLED).json["tokens"][0]
    monkeypatch.setattr(tokenizer, "stop_ids", frozenset([first]))
    assert client.post("/completion", prompt=PROMPT, **SAMPLED).json["stop_type"] == "eos"
    found = client.post("/completion", prompt=PROMPT, ignore_eos=True, return_tokens=True, **SAMPLED).json
    assert (found["stop_type"], len(found["tokens"])) == ("limit", 12)
    assert found["generation_settings"]["logit_bias"] == [{"token": first, "bias": None}]


def test_times_grow(client: Client) -> None:
    told = client.stream("/completion", prompt="p" * 200, return_progress=True, timings_per_token=True, **SAMPLED)
    times = [frame.json["timings"] for frame in told]
    assert (times[0]["prompt_n"], times[0]["prompt_ms"]) == (0, 0)
    assert [one["predicted_n"] for one in times if one["predicted_n"]] == [*range(1, 13), 12]
    assert all(value is not None for one in times for value in one.values())


def test_a_text_between_two_others(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    around = {"input_prefix": "a(", "input_suffix": ")b", "prompt": "c"}
    refused = client.post("/infill", **around)
    assert (refused.status, "not trained" in refused.error["message"]) == (501, True)
    monkeypatch.setattr("edgemoe.server.llama_infill.MARKERS", (("<", ">", "x"), ("{", "|", "}")))
    monkeypatch.setattr("edgemoe.server.llama_infill.FILE_SEPARATORS", ("~",))
    files = [{"filename": "f", "text": "t"}]
    found = client.post("/infill", input_extra=files, **around, **SAMPLED).json
    assert found["prompt"] == "~f\nt\n<a(>)bxc"
    assert found["content"] == client.post("/completion", prompt=found["prompt"], **SAMPLED).json["content"]
    for wrong in ({}, {"filename": "ok"}, {"filename": 1, "text": "x"}):
        assert client.post("/infill", input_extra=[wrong], **around).status == 400


def test_variables_and_a_seed_of_the_server_stand_where_a_request_says_none(serve: Callable[..., Client]) -> None:
    from edgemoe.server.settings import ServerSettings

    client = serve(ServerSettings(port=0, seed=5))
    sampled = {"temperature": 1.0, "n_predict": 12}
    answers = [client.post("/completion", prompt=PROMPT, **sampled, **more).json for more in ({}, {"seed": 5})]
    assert answers[0]["content"] == answers[1]["content"]
    assert client.get("/props").json["default_generation_settings"]["params"]["seed"] == 5
