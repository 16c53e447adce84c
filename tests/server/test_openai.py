"""OpenAI's interfaces: whole answers and streams, counts, choices, logprobs, and how errors are told."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgemoe.server.exchange import TextEvents, event
from tests.server.client import Client
from tests.support.every_case import every_case

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
SAMPLED = {"temperature": 1.0, "seed": 5, "max_tokens": 12}


def said(client: Client, **body: Any) -> str:
    reply = client.post(CHAT, messages=HELLO, **{**SAMPLED, **body})
    assert reply.status == 200, reply.body
    return str(reply.json["choices"][0]["message"]["content"])


def streamed(client: Client, path: str = CHAT, /, **body: Any) -> list[Any]:
    *chunks, end = client.stream(path, **{**SAMPLED, **body})
    assert end.data == "[DONE]"
    return [chunk.json for chunk in chunks]


def test_events_that_differ_in_a_text_are_those_that_are_made_whole() -> None:
    def make(number: int, text: str) -> dict[str, Any]:
        return {"id": "a", "choices": [{"index": number, "text": text}], "usage": None}

    texts = TextEvents(make)
    for number in (0, 1, 0):
        for text in ("", "word", 'quote " \\ \n', "\u0000\u2028 é 😀"):
            assert texts.of(text, number) == event(make(number, text))


def test_a_whole_answer(client: Client) -> None:
    reply = client.post(CHAT, messages=HELLO, **SAMPLED)
    found = reply.json
    assert found["object"] == "chat.completion"
    assert found["model"] == "letters"
    assert found["id"].startswith("chatcmpl-")
    (choice,) = found["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 12
    usage = found["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["prompt_tokens"] == len("u:Hello\na:")
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert found["timings"]["predicted_n"] == 12
    assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == usage["prompt_tokens"]
    assert "x-edgemoe-warning" not in reply.headers


def test_a_stream_says_the_same(client: Client) -> None:
    chunks = streamed(client, messages=HELLO)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == said(client)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_ends_with_counts_where_asked(client: Client) -> None:
    *chunks, last = streamed(client, messages=HELLO, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    assert last["timings"]["predicted_n"] == 12
    assert all(chunk["usage"] is None for chunk in chunks)


def test_the_same_request_gives_the_same_answer_in_any_company(client: Client) -> None:
    alone = [said(client, seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda seed: said(client, seed=seed), range(12)))
    assert together == alone
    assert len(set(alone)) > 6


def test_choices_have_seeds_of_their_own_and_the_first_is_the_only_one(client: Client) -> None:
    reply = client.post(CHAT, messages=HELLO, n=3, **SAMPLED)
    choices = [choice["message"]["content"] for choice in reply.json["choices"]]
    assert choices == [said(client, seed=seed) for seed in (5, 6, 7)]
    assert reply.json["usage"]["completion_tokens"] == 36
    assert reply.json["usage"]["prompt_tokens"] == len("u:Hello\na:")
    chunks = streamed(client, messages=HELLO, n=3)
    for number, text in enumerate(choices):
        deltas = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == number]
        assert "".join(delta["delta"].get("content") or "" for delta in deltas) == text


def test_stop_texts_are_held_back(client: Client) -> None:
    whole = said(client)
    for stop in (whole[4:6], [whole[4:6], "never"]):
        reply = client.post(CHAT, messages=HELLO, stop=stop, **SAMPLED).json["choices"][0]
        assert reply["message"]["content"] == whole[: whole.index(whole[4:6])]
        assert reply["finish_reason"] == "stop"
    chunks = streamed(client, messages=HELLO, stop=[whole[4:6]])
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == reply["message"]["content"]


def test_logprobs_of_a_chat(client: Client) -> None:
    body = {**SAMPLED, "messages": HELLO, "logprobs": True, "top_logprobs": 3}
    choice = client.post(CHAT, **body).json["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert [one["logprob"] for one in entry["top_logprobs"]] == sorted(
            (one["logprob"] for one in entry["top_logprobs"]), reverse=True
        )
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] <= entry["top_logprobs"][0]["logprob"] < 0
        assert sum(math.exp(one["logprob"]) for one in entry["top_logprobs"]) < 1
    chunks = streamed(client, **body)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for part in parts if part for entry in part["content"]] == entries


def test_completions_go_on_from_texts_and_ids(client: Client) -> None:
    text = client.post(TEXT, prompt="Once upon", **SAMPLED).json["choices"][0]["text"]
    assert len(text) == 12
    ids = client.server.service.model.encode("Once upon")
    assert client.post(TEXT, prompt=ids, **SAMPLED).json["choices"][0]["text"] == text
    several = client.post(TEXT, prompt=["Once upon", "The sea"], n=2, echo=True, **SAMPLED).json
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["choices"][0]["text"] == "Once upon" + text
    assert several["choices"][3]["text"].startswith("The sea")
    assert several["usage"]["prompt_tokens"] == len("Once upon" + "The sea")
    assert several["usage"]["completion_tokens"] == 48
    chunks = streamed(client, TEXT, prompt="Once upon", echo=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Once upon" + text
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    unlimited = client.post(TEXT, prompt="Once", temperature=1, seed=1).json
    assert unlimited["usage"]["completion_tokens"] == 16


def test_logprobs_of_a_text(client: Client) -> None:
    body = {**SAMPLED, "prompt": "Once upon", "logprobs": 2}
    choice = client.post(TEXT, **body).json["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(12))
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    chunks = streamed(client, TEXT, **body)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for name in logprobs:
        assert [entry for part in parts for entry in part[name]] == logprobs[name]


def test_a_last_message_of_the_assistant_is_continued(client: Client) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "He said"}]
    reply = client.post(CHAT, messages=messages, **SAMPLED).json
    text = client.post(TEXT, prompt="u:Hello\na:He said", **SAMPLED).json
    assert reply["choices"][0]["message"]["content"] == text["choices"][0]["text"]
    empty = [*HELLO, {"role": "assistant", "content": None}]
    assert client.post(CHAT, messages=empty, **SAMPLED).json["choices"][0]["message"]["content"] == said(client)


def test_parts_and_roles_of_messages(client: Client) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert client.post(CHAT, messages=parts, **SAMPLED).json["choices"][0]["message"]["content"] == said(client)
    system, developer = (
        client.post(CHAT, messages=[{"role": role, "content": "Be brief"}, *HELLO], **SAMPLED).json
        for role in ("system", "developer")
    )
    assert system["choices"][0]["message"] == developer["choices"][0]["message"]


def test_a_bias_makes_tokens_likely(client: Client) -> None:
    (token,) = client.server.service.model.encode("q")
    reply = client.post(CHAT, messages=HELLO, logit_bias={str(token): 100}, **SAMPLED).json
    assert reply["choices"][0]["message"]["content"] == "q" * 12
    pairs = client.post("/completion", prompt="Hi", logit_bias=[[token, 100]], n_predict=3).json
    assert pairs["content"] == "qqq"
    banned = client.post("/completion", prompt="Hi", logit_bias=[[token, 100], [token, False]], n_predict=9).json
    assert "q" not in banned["content"]


def test_null_is_absent(client: Client) -> None:
    names = ("max_completion_tokens", "stop", "tools", "response_format", "n", "logit_bias", "user", "stream", "id")
    reply = client.post(CHAT, messages=HELLO, **SAMPLED, **dict.fromkeys(names))
    assert reply.json["choices"][0]["message"]["content"] == said(client)
    assert "x-edgemoe-warning" not in reply.headers


def test_unknown_fields_are_told_in_a_header(client: Client) -> None:
    reply = client.post(CHAT, messages=HELLO, wizardry=1, **{"na\nïve": 2}, **SAMPLED)
    assert reply.status == 200
    assert reply.headers["x-edgemoe-warning"] == "unknown, ignored: wizardry, na??ve"
    effort = client.post(CHAT, messages=HELLO, reasoning_effort="low", **SAMPLED)
    assert "reasoning_effort has no effect" in effort.headers["x-edgemoe-warning"]


TOOLS = [{"type": "function", "function": {"name": "x"}}]


@every_case(
    ("body", "param", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]", "expected a tool of type function"),
        ({"tools": TOOLS * 2}, "tools", "the name 'x' stands twice"),
        ({"tool_choice": "required"}, "tool_choice", "expected tools beside it"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "y"}}}, "tool_choice", "there is no tool 'y'"),
        ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice", "auto, none, required or a function"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema", "expected a JSON schema"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "it excludes regex"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "expected a bias from -100 to 100"),
        ({"logit_bias": [1]}, "logit_bias", "expected an object with a bias"),
        ({"logit_bias": {"96": 1}}, None, "token id 96: expected 0 to 95"),
        ({"temperature": -1}, "temperature", "expected 0 (greedy) to 100, found -1"),
        ({"temperature": "hot"}, "temperature", 'expected a number, found "hot"'),
        ({"max_tokens": 0}, "max_tokens", "expected a whole number, 1 or more, found 0"),
        ({"n": 1.5}, "n", "expected a whole number from 1 to 128, found 1.5"),
        ({"seed": "x"}, "seed", "expected a whole number"),
        ({"stop": [1]}, "stop", "expected a text or a list of texts, found [1]"),
        ({"stream": "yes"}, "stream", "expected true or false"),
        ({"stream_options": True}, "stream_options", "expected an object"),
        ({"top_logprobs": 2}, "top_logprobs", "expected logprobs"),
        ({"model": None}, "model", "expected the model's name, such as 'letters', found nothing"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "Hi"}, "messages", 'expected a list of messages, found "Hi"'),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "expected system"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "expected system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "image_url"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "expected text"),
        ({"chat_template_kwargs": {"shout": 1}}, None, "does not read it"),
    ],
)
def test_requests_that_cannot_be_honoured_are_refused_by_name(
    client: Client, body: Any, param: str | None, says: str
) -> None:
    reply = client.post(CHAT, **{"messages": HELLO, "max_tokens": 4, **body})
    assert reply.status == 400
    assert says in reply.error["message"]
    assert reply.error["param"] == param
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(client: Client, stream: bool) -> None:
    long = [{"role": "user", "content": "x" * 300}]
    reply = client.post(CHAT, messages=long, stream=stream)
    tokens = len("u:" + "x" * 300 + "\na:")
    assert reply.status == 400
    assert reply.error["code"] == reply.error["type"] == "context_length_exceeded"
    assert (reply.error["n_prompt_tokens"], reply.error["n_ctx"]) == (tokens, 256)
    assert (
        f"maximum context length is 256 tokens. However, your messages resulted in {tokens}" in reply.error["message"]
    )
    assert client.post(TEXT, prompt=[1] * 256).error["n_prompt_tokens"] == 256
    assert client.post(TEXT, prompt="y" * 100_000).error["code"] == "context_length_exceeded"


@every_case(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8: found byte 0xff at 0"),
        (b"[1]", "expected a JSON object, found a list"),
        (b'{"temperature": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "not JSON"),
    ],
)
def test_bodies_that_are_no_objects(client: Client, body: bytes, says: str) -> None:
    reply = client.ask("POST", CHAT, body)
    assert reply.status == 400
    assert says in reply.error["message"]


def test_models(client: Client) -> None:
    for path in ("/v1/models", "/models"):
        (one,) = client.get(path).json["data"]
        assert one["id"] == "letters"
        assert one["context_length"] == one["meta"]["n_ctx"] == 256
    assert client.get("/v1/models/letters").json == one
    reply = client.get("/v1/models/other")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


def test_paths_and_methods(client: Client) -> None:
    assert client.post("/chat/completions", model=None, messages=HELLO, max_tokens=1).status == 200
    assert client.ask("HEAD", "/v1/models").status == 200
    unknown, method = client.get("/v1/wizardry"), client.get(CHAT)
    assert (unknown.status, method.status) == (404, 405)
    assert "there is no such path" in unknown.error["message"]
    embeddings = client.post("/v1/embeddings", input="x")
    assert (embeddings.status, embeddings.error["code"]) == (501, "unsupported")
    assert embeddings.headers["x-should-retry"] == "false"
    assert client.get("/lora-adapters").error["message"].startswith("/lora-adapters: edgemoe has no adapters")


def test_a_fingerprint_a_prompt_and_times_are_told_where_they_were_asked_for(client: Client) -> None:
    settings = {"messages": HELLO, "max_tokens": 3, "temperature": 0}
    plain = client.post(CHAT, **settings).json
    shown = client.post(CHAT, **settings, verbose=True).json
    assert plain["system_fingerprint"] == shown["system_fingerprint"]
    assert "__verbose" not in plain
    ids = client.server.service.model.encode(shown["__verbose"]["prompt"])
    assert len(ids) == shown["usage"]["prompt_tokens"]
    timed = [frame.json for frame in client.stream(CHAT, **settings, timings_per_token=True)[:-1]]
    assert [chunk["timings"]["predicted_n"] for chunk in timed if "timings" in chunk] == [1, 2, 3]


def test_conversations_are_counted(client: Client) -> None:
    counted = client.post(f"{CHAT}/input_tokens", messages=HELLO).json["input_tokens"]
    assert counted == client.post(CHAT, messages=HELLO, max_tokens=1).json["usage"]["prompt_tokens"]
    assert client.post(f"{CHAT}/input_tokens", messages=[{"role": "user", "content": "x" * 300}]).status == 200


def test_a_prompt_either_goes_on_or_begins_an_answer(client: Client) -> None:
    reply = client.post(CHAT, messages=HELLO, add_generation_prompt=True, continue_final_message=True)
    assert (reply.status, reply.error["param"]) == (400, "continue_final_message")


def test_the_message_that_departs_from_an_earlier_conversation_is_named(serve: Any) -> None:
    client = serve()

    def differs(*texts: str, **more: Any) -> str | None:
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        reply = client.post(CHAT, messages=messages, **{**SAMPLED, "max_tokens": 1, **more})
        assert reply.status == 200, reply.body
        found = reply.headers["x-edgemoe-prefix-differs"]
        return None if found is None else str(found)

    assert differs("be kind", "hello") is None
    assert differs("be kind", "hello") is None
    assert differs("be kind", "hello", "hi", "and now") is None
    assert differs("be kind", "hello", "hey", "and now") == "messages[2] (assistant)"
    assert differs("be kind, today is Monday", "hello") == "messages[0] (system)"
    assert differs("be kind", "hello", "hey", "and then") == "messages[3] (user)"
