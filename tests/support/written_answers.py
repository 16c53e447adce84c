"""Answers with a thought, a text and two calls, as the families with a form of their own write them."""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

SCHEMA = {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}}
TOOLS: dict[str, dict[str, Any]] = {"weather": {"parameters": {"properties": SCHEMA}}, "now": {}}
TWO = (("weather", {"city": 'Zürich "A"', "days": 3, "tags": ["x"]}), ("now", {}))
NESTED_TEXT = '{"city": "Zürich \\"A\\"", "days": 3, "tags": ["x"]}'

WRITTEN = {
    "harmony": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>Look:<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + NESTED_TEXT
        + "<|call|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}",
    ),
    "deepseek-v3": (
        "<｜Assistant｜><think>",
        "hm</think>Look:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        + NESTED_TEXT + "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": (
        "<｜Assistant｜><think>",
        "hm</think>Look:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>" + NESTED_TEXT
        + "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "dsml": (
        "<｜Assistant｜><think>",
        'hm</think>Look:\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">'
        'Zürich "A"</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="tags" string="false">["x"]</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="now"/>\n'
        "</｜DSML｜function_calls>",
    ),
    "kimi-k2": (
        "<|im_assistant|>assistant<|im_middle|><think>",
        "hm</think>Look:<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        + NESTED_TEXT + "<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "kimi-k3": (
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>',
        "hm<|close|>think<|sep|><|open|>response<|sep|>Look:<|close|>response<|sep|><|open|>tools<|sep|><|open|>call "
        'tool="weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Zürich "A"<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|open|>argument key="tags" type="array"'
        '<|sep|>["x"]<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|><|close|>message<|sep|>",
    ),
    "glm": (
        "<|assistant|>\n<think>",
        "hm</think>Look:\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich \"A\"</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>[\"x\"]</arg_value>\n"
        "</tool_call>\n<tool_call>now</tool_call>",
    ),
    "qwen-xml": (
        "<|im_start|>assistant\n<think>\n",
        "hm\n</think>\n\nLook:\n<tool_call>\n<function=weather>\n<parameter=city>\nZürich \"A\"\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n<parameter=tags>\n[\"x\"]\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "minimax": (
        "]~b]ai\n<think>\n",
        'hm\n</think>\n\nLook:\n<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Zürich "A"</parameter>\n'
        '<parameter name="days">3</parameter>\n<parameter name="tags">["x"]</parameter>\n</invoke>\n<invoke name="now">\n'
        "</invoke>\n</minimax:tool_call>",
    ),
    "gemma4": (
        "<|turn>model\n",
        '<|channel>thought\nhm<channel|>Look:<|tool_call>call:weather{city:<|"|>Zürich "A"<|"|>,days:3,tags:[<|"|>x<|"|>]}'
        "<tool_call|><|tool_call>call:now{}<tool_call|>",
    ),
    "mistral": (
        "[/INST]",
        "[THINK]hm[/THINK]Look:[TOOL_CALLS]weather[ARGS]" + NESTED_TEXT + "[TOOL_CALLS]now[ARGS]{}",
    ),
    "mistral-list": (
        "[/INST]",
        '[THINK]hm[/THINK]Look:[TOOL_CALLS] [{"name": "weather", "arguments": ' + NESTED_TEXT
        + '}, {"name": "now", "arguments": {}}]',
    ),
    "lfm2": (
        "<|im_start|>assistant\n<think>",
        "hm</think>Look:<|tool_call_start|>[weather(city='Zürich \"A\"', days=3, tags=['x']), now()]<|tool_call_end|>",
    ),
    "granite": (
        "<|start_of_role|>assistant<|end_of_role|><think>",
        'hm</think>Look:<|tool_call|>[{"name": "weather", "arguments": ' + NESTED_TEXT
        + '}, {"name": "now", "arguments": {}}]',
    ),
    "command": (
        "<|CHATBOT_TOKEN|><|START_THINKING|>",
        "hm<|END_THINKING|><|START_RESPONSE|>Look:<|END_RESPONSE|><|START_ACTION|>[\n    "
        '{"tool_call_id": "0", "tool_name": "weather", "parameters": ' + NESTED_TEXT
        + '},\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
    ),
    "hy3": (
        "<｜hy_Assistant:opensource｜><think:opensource>",
        "hm</think:opensource>Look:<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n"
        "<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Zürich \"A\"</arg_value:opensource>\n"
        "<arg_key:opensource>days</arg_key:opensource>\n<arg_value:opensource>3</arg_value:opensource>\n"
        "<arg_key:opensource>tags</arg_key:opensource>\n<arg_value:opensource>[\"x\"]</arg_value:opensource>\n"
        "</tool_call:opensource>\n<tool_call:opensource>now<tool_sep:opensource>\n</tool_call:opensource>\n"
        "</tool_calls:opensource>",
    ),
    "solar": (
        "<|begin|>assistant",
        "<|think|>hm<|end|><|begin|>assistant<|content|>Look:<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1"
        "<|tool_call:name|>weather<|tool_call:args|>" + NESTED_TEXT + "<|tool_call:end|><|tool_call:begin|>a2"
        "<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|><|calls|>",
    ),
    "minimax-m1": (
        "<beginning_of_sentence>ai name=assistant\n",
        '<think>hm</think>Look:\n<tool_calls>\n{"name": "weather", "arguments": ' + NESTED_TEXT
        + '}\n{"name": "now", "arguments": {}}\n</tool_calls>',
    ),
    "granite-4": (
        "<|start_of_role|>assistant<|end_of_role|><think>",
        'hm</think>Look:<tool_call>\n{"name": "weather", "arguments": ' + NESTED_TEXT + "}\n</tool_call>\n<tool_call>\n"
        '{"name": "now"}\n</tool_call>',
    ),
    "hermes": (
        "<|im_start|>assistant\n",
        '<think>\nhm\n</think>\n\nLook:\n<tool_call>\n{"name": "weather", "arguments": ' + NESTED_TEXT
        + '}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
}  # fmt: skip
"""The end of a prompt, and an answer in which the model thinks `hm`, says `Look:`, and makes the two calls."""

BARE = {
    "llama-json": (
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        '{"name": "weather", "parameters": ' + NESTED_TEXT + '}; {"name": "now", "parameters": {}}',
    ),
    "llama-python": (
        "<|header_start|>assistant<|header_end|>\n\n",
        "[weather(city='Zürich \"A\"', days=3, tags=['x']), now()]",
    ),
}
"""The same for families that do not say anything beside calls, nor mark them."""
