"""The service behind all interfaces: the model, the way from their prompts to ids, and the answers to these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, TypeVar

from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.model.sampling import GenerationDefaults
from edgemoe.server.answers import Answers
from edgemoe.server.earlier_conversations import EarlierConversations
from edgemoe.server.engine_thread import EngineThread
from edgemoe.server.kept_streams import KeptStreams
from edgemoe.server.messages import Conversation, text_of
from edgemoe.server.refusals import RefusalError, refusal_of
from edgemoe.server.settings import AnswerSettings, ServerSettings
from edgemoe.session.constraint import Constraint, Grammars, Structure
from edgemoe.session.default_model import model_name
from edgemoe.session.generate import check_prompt_length, check_text_fits
from edgemoe.session.model import Model
from edgemoe.session.template import template_source
from edgemoe.session.tokenizer import check_token_ids
from edgemoe.session.tools import ToolPrompt, ToolTexts, ToolWishes

Result = TypeVar("Result")


class Service:
    """One model behind any number of interfaces. Its methods are called on the thread of the event loop."""

    def __init__(self, engine: EngineThread, settings: ServerSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.began_s = time.time()
        self.earlier = EarlierConversations()
        self.streams = KeptStreams()
        self._read_variables: dict[str, bool] = {}
        self._tools: ToolTexts | None = None
        self._own_grammars: Grammars | None = None
        self._texts = ThreadPoolExecutor(1, "texts")  # the process that renders templates takes one request at a time

    @property
    def model(self) -> Model:
        """The model. Raises RefusalError while it is being opened."""
        model = self.engine.model
        if model is None:
            raise RefusalError("the model is being opened.", "Ask again in a moment.", 503, "loading", retry_s=1)
        return model

    @property
    def name(self) -> str:
        return self.settings.name or model_name(self.model.path)

    @cached_property
    def fingerprint(self) -> str:
        """The build and the setting by which bits of an answer may differ, apart from the weights.

        It is found once: to read a package's version takes as long as all else before an answer begins.
        """
        return f"b{version('edgemoe')}-{self.model.engine.memory.kv_format}"

    @property
    def defaults(self) -> GenerationDefaults:
        """The settings of answers where a request says nothing: as the model publishes, with the server's seed."""
        published = self.model.generation_defaults
        return replace(published, sampling=published.sampling.changed(seed=self.settings.seed))

    async def on_texts(self, work: Callable[[], Result]) -> Result:
        """The result of work with the tokenizer or the template, which may take long. Raises RefusalError."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._texts, work)
        except EdgemoeError as error:
            raise refusal_of(error) from None

    async def template_reads(self, variable: str) -> bool:
        """Whether the chat template reads a variable."""
        template = self.model.template

        def work() -> bool:
            try:
                template.check_variables({variable: None})
            except UsageError:
                return False
            return True

        if variable not in self._read_variables:
            self._read_variables[variable] = await self.on_texts(work)
        return self._read_variables[variable]

    async def thinking_variable(self, on: bool) -> dict[str, Any] | None:
        """The variable of the chat template that switches thoughts on or off; None where it reads none."""
        for name in ("enable_thinking", "thinking"):
            if await self.template_reads(name):
                return {name: on}
        return None

    def template_variables(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """The variables of the chat template: those of the server, and of a request, which come first."""
        return {**self.settings.template_variables, **(variables or {})}

    async def chat(
        self,
        conversation: Conversation,
        variables: Mapping[str, Any] | None = None,
        wishes: ToolWishes | None = None,
        structure: Structure | None = None,
        answers: bool = True,
        opens: bool = True,
    ) -> ToolPrompt:
        """The prompt of a conversation, without the opening of an answer unless it `opens` one.

        Raises RefusalError, also where it leaves no room for a wanted answer.
        """
        model = self.model

        def work() -> ToolPrompt:
            if answers:
                check_text_fits(text_of(conversation.messages), model.tokenizer, model.engine.context_length)
            texts = self._tool_texts()
            own = self.template_variables(variables)
            prompt = texts.prompt(
                conversation.messages, wishes or ToolWishes(), own, conversation.continues, structure, opens
            )
            if answers:
                check_prompt_length(len(prompt.ids), model.engine.context_length)
            return prompt

        return await self.on_texts(work)

    def _tool_texts(self) -> ToolTexts:
        """Call this in `on_texts`: it reads the template."""
        if self._tools is None:
            model, literal = self.model, self.settings.literal
            self._tools = ToolTexts(model.tokenizer, model.template, model.folder, self._grammars(), literal)
        return self._tools

    async def compiled(self, structure: Structure | None) -> Constraint | None:
        """The constraint of a structure. Raises RefusalError for what cannot be enforced."""
        if structure is None:
            return None
        return await self.on_texts(lambda: self._grammars().compile(structure))

    def _grammars(self) -> Grammars:
        if self._own_grammars is None:
            self._own_grammars = Grammars(self.model.tokenizer)
        return self._own_grammars

    async def text_ids(self, text: str) -> list[int]:
        """The ids of a plain text, to be continued. Raises RefusalError."""
        model = self.model

        def work() -> list[int]:
            ids = model.encode(text, literal=self.settings.literal)
            check_prompt_length(len(ids), model.engine.context_length)
            return ids

        return await self.on_texts(work)

    def ids(self, value: Sequence[Any], where: str) -> list[int]:
        """Token ids that a client gave as such. Raises RefusalError, naming the field, for other values."""
        most = self.model.spec.vocab_size
        if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < most for one in value):
            raise RefusalError(f"{where}: expected token ids from 0 to {most - 1}.", param=where)
        return list(value)

    def check_room(self, ids: Sequence[int]) -> None:
        """Raises RefusalError for a prompt that is empty, or leaves no room for an answer."""
        try:
            check_prompt_length(len(ids), self.model.engine.context_length)
        except EdgemoeError as error:
            raise refusal_of(error) from None

    @property
    def has_template(self) -> bool:
        return template_source(self.model.folder) is not None

    def begin(self, prompts: Sequence[Sequence[int]], settings: AnswerSettings) -> Answers:
        """Ask for answers to prompts, as many to each as the settings say. Raises RefusalError for a full queue."""
        try:
            check_token_ids(list(dict(settings.sampling.logit_bias)), self.model.spec.vocab_size)
            answers = Answers(self.engine, prompts, settings, None if self._tools is None else self._tools.replays)
            self.engine.submit(answers.jobs)
        except EdgemoeError as error:
            raise refusal_of(error) from None
        return answers

    def close(self) -> None:
        """End the thread for texts."""
        self._texts.shutdown(wait=False, cancel_futures=True)
