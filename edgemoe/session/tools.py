"""Tools in a conversation: how a model is told of them, how its calls are read, and how they can be demanded.

Where a chat template has a place for tools, it tells them in the model's own words. Any other model is told in its
system message, and asked for calls in the form that most models know (Hermes); earlier calls and results are text then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgemoe.errors import UsageError
from edgemoe.session.constraint import Constraint, Grammars, Structure
from edgemoe.session.conversation import ConversationEncoder
from edgemoe.session.response.builtin import HERMES, builtin_name
from edgemoe.session.response.form import ResponseForm
from edgemoe.session.response.forms import form_of
from edgemoe.session.response.reader import ResponseReader
from edgemoe.session.response.replays import Replays
from edgemoe.session.response.shapes import HERMES as HERMES_SHAPE
from edgemoe.session.response.shapes import SHAPES, Shape, call_grammar, spelled, thought_grammar
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import Tokenizer

Choice = Literal["auto", "none", "required"]
Message = Mapping[str, Any]
BEFORE_TOKENS = 4096
"""The end of a prompt in which the beginning of an answer is looked for."""
GENERIC_START = r"\n(?!)"
INVITATION = """You can call functions. Their signatures are within <tools></tools>:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments as a JSON object within <tool_call></tool_call>:
<tool_call>
{{"name": "FUNCTION", "arguments": {{}}}}
</tool_call>"""


@dataclass(frozen=True)
class ToolWishes:
    """The tools that a conversation offers, and which of them are to be called."""

    tools: Sequence[Mapping[str, Any]] = ()
    """Functions with name, description and parameters."""
    choice: Choice = "auto"
    name: str | None = None
    """The tool that must be called."""
    several: bool = True
    """Whether one answer may have several calls."""

    @property
    def offered(self) -> dict[str, Mapping[str, Any]]:
        """The tools by their names; none where none may be called."""
        return {} if self.choice == "none" else {str(tool["name"]): tool for tool in self.tools}

    @property
    def demanded(self) -> dict[str, Mapping[str, Any]]:
        """The tools of which one must be called; empty where none must."""
        if self.name is not None:
            return {self.name: self.offered[self.name]}
        return self.offered if self.choice == "required" else {}


@dataclass(frozen=True)
class ThoughtBudget:
    """The most tokens of a thought, and those that end it."""

    most: int
    end: Sequence[int]


@dataclass(frozen=True)
class ToolPrompt:
    """A prompt with what its answer needs to be read."""

    ids: list[int]
    text: str
    before: str
    """The end of the prompt, special tokens by their names."""
    wishes: ToolWishes
    form: ResponseForm | None
    constraint: Constraint | None = None
    thought_end: Sequence[int] = ()
    """The tokens that end a thought; empty where the model has none, or where they are not known."""

    def budget(self, most: int | None) -> ThoughtBudget | None:
        """The budget of thoughts of so many tokens."""
        return ThoughtBudget(most, self.thought_end) if most is not None and self.thought_end else None

    def reader(self, eager: bool) -> ResponseReader | None:
        """A reader for one answer; None where nothing is known of the answers' form."""
        if self.form is None:
            return None
        most = None if self.wishes.several else 1
        return ResponseReader(self.form, self.before, self.wishes.offered or None, eager, most)


@dataclass
class ToolTexts:
    """Makes prompts with tools for one model. Not to be used from several threads at once."""

    tokenizer: Tokenizer
    template: ChatTemplate
    folder: Path
    """The model's folder, whose files may say the form of its answers."""
    grammars: Grammars
    literal: bool = False
    replays: Replays = field(init=False, default_factory=Replays)

    def __post_init__(self) -> None:
        self._form = form_of(self.folder, self.template.source)
        self._knows: bool | None = None

    def prompt(
        self,
        messages: Sequence[Message],
        wishes: ToolWishes,
        variables: Mapping[str, Any] | None = None,
        continues: bool = False,
        structure: Structure | None = None,
        opens: bool = True,
    ) -> ToolPrompt:
        """The prompt of a conversation whose answer is to have a structure. Raises EdgemoeError.

        `opens`: whether the opening of an answer stands at its end, unless the answer continues the last message.
        """
        knows = self.template_knows_tools
        offered = list(wishes.offered.values())
        has_calls = any("tool_calls" in one or one["role"] == "tool" for one in messages)
        given = dict(variables or {})
        if offered and knows:
            given["tools"] = [{"type": "function", "function": dict(tool)} for tool in offered]
        elif (offered or has_calls) and not knows:
            messages = plainly(messages, offered)
        if knows:
            name = builtin_name(self.template.source)
            messages = in_words_of(name, messages)
            if "tool_calls" not in self.template.source:
                messages = calls_in_text(SHAPES.get(name or "", HERMES_SHAPE), messages)
        encoder = ConversationEncoder(self.tokenizer, self.template, given, self.literal)
        form = self._form if knows or not offered else _with_hermes(self._form)
        text = encoder.render(messages, continues) if opens or continues else encoder.render_past(messages)
        ids = None
        if form is not None and not self.literal:
            ids = self.replays.ids(messages, text, encoder, form, wishes.offered, self.tokenizer)
        if ids is None:
            ids = encoder.encode(messages, continues) if self.literal else self.tokenizer.encode(text)
        before = self.tokenizer.decode(ids[-BEFORE_TOKENS:], skip_special_tokens=False)
        constraint = self._constraint(wishes, before, form, structure)
        thought = self._thought()
        end = () if thought is None else self.tokenizer.encode(thought[1])
        return ToolPrompt(ids, text, before, wishes, form, constraint, end)

    @property
    def template_knows_tools(self) -> bool:
        """Whether the chat template has a place for tools."""
        if self._knows is None:
            try:
                self.template.check_variables({"tools": []})
                self._knows = True
            except UsageError:
                self._knows = False
        return self._knows

    @property
    def markers(self) -> dict[str, int]:
        """The ids of tokens with a name of their own, special or not."""
        added = self.tokenizer.require().get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if number < self.tokenizer.vocabulary}

    def _constraint(
        self, wishes: ToolWishes, before: str, form: ResponseForm | None, structure: Structure | None
    ) -> Constraint | None:
        if wishes.demanded:
            if structure is not None:
                raise UsageError(
                    f"`{structure.where}`: an answer that must call a tool has no other structure.",
                    "Leave out one of them.",
                )
            grammar = call_grammar(self._shape(), wishes.demanded, self.markers, wishes.several)
            structure = Structure({"lark_grammar": grammar}, "tools")
        if structure is None:
            return None
        thought = self._thought()
        if thought is None:
            return self.grammars.compile(structure)
        begun = form is not None and ResponseReader(form, before).in_thought
        return self.grammars.compile(structure, thought_grammar(thought, self.markers, begun))

    def _thought(self) -> tuple[str, str] | None:
        """The markers around thoughts; None for a template without any."""
        source = self.template.source
        thought = SHAPES.get(builtin_name(source) or "", HERMES_SHAPE).thought
        return None if thought is None or thought[1] not in source else thought

    def _shape(self) -> Shape:
        name = builtin_name(self.template.source) if self.template_knows_tools else "hermes"
        if name not in SHAPES:
            raise UsageError(
                "`tool_choice`: calls cannot be demanded of this model: the form of its calls is not known.",
                "Leave it out, or let the model choose (auto).",
            )
        return SHAPES[name]


def in_words_of(form: str | None, messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation as the templates of two families want it.

    Kimi's write the ids of calls, which have names and numbers in them; the id of a client stays as `key`. gpt-oss's
    read the thought before a call as `thinking`.
    """
    if form == "harmony":
        return [
            {**one, "thinking": one["reasoning_content"]}
            if "tool_calls" in one and "reasoning_content" in one and not one["content"]
            else one
            for one in messages
        ]
    if form != "kimi-k2":
        return messages
    found: list[Message] = []
    names: dict[str, str] = {}
    for message in messages:
        calls = []
        for call in message.get("tool_calls", ()):
            names[call["id"]] = f"functions.{call['function']['name']}:{len(names)}"
            calls.append({**call, "id": names[call["id"]], "key": call["id"]})
        result = {"tool_call_id": names[message["tool_call_id"]]} if message.get("tool_call_id") in names else {}
        found.append({**message, **({"tool_calls": calls} if calls else {}), **result})
    return found


def calls_in_text(shape: Shape, messages: Sequence[Message]) -> list[Message]:
    """A conversation for a template that tells tools but leaves earlier calls out: these are text then."""
    found: list[Message] = []
    for message in messages:
        if "tool_calls" in message:
            calls = spelled(shape, [call["function"] for call in message["tool_calls"]])
            found.append({**message, "content": f"{message['content']}{calls}"})
        else:
            found.append(message)
    return found


def plainly(messages: Sequence[Message], offered: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A conversation for a template that knows no tools: these stand in the system message, calls are text."""
    found: list[Message] = []
    for message in messages:
        content = str(message["content"])
        if message["role"] == "tool":
            result = f"<tool_response>\n{content}\n</tool_response>"
            if found and found[-1].get("results"):
                found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n{result}"}
            else:
                found.append({"role": "user", "content": result, "results": True})
            continue
        calls = [_spelled(one["function"]) for one in message.get("tool_calls", ())]
        said = "\n".join([content] * bool(content) + calls)
        found.append({"role": message["role"], "content": said})
    found = [{name: one for name, one in message.items() if name != "results"} for message in found]
    if not offered:
        return found
    listed = "\n".join(json.dumps({"type": "function", "function": one}, ensure_ascii=False) for one in offered)
    told = INVITATION.format(tools=listed)
    if found and found[0]["role"] == "system":
        return [{"role": "system", "content": f"{found[0]['content']}\n\n{told}"}, *found[1:]]
    return [{"role": "system", "content": told}, *found]


def _spelled(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def _with_hermes(form: ResponseForm | None) -> ResponseForm:
    """A form with calls as the invitation asks for them."""
    calls = ResponseForm.read({"start_anchor_pattern": GENERIC_START, "fields": {"content": {}, "tool_calls": HERMES}})
    if form is None:
        return calls
    own = tuple(one for one in form.fields if not one.is_call)
    return ResponseForm(own + tuple(one for one in calls.fields if one.is_call), form.start)
