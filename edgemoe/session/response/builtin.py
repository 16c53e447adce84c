"""Forms of answers of families whose checkpoints do not say theirs, known by the markers in their chat templates.

The table is in the words of `response_template` (`form.py`), so that an entry can be copied into a checkpoint, with two
additions: a call that is `offered_only`, and the group `string` in the pattern of a tag, which says whether a value is
text.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from edgemoe.session.response.form import ResponseForm

JSON = {"content": "json"}
NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
NESTED = {"type": "function", "function": "{content}"}
LISTED = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}


BEGUN = r"(?=<think>\s*\Z)"
"""The place before a thought that the prompt has begun, in whichever words it begins an answer."""


def _think(opening: str = "<think>", closing: str = "</think>") -> dict[str, Any]:
    return {"open": opening, "close": closing}


def _call(opening: str, closing: str, **more: Any) -> dict[str, Any]:
    return {"open_pattern": opening, "close_pattern": closing, "repeats": True, "transform": NAMED, **JSON, **more}


def _tags(pattern: str, parser: dict[str, Any] | None = None) -> dict[str, Any]:
    arguments = {"tag_pattern": pattern, **({"value_parser": parser} if parser else {})}
    return {"content": "xml-inline", "content_args": arguments}


def _form(start: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {"start_anchor_pattern": f"{start}|{BEGUN}", "fields": {"content": {}, **fields}}


ANY_JSON = {"name": "json", "args": {"allow_non_json": True}}
CHATML = r"<\|im_start\|>assistant\n"
HERMES = {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "transform": NESTED, **JSON}
PYTHON = {"content": "python-call-list", "transform": LISTED, "transform_each": True}
DSML = "(?:function_calls|tool_calls|calls)"
BARE_LIST = r"\A\s*(?=\[[A-Za-z_][\w.]*\()"

TABLE: dict[str, dict[str, Any]] = {
    "harmony": {
        "start_anchor": "<|start|>assistant",
        "fields": {
            "content": {},
            "thinking": {
                "open_pattern": r"(?:<\|start\|>assistant)?<\|channel\|>analysis\s*<\|message\|>",
                "close_pattern": r"<\|end\|>|(?=<\|start\|>)",
            },
            "tool_calls": _call(
                r"(?:(?:<\|start\|>assistant)? to=functions\.(?P<name>[\w.-]+)\s*<\|channel\|>(?:commentary|analysis)"
                r"|(?:<\|start\|>assistant)?<\|channel\|>(?:commentary|analysis) to=functions\.(?P<name>[\w.-]+))"
                r"\s*(?:<\|constrain\|>\s*\w+|json|code)?\s*<\|message\|>",
                r"<\|call\|>|<\|end\|>",
            ),
            "final": {
                "open_pattern": r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)\s*"
                r"(?:<\|constrain\|>\s*\w+)?\s*<\|message\|>",
                "close_pattern": r"<\|end\|>|<\|return\|>|(?=<\|start\|>)",
            },
        },
    },
    "deepseek-v3": _form(
        r"<｜Assistant｜>(?:</think>)?",
        thinking=_think(),
        tool_calls=_call(
            r"(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\n",
            r"\n```<｜tool▁call▁end｜>(?:\s*<｜tool▁calls▁end｜>)?",
        ),
    ),
    "deepseek-v3.1": _form(
        r"<｜Assistant｜>(?:</think>)?",
        thinking=_think(),
        tool_calls=_call(
            r"(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>(?P<name>[^<]+?)<｜tool▁sep｜>",
            r"<｜tool▁call▁end｜>(?:\s*<｜tool▁calls▁end｜>)?",
        ),
    ),
    "dsml": _form(
        r"<｜Assistant｜>(?:</think>)?",
        thinking=_think(),
        tool_calls={
            "open_pattern": rf'(?:<｜DSML｜ ?{DSML}>\s*)?<｜DSML｜ ?invoke name="(?P<name>[^"]+)"\s*/?>',
            "close_pattern": rf"(?:(?<=/>)|\s*</｜DSML｜ ?invoke>)(?:\s*</｜DSML｜ ?{DSML}>)?",
            "repeats": True,
            "transform": NAMED,
            **_tags(
                r'<｜DSML｜ ?parameter name="(?P<key>[^"]+)" string="(?P<string>true|false)">'
                r"(?P<value>.*?)</｜DSML｜ ?parameter>"
            ),
        },
    ),
    "kimi-k2": _form(
        r"<\|im_assistant\|>assistant<\|im_middle\|>",
        thinking=_think(),
        tool_calls=_call(
            r"(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?\s*"
            r"<\|tool_call_argument_begin\|>",
            r"<\|tool_call_end\|>(?:\s*<\|tool_calls_section_end\|>)?",
        ),
    ),
    "kimi-k3": {
        "start_anchor": '<|open|>message role="assistant"<|sep|>',
        "fields": {
            "content": {},
            "thinking": _think("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
            "response": {
                "open": "<|open|>response<|sep|>",
                "close_pattern": r"<\|close\|>response<\|sep\|>(?:<\|close\|>message<\|sep\|>)?",
            },
            "tool_calls": {
                "open_pattern": r'(?:<\|open\|>tools<\|sep\|>)?<\|open\|>call tool="(?P<name>[^"]+)"[^<]*<\|sep\|>',
                "close_pattern": r"<\|close\|>call<\|sep\|>(?:<\|close\|>tools<\|sep\|>)?"
                r"(?:<\|close\|>message<\|sep\|>)?",
                "repeats": True,
                "transform": NAMED,
                **_tags(
                    r'<\|open\|>argument key="(?P<key>[^"]*)" type="(?:(?P<string>string)|\w+)"<\|sep\|>'
                    r"(?P<value>.*?)<\|close\|>argument<\|sep\|>"
                ),
            },
        },
    },
    "glm": _form(
        r"(?:<\|assistant\|>|<assistant>|<role>ASSISTANT</role>)\n?(?:</think>)?",
        thinking=_think(),
        tool_calls={
            "open_pattern": r"<tool_call>\s*(?P<name>[^\s<]+)\s*",
            "close": "</tool_call>",
            "repeats": True,
            "transform": NAMED,
            **_tags(r"<arg_key>(?P<key>[^<]*)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", ANY_JSON),
        },
    ),
    "qwen-xml": _form(
        CHATML,
        thinking=_think(),
        tool_calls={
            "open_pattern": r"(?:<tool_call>\s*)?<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>(?:\s*</tool_call>)?",
            "repeats": True,
            "transform": NAMED,
            **_tags(r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?(?:</parameter>|(?=<parameter=))"),
        },
    ),
    "minimax": _form(
        r"\]~b\]ai\n",
        thinking=_think(),
        tool_calls={
            "open_pattern": r'(?:<minimax:tool_call>\s*)?<invoke name="?(?P<name>[^">\n]+)"?>',
            "close_pattern": r"</invoke>(?:\s*</minimax:tool_call>)?",
            "repeats": True,
            "transform": NAMED,
            **_tags(r'<parameter name="?(?P<key>[^">\n]+)"?>(?P<value>.*?)</parameter>', ANY_JSON),
        },
    ),
    "gemma4": _form(
        r"<\|turn>model\n",
        thinking={"open_pattern": r"<\|channel>(?:thought)?\n?", "close": "<channel|>"},
        tool_calls={
            "open_pattern": r"<\|tool_call>\s*call:\s*(?P<name>[\w.-]+)\s*(?=\{)",
            "close": "<tool_call|>",
            "repeats": True,
            "transform": NAMED,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
        },
    ),
    "mistral": _form(
        r"\[/INST\]|\[/TOOL_RESULTS\]",
        thinking={"open": ["[THINK]", "<think>"], "close": ["[/THINK]", "</think>"]},
        tool_calls=_call(
            r"\[TOOL_CALLS\]\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*|(?=\{))",
            r"(?=\[TOOL_CALLS\])|</s>",
        ),
    ),
    "mistral-list": _form(
        r"\[/INST\]|\[/TOOL_RESULTS\]",
        thinking={"open": ["[THINK]", "<think>"], "close": ["[/THINK]", "</think>"]},
        tool_calls={
            "open_pattern": r"\[TOOL_CALLS\]\s*(?=\[)",
            "transform": LISTED,
            "transform_each": True,
            **JSON,
        },
    ),
    "llama-json": _form(
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\s*",
        tool_calls={
            "open_pattern": r"(?:<\|python_tag\|>|\A)\s*(?=\{)|(?<=\};\s*)(?=\{)",
            "close_pattern": r";\s*(?=\{)",
            "repeats": True,
            "offered_only": True,
            "transform": NESTED,
            **JSON,
        },
    ),
    "llama-python": _form(
        r"<\|header_start\|>assistant<\|header_end\|>\s*",
        tool_calls={
            "open_pattern": rf"<\|python_start\|>\s*|{BARE_LIST}",
            "close_pattern": r"<\|python_end\|>",
            "offered_only": True,
            **PYTHON,
        },
    ),
    "lfm2": _form(
        CHATML,
        thinking=_think(),
        tool_calls={"open": "<|tool_call_start|>", "close": "<|tool_call_end|>", **PYTHON},
    ),
    "granite": _form(
        r"<\|start_of_role\|>assistant<\|end_of_role\|>",
        thinking=_think(),
        tool_calls={
            "open_pattern": r"<\|tool_call\|>\s*",
            "transform": LISTED,
            "transform_each": True,
            **JSON,
        },
    ),
    "command": _form(
        r"<\|CHATBOT_TOKEN\|>",
        thinking=_think("<|START_THINKING|>", "<|END_THINKING|>"),
        response={
            "open": ["<|START_RESPONSE|>", "<|START_TEXT|>"],
            "close": ["<|END_RESPONSE|>", "<|END_TEXT|>"],
        },
        tool_calls={
            "open": "<|START_ACTION|>",
            "close": "<|END_ACTION|>",
            "transform": {"function": {"name": "{tool_name}", "arguments": "{parameters}"}},
            "transform_each": True,
            **JSON,
        },
    ),
    "hy3": _form(
        r"<｜hy_Assistant(?::\w+)?｜>(?:<think(?::\w+)?></think(?::\w+)?>)?",
        thinking={"open_pattern": r"<think(?::\w+)?>", "close_pattern": r"</think(?::\w+)?>"},
        tool_calls={
            "open_pattern": r"(?:<tool_calls(?::\w+)?>\s*)?<tool_call(?::\w+)?>\s*(?P<name>[^\s<]+)\s*"
            r"<tool_sep(?::\w+)?>",
            "close_pattern": r"</tool_call(?::\w+)?>(?:\s*</tool_calls(?::\w+)?>)?",
            "repeats": True,
            "transform": NAMED,
            **_tags(
                r"<arg_key(?::\w+)?>(?P<key>[^<]*)</arg_key(?::\w+)?>\s*<arg_value(?::\w+)?>(?P<value>.*?)"
                r"</arg_value(?::\w+)?>",
                ANY_JSON,
            ),
        },
    ),
    "solar": _form(
        r"<\|begin\|>assistant",
        thinking={"open_pattern": r"(?:<\|begin\|>assistant)?<\|think\|>", "close": "<|end|>"},
        response={"open_pattern": r"(?:<\|begin\|>assistant)?<\|content\|>", "close": "<|end|>"},
        tool_calls=_call(
            r"(?:(?:<\|begin\|>assistant)?<\|tool_calls\|>)?<\|tool_call:begin\|>[^<]*<\|tool_call:name\|>(?P<name>[^<]+)"
            r"<\|tool_call:args\|>",
            r"<\|tool_call:end\|>(?:<\|calls\|>)?",
        ),
    ),
    "minimax-m1": _form(
        r"<beginning_of_sentence>ai name=assistant\n",
        thinking=_think(),
        tool_calls={
            "open_pattern": r'<tool_calls>\s*(?=\{)|(?<=\}\n)(?=\{"name")',
            "close_pattern": r'\n(?=\{"name")|\s*</tool_calls>',
            "repeats": True,
            "offered_only": True,
            "transform": NESTED,
            **JSON,
        },
    ),
    "granite-4": _form(r"<\|start_of_role\|>assistant<\|end_of_role\|>", thinking=_think(), tool_calls=HERMES),
    "hermes": _form(CHATML, thinking=_think(), tool_calls=HERMES),
    "think": _form(r"<\|assistant\|>\n?|<\|im_start\|>assistant\n", thinking=_think()),
}  # fmt: skip

MARKERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", ("<|channel|>", "<|message|>")),
    ("dsml", ("｜DSML｜",)),
    ("deepseek-v3", ("<｜tool▁call▁begin｜>", "```json")),
    ("deepseek-v3.1", ("<｜tool▁call▁begin｜>",)),
    ("kimi-k2", ("<|tool_call_argument_begin|>",)),
    ("kimi-k3", ("<|open|>", "<|sep|>", "<|close|>")),
    ("command", ("<|START_ACTION|>",)),
    ("hy3", ("<tool_sep",)),
    ("solar", ("<|tool_call:begin|>",)),
    ("minimax-m1", ("<beginning_of_sentence>", "<tool_calls>")),
    ("glm", ("<arg_key>",)),
    ("minimax", ("<minimax:tool_call>",)),
    ("qwen-xml", ("<function=",)),
    ("gemma4", ("<|tool_call>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("lfm2", ("<|tool_list_start|>",)),
    ("granite", ("<|start_of_role|>", "<|tool_call|>")),
    ("granite-4", ("<|start_of_role|>", "<tool_call>")),
    ("mistral", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral-list", ("[TOOL_CALLS]",)),
    ("llama-python", ("<|header_start|>",)),
    ("llama-json", ("<|start_header_id|>", "tools")),
    ("hermes", ("<tool_call>",)),
    ("think", ("</think>",)),
)
"""The texts that the chat template of each form has; the first entry that fits counts."""


def builtin_name(template: str) -> str | None:
    """The name of the form of the answers to prompts of a chat template; None for an unknown one."""
    return next((name for name, texts in MARKERS if all(text in template for text in texts)), None)


@cache
def builtin(name: str) -> ResponseForm:
    """The form of a name in the table."""
    return ResponseForm.read(TABLE[name])
