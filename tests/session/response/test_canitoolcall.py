"""The recorded answers of canitoolcall (PyPI), whole and in pieces, against what their authors expect of a server."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from edgemoe.session.response.builtin import builtin
from edgemoe.session.response.parts import Message
from edgemoe.session.response.reader import ResponseReader

pytestmark = pytest.mark.serve

FAMILIES = {"qwen3-hermes": "hermes", "qwen3-xml": "qwen-xml", "glm": "glm", "gpt-oss": "harmony", "gemma4": "gemma4"}
LEAST_OF_WHOLE, LEAST_OF_STREAMED = 0.95, 0.90
"""Shares of all recorded answers. Calls that are streamed as they are written cannot be taken back where the answer is
cut within them, as most of the recorded answers are of which these fail; whole calls can."""
MARKER = re.compile(r"(<[^<>\s]{1,40}>|\[[A-Z_/]+\])")


def form_name(fixture: Any) -> str:
    model, family = fixture.models[0], fixture.family
    if family == "kimi":
        return "kimi-k3" if "K3" in model else "kimi-k2"
    if family == "llama":
        return "llama-python" if "Llama-4" in model else "llama-json"
    if family == "mistral":
        return "mistral-list" if re.search("/(vllm-)?v3-", fixture.id) else "mistral"
    if family == "deepseek":
        later = "dsml" if "V3.2" in model or "V4" in model else "deepseek-v3"
        return "deepseek-v3.1" if "V3.1" in model else later
    return FAMILIES[family]


def tokens(text: str) -> list[str]:
    """Markers, and a few characters each of what is between them."""
    parts = MARKER.split(text)
    return [piece for part in parts for piece in ([part] if MARKER.fullmatch(part) else _thirds(part)) if piece]


def _thirds(text: str) -> list[str]:
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def read(fixture: Any, family: Any, pieces: list[str], eager: bool) -> Any:
    from canitoolcall.results import ParsedToolCall, ParseResult

    models = {one.repo: one.default_generation_prompt for one in reversed(family.reference_models)}
    before = fixture.generation_prompt
    if before is None:
        before = models.get(fixture.models[0], [*models.values()][-1])
    tools = {one["function"]["name"]: one["function"] for one in fixture.tools} or {"none": {}}
    reader = ResponseReader(builtin(form_name(fixture)), before or "", tools, eager)
    message = Message()
    for piece in pieces:
        message.add(reader.push(piece))
    message.add(reader.finish("truncated" in fixture.tags))
    calls = tuple(ParsedToolCall(name=one.name, arguments_raw=one.arguments) for one in message.calls)
    return ParseResult(message.said or None, message.thought or None, calls)


@pytest.mark.parametrize(("eager", "least"), [(False, LEAST_OF_WHOLE), (True, LEAST_OF_STREAMED)])
def test_most_recorded_answers_are_read_as_expected(eager: bool, least: float) -> None:
    pytest.importorskip("canitoolcall")
    from canitoolcall import checks
    from canitoolcall.chunking import DEFAULT_STRATEGIES, split
    from canitoolcall.fixtures import load_fixtures
    from canitoolcall.pytest_plugin import family_for
    from canitoolcall.results import Observation

    found: Counter[str] = Counter()
    failed: list[str] = []
    for fixture in load_fixtures(None):
        family, pieces = family_for(fixture), tokens(fixture.raw_output)
        special = {one for one in pieces if MARKER.fullmatch(one)}
        streams = {
            one.id: read(fixture, family, ["".join(group) for group in split(pieces, one, special)], eager)
            for one in DEFAULT_STRATEGIES
        }
        rows = checks.run_checks(
            fixture, family, Observation(read(fixture, family, [fixture.raw_output], False), streams)
        )
        status = checks.case_status(rows).value
        found[status] += 1
        failed += [fixture.id] * (status == "fail")
        assert not [row for row in rows if row.check == "split_invariance" and row.status.value == "fail"], fixture.id
    share = (found["pass"] + found["soft_pass"]) / sum(found.values())
    print(f"{share:.1%} of {sum(found.values())}: {dict(found)}")
    assert share >= least, failed
