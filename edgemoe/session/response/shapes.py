"""Grammars that make a model call tools: the shape of calls in each family, with the schemas of the arguments.

A grammar in Lark's form, as llguidance reads it. Markers that are tokens of their own stand in it by their ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemoe.session.constraint import spaced
from edgemoe.session.response.types import argument_types

TEXT = "/(?s:.*)/"
SPACE = r"/[ \n]*/"


@dataclass(frozen=True)
class Tags:
    """Arguments one after another, each with its name. `{}` stands for it."""

    opening: str
    closing: str
    between: str = ""
    string: str | None = None
    """The opening of a text, where it differs."""
    raw: bool = True
    """Whether texts stand as they are, up to the closing; else they are JSON."""


@dataclass(frozen=True)
class Shape:
    """The calls of a family. `{}` stands for a tool's name."""

    opening: str
    closing: str
    arguments: Tags | None = None
    """None: they are a JSON object."""
    between: str = ""
    section: tuple[str, str] = ("", "")
    """The texts around all calls. The second does not begin as `between` does: llguidance would not tell them apart."""
    thought: tuple[str, str] | None = ("<think>", "</think>")
    several: bool = True


V3 = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
MINIMAX = ("<minimax:tool_call>\n", "</minimax:tool_call>")
K2 = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
CLOSE_K3 = "<|close|>argument<|sep|>"
HERMES = Shape('<tool_call>\n{{"name": "{}", "arguments": ', "}\n</tool_call>", between="\n")
LIST = Shape('{{"name": "{}", "arguments": ', "}", between=", ")
PYTHON = Tags("{}=", "", ", ", raw=False)

SHAPES: dict[str, Shape] = {
    "harmony": Shape(
        "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>",
        "",
        thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        several=False,
    ),
    "deepseek-v3": Shape(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n", "\n```<｜tool▁call▁end｜>", None, "\n", V3
    ),
    "deepseek-v3.1": Shape("<｜tool▁call▁begin｜>{}<｜tool▁sep｜>", "<｜tool▁call▁end｜>", section=V3),
    "dsml": Shape(
        '<｜DSML｜invoke name="{}">\n',
        "</｜DSML｜invoke>\n",
        Tags(
            '<｜DSML｜parameter name="{}" string="false">',
            "</｜DSML｜parameter>\n",
            string='<｜DSML｜parameter name="{}" string="true">',
        ),
        "",
        ("\n\n<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"),
    ),
    "kimi-k2": Shape("<|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>", "<|tool_call_end|>", section=K2),
    "kimi-k3": Shape(
        '<|open|>call tool="{}" index="1"<|sep|>',
        "<|close|>call<|sep|>",
        Tags(
            '<|open|>argument key="{}" type="object"<|sep|>',
            CLOSE_K3,
            string='<|open|>argument key="{}" type="string"<|sep|>',
        ),
        section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
        thought=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ),
    "glm": Shape(
        "<tool_call>{}\n", "</tool_call>", Tags("<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n"), "\n"
    ),
    "minimax": Shape(
        '<invoke name="{}">\n', "</invoke>\n", Tags('<parameter name="{}">', "</parameter>\n"), "", MINIMAX
    ),
    "qwen-xml": Shape(
        "<tool_call>\n<function={}>\n",
        "</function>\n</tool_call>",
        Tags("<parameter={}>\n", "\n</parameter>\n"),
        "\n",
    ),
    "gemma4": Shape(
        "<|tool_call>call:{}{{",
        "}<tool_call|>",
        Tags("{}:", "", ",", raw=False),
        thought=("<|channel>thought\n", "<channel|>"),
    ),
    "lfm2": Shape("<|tool_call_start|>[{}(", ")]<|tool_call_end|>", PYTHON),
    "mistral": Shape("[TOOL_CALLS]{}[ARGS]", "", thought=("[THINK]", "[/THINK]")),
    "mistral-list": Shape(LIST.opening, LIST.closing, None, ", ", ("[TOOL_CALLS] [", "]"), ("[THINK]", "[/THINK]")),
    "granite": Shape(LIST.opening, LIST.closing, None, ", ", ("<|tool_call|>[", "]")),
    "command": Shape(
        '{{"tool_call_id": "0", "tool_name": "{}", "parameters": ',
        "}",
        None,
        ", ",
        ("<|START_ACTION|>[", "]<|END_ACTION|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "solar": Shape(
        "<|tool_call:begin|>call_0<|tool_call:name|>{}<|tool_call:args|>",
        "<|tool_call:end|>",
        section=("<|tool_calls|>", ""),
        thought=("<|think|>", "<|end|><|begin|>assistant"),
    ),
    "minimax-m1": Shape(
        '{{"name": "{}", "arguments": ', "}\n", section=("<tool_calls>\n", "</tool_calls>")
    ),
    "granite-4": HERMES,
    "hermes": HERMES,
    "llama-json": Shape('{{"name": "{}", "parameters": ', "}", thought=None, several=False),
    "llama-python": Shape("{}(", ")", PYTHON, ", ", ("[", "]"), thought=None),
}  # fmt: skip


def call_grammar(
    shape: Shape, tools: Mapping[str, Mapping[str, Any]], markers: Mapping[str, int], several: bool
) -> str:
    """The grammar of an answer that calls some of these tools. `markers`: ids of tokens by their texts."""
    return _Grammar(shape, markers).text(tools, several)


def thought_grammar(thought: tuple[str, str], markers: Mapping[str, int], begun: bool) -> str:
    """The grammar of a thought with the grammar `body` after it.

    The thought may be left out. Where the prompt has begun one, it is to be ended.
    """
    return _Grammar(HERMES, markers).thought(thought, begun)


def spelled(shape: Shape, calls: Sequence[Mapping[str, Any]]) -> str:
    """The text of calls, each with name and arguments, as a family writes them."""
    return shape.section[0] + shape.between.join(_spelled(shape, one) for one in calls) + shape.section[1]


def _spelled(shape: Shape, call: Mapping[str, Any]) -> str:
    tags, arguments = shape.arguments, call["arguments"]
    if tags is None or not isinstance(arguments, Mapping):
        body = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return f"{shape.opening.format(call['name'])}{body}{shape.closing}"
    said = []
    for key, value in arguments.items():
        raw = tags.raw and isinstance(value, str)
        opening = tags.string if tags.string is not None and raw else tags.opening
        text = value if raw else json.dumps(value, ensure_ascii=False)
        said.append(f"{opening.format(key)}{text}{tags.closing}")
    return f"{shape.opening.format(call['name'])}{tags.between.join(said)}{shape.closing}"


class _Grammar:
    def __init__(self, shape: Shape, markers: Mapping[str, int]) -> None:
        self._shape = shape
        self._markers = markers
        self._pattern = re.compile("|".join(re.escape(one) for one in sorted(markers, key=len, reverse=True)) or "(?!)")
        self._rules: list[str] = []

    def text(self, tools: Mapping[str, Mapping[str, Any]], several: bool) -> str:
        shape = self._shape
        calls = " | ".join(self._call(name, tool) for name, tool in tools.items())
        more = f" ({self._literal(shape.between)} call)*" if several and shape.several else ""
        section = [self._literal(one) for one in shape.section]
        start = f"start: {section[0]} call{more} {section[1]}"
        return "\n".join([start, f"call: {calls}", *self._rules])

    def thought(self, thought: tuple[str, str], begun: bool) -> str:
        opening, closing = thought
        ended = f"{self._until(closing)} {SPACE}"
        start = ended if begun else f"({self._literal(opening)} {ended})?"
        return "\n".join([f"start: {start} @body", *self._rules])

    def _call(self, name: str, tool: Mapping[str, Any]) -> str:
        shape = self._shape
        schema = tool.get("parameters") or {"type": "object", "properties": {}}
        arguments = (
            f"%json {_spaced(schema)}" if shape.arguments is None else self._tagged(shape.arguments, tool, schema)
        )
        return f"{self._literal(shape.opening.format(name))} {arguments} {self._literal(shape.closing)}"

    def _tagged(self, tags: Tags, tool: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
        """Rules for the arguments in the order of the schema, of which the optional ones may be left out."""
        properties = list((schema.get("properties") or {}).items())
        required = schema.get("required") or ()
        number = len(self._rules)
        first, later = f"first_{number}", f"later_{number}"
        for place in range(len(properties), -1, -1):
            for rule, before in ((first, '""'), (later, self._literal(tags.between))):
                if place == len(properties):
                    self._rules.append(f'{rule}_{place}: ""')
                    continue
                key, value = properties[place]
                argument = self._argument(tags, tool, str(key), value, schema)
                skip = "" if key in required else f" | {rule}_{place + 1}"
                self._rules.append(f"{rule}_{place}: {before} {argument} {later}_{place + 1}{skip}")
        return f"{first}_0"

    def _argument(self, tags: Tags, tool: Mapping[str, Any], key: str, value: Any, schema: Mapping[str, Any]) -> str:
        types = argument_types(tool, key)
        if tags.raw and "string" in types:
            opening = self._literal((tags.string or tags.opening).format(key))
            choices = value.get("enum") if isinstance(value, Mapping) else None
            if isinstance(choices, list) and choices and all(isinstance(one, str) for one in choices):
                said = " | ".join(self._literal(one) for one in choices)
                return f"{opening} ({said}) {self._literal(tags.closing)}"
            return f"{opening} {self._until(tags.closing)}"
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        json_value = _spaced({**shared, **value} if isinstance(value, Mapping) else {})
        return f"{self._literal(tags.opening.format(key))} %json {json_value} {self._literal(tags.closing)}"

    def _until(self, closing: str) -> str:
        """Any text up to a closing."""
        marker = self._pattern.search(closing)
        if marker is None:
            rule = f"text_{len(self._rules)}"
            self._rules.append(f"{rule}[suffix={json.dumps(closing, ensure_ascii=False)}]: {TEXT}")
            return rule
        return f"{TEXT} {self._literal(closing[marker.start() :])}"

    def _literal(self, text: str) -> str:
        parts, at = [], 0
        for marker in self._pattern.finditer(text):
            parts += [json.dumps(text[at : marker.start()], ensure_ascii=False)] * (marker.start() > at)
            parts.append(f"<[{self._markers[marker[0]]}]>")
            at = marker.end()
        parts += [json.dumps(text[at:], ensure_ascii=False)] * (at < len(text))
        return " ".join(parts) or '""'


def _spaced(schema: Any) -> str:
    return json.dumps(spaced(schema if isinstance(schema, Mapping) else {}), ensure_ascii=False)
