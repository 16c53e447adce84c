"""A model that is open: what `edgemoe.load` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgemoe.errors import StoreError, UsageError
from edgemoe.model.sampling import (
    CONFIG_LIMIT_BYTES,
    GENERATION_CONFIG,
    GenerationDefaults,
    SamplingOptions,
    read_generation_config,
)
from edgemoe.session.chat import ChatSession
from edgemoe.session.continuation import FinishReason
from edgemoe.session.conversation import ConversationEncoder, check_message
from edgemoe.session.generate import (
    Generation,
    GenerationStatistics,
    check_prompt_length,
    check_text_fits,
)
from edgemoe.session.held_tokens import HeldTokens
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.model_files import read_json_object
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import Tokenizer, check_token_ids, has_tokenizer, load_library_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers

    from edgemoe.engine.engine import Engine
    from edgemoe.engine.ledger import TimeLedger
    from edgemoe.engine.options import EngineOptions
    from edgemoe.model.spec import ModelSpec
    from edgemoe.session.constraint import Constraint
    from edgemoe.session.draft_model import DraftModel
    from edgemoe.session.tools import ToolTexts


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer; `token_ids` are the generated ones, without the token that ended the answer."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    statistics: GenerationStatistics
    ledger: TimeLedger | None = None
    """Where the time went, if the engine kept a ledger."""
    logprobs: Sequence[TokenLogprobs] = ()
    """The logprobs of `token_ids`, if they were asked for."""

    @property
    def generated_tokens(self) -> int:
        return len(self.token_ids)

    def to_json(self) -> dict[str, Any]:
        """The object that the command `run` prints as JSON."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "finish_reason": self.finish_reason,
            "stats": self.statistics.to_json(),
            **({"ledger_ms": self.ledger.to_json()} if self.ledger is not None else {}),
        }


class Model:
    """An engine with its tokenizer and chat template. Close it, or use it in a `with`.

    A store without a tokenizer has ids only: `logits` and `generate` work, and what needs text raises StoreError.
    `logits`, `generate` and chats share the engine's own sequence, and each computes again what another has replaced.
    `engine.sequences` opens others, where the options have room for them. Not to be used from several threads at once.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, folder: Path, path: Path | None = None) -> None:
        """`folder` has the text files; `path` is the store's or the GGUF file's, where that is not the same."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.folder = folder
        self.path = path or folder
        self.held = HeldTokens(engine)

    @property
    def draft_model(self) -> DraftModel | None:
        """The model that guesses what follows; None where guesses repeat what followed the same tokens earlier."""
        return self.held.draft_model

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and give the memory back. The model cannot be used afterwards."""
        if "template" in self.__dict__:
            self.template.close()
        if self.draft_model is not None:
            self.draft_model.close()
        self.engine.close()

    @property
    def spec(self) -> ModelSpec:
        """Description of the model: widths, layers, experts, vocabulary."""
        return self.engine.spec

    @cached_property
    def generation_defaults(self) -> GenerationDefaults:
        """Settings from the checkpoint's generation_config.json. Raises StoreError if it cannot be used.

        The commands `run` and `chat` start from it, and so does `Model.chat`; its `not_honoured` names the settings
        that edgemoe does not support.
        """
        path = self.folder / GENERATION_CONFIG
        try:
            config = read_json_object(path, required=False, limit_bytes=CONFIG_LIMIT_BYTES)
            if not self.tokenizer.has_text:
                config.pop("stop_strings", None)  # without text they cannot be found
            return read_generation_config(config, self.engine.context_length)
        except UsageError as error:
            raise StoreError(
                f"{path}: {error.message}",
                "Repair or remove it, then run edgemoe update STORE; without it decoding is greedy.",
            ) from None

    @property
    def default_sampling(self) -> SamplingOptions:
        """The sampling options that the checkpoint asks for. Raises as `generation_defaults`."""
        return self.generation_defaults.sampling

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template. Raises StoreError where the model has none."""
        return ChatTemplate.load(self.folder)

    def encode(self, text: str, special_tokens: bool = True, literal: bool = False) -> list[int]:
        """The ids of a plain text, with what the tokenizer puts around one (such as BOS) unless asked not to.

        `literal`: special tokens that are spelled in the text are text, as in `chat`.
        """
        check_text_fits(text, self.tokenizer, self.engine.context_length)
        return self.tokenizer.encode(text, special_tokens, literal)

    def encode_chat(
        self,
        text: str,
        system: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        literal: bool = False,
    ) -> list[int]:
        """The ids of a conversation's beginning: one user message, in the model's chat template. More in `chat`."""
        self.require_chat()
        self.tokenizer.require()
        encoder = ConversationEncoder(self.tokenizer, self.template, template_variables, literal)
        check_message(text)
        check_text_fits(text, self.tokenizer, self.engine.context_length)
        messages = [{"role": "system", "content": system}] if system else []
        return encoder.encode([*messages, {"role": "user", "content": text}])

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids."""
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def logits(self, token_ids: Sequence[int], input_ids: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """The logits at every position. Shapes: float32 `(T, vocabulary)`. Raises UsageError as `stream` does.

        `input_ids`: what a model with an encoder reads before this text, which begins with its start token.
        """
        for ids in (token_ids, input_ids) if input_ids is not None else (token_ids,):
            check_token_ids(ids, self.engine.spec.vocab_size)
            check_prompt_length(len(ids), self.engine.context_length + 1)
        if (input_ids is None) != (self.spec.encoder is None):
            raise UsageError(
                "This model reads an input before a text: `input_ids` is missing."
                if input_ids is None
                else "This model has no encoder: `input_ids` is for a model that has one.",
                "Give the ids of both." if input_ids is None else "Leave it out.",
            )
        self.held.rewind(0)
        if input_ids is not None:
            self.held.read(input_ids)
        self.engine.turn.begin()
        return self.held.forward(list(token_ids), all_logits=True)

    def stream(
        self,
        token_ids: Sequence[int],
        max_tokens: int | None = None,
        options: SamplingOptions | None = None,
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
        spelled: bool = False,
    ) -> Generation:
        """An answer to iterate over, piece by piece; greedy without options.

        A model with an encoder reads `token_ids` as its input, and writes a text of its own. With `top_logprobs` the
        answer keeps the logprob of each token, and those of as many of the likeliest at its place. `constraint`
        (`edgemoe.session.constraint`) gives it a structure; `spelled`: its text has special tokens by their names.
        Raises UsageError for ids that are empty or do not fit, StoreError for stop texts without a tokenizer.
        """
        sampling = options or SamplingOptions()
        return Generation(self.held, self.tokenizer, token_ids, sampling, max_tokens, top_logprobs, constraint, spelled)

    def generate(
        self,
        token_ids: Sequence[int],
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        stop: Sequence[str] = (),
        logit_bias: Mapping[int, float] | None = None,
        top_logprobs: int | None = None,
    ) -> GenerationResult:
        """The whole answer to a prompt's ids; greedy unless given a temperature. Raises as `stream`.

        `SamplingOptions` says what the settings mean and has some more of them: `stream` takes those, and
        `default_sampling` has what the checkpoint asks for.
        """
        options = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            stop=stop,
            logit_bias=logit_bias or {},
        )
        generation = self.stream(token_ids, max_tokens, options, top_logprobs)
        for _ in generation:
            pass
        return finished(generation)

    def require_chat(self) -> None:
        """Raise UsageError for a model that holds no conversations, since it turns one text into another."""
        if self.spec.encoder is not None:
            raise UsageError(
                "This model holds no conversation: it reads a whole text and writes another one.",
                "Give it a text with edgemoe run, or with `Model.generate` and `Model.encode`.",
            )

    def chat(
        self,
        system: str | None = None,
        options: SamplingOptions | None = None,
        max_tokens: int | None = None,
        template_variables: Mapping[str, Any] | None = None,
        literal: bool = False,
    ) -> ChatSession:
        """A new conversation, with the options and the limit that the checkpoint asks for where none are given.

        template_variables: what the chat template reads besides the messages, such as `{"enable_thinking": False}`.
        literal: special tokens that are spelled in a message, such as `<|im_end|>`, are text; by default they are
        tokens, as in transformers. `edgemoe.session.conversation` says what exactly holds.
        Raises StoreError, and UsageError for variables that the template does not read.
        """
        self.require_chat()
        self.tokenizer.require()
        defaults = self.generation_defaults
        sampling = options or defaults.sampling
        limit = defaults.max_tokens if max_tokens is None else max_tokens

        def tool_texts() -> ToolTexts:
            from edgemoe.session.constraint import Grammars
            from edgemoe.session.tools import ToolTexts

            return ToolTexts(self.tokenizer, self.template, self.folder, Grammars(self.tokenizer), literal)

        return ChatSession(
            self.held, self.tokenizer, self.template, sampling, limit, system, template_variables, literal, tool_texts
        )


def finished(generation: Generation) -> GenerationResult:
    """The result of a generation that was iterated to its end."""
    assert generation.finish_reason is not None
    assert generation.statistics is not None
    return GenerationResult(
        text=generation.text,
        token_ids=generation.token_ids,
        prompt_tokens=len(generation.prompt_ids),
        finish_reason=generation.finish_reason,
        statistics=generation.statistics,
        ledger=generation.ledger,
        logprobs=generation.logprobs,
    )


def load(
    path: str | os.PathLike[str] | None = None,
    options: EngineOptions | None = None,
    draft: str | os.PathLike[str] | None = None,
) -> Model:
    """Open a store or a GGUF file, or the bundled model where no path is given; by default as `edgemoe.load` does.

    `draft` names a model that guesses what follows, in a share of the same budget. Raises StoreError, SourceError,
    BudgetError or UsageError.
    """
    from edgemoe.engine.opening import open_engine
    from edgemoe.engine.options import EngineOptions
    from edgemoe.session.stores import find_runnable, open_store
    from edgemoe.store.reader import Store

    if draft is not None:
        from edgemoe.session.draft_model import DraftModel, open_beside
    options = options or EngineOptions(warm_start=True)
    if draft is not None and options.speculate == "off":
        raise UsageError("`draft` names a model that guesses, and `speculate=off` runs no guesses.", "Leave out one.")
    found = find_runnable(path)
    file = None if found.is_dir() else open_store(found)
    folder = found if file is None else file.text_folder
    library_tokenizer: tokenizers.Tokenizer | None = None

    def load_tokenizer() -> None:
        nonlocal library_tokenizer
        if has_tokenizer(folder):  # a store that lacks its tokenizer has been refused before
            library_tokenizer = load_library_tokenizer(folder)

    # Parsing it takes as long as reading weights. The memory plan, which measures the interpreter, is made after it.
    with ExitStack() as opened:
        beside = None if draft is None else open_beside(draft, file or Store.open(folder), folder, options)
        if beside is not None:
            opened.callback(beside.close)
        engine = open_engine(file or folder, options, meanwhile=load_tokenizer, beside=beside)
        opened.callback(engine.close)
        tokenizer = Tokenizer.around(
            library_tokenizer, folder, engine.spec.vocab_size, fills_gaps=engine.spec.encoder is not None
        )
        model = Model(engine, tokenizer, folder, found)
        if beside is not None:
            model.held.draft_model = DraftModel.open(beside, engine)
        opened.pop_all()
    return model
