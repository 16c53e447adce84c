"""`edgemoe run`: one prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.interrupts import on_interrupt
from edgemoe.cli.json_text import json_text
from edgemoe.cli.starting import collection_paused
from edgemoe.cli.template_options import LiteralOption, TemplateVarOption, template_variables
from edgemoe.cli.terminal.text import printable
from edgemoe.cli.tool_files import read_schema
from edgemoe.cli.tracing import TraceOption, traced
from edgemoe.errors import INTERRUPTED, UsageError

if TYPE_CHECKING:
    from edgemoe.session.generate import Generation

STDIN_LIMIT_BYTES = 16 << 20
MOST_ANSWERS = 128
MOST_LOGPROBS = 20
MAX_TOKENS = 512
"""The longest answer if neither the person nor the model sets a limit."""


def run(
    model: shared.ModelArgument = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The prompt; - reads it from stdin.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            help="Maximum length of the answer in tokens.",
            show_default=f"the model's, or {MAX_TOKENS}",
        ),
    ] = None,
    temperature: shared.TemperatureOption = None,
    top_k: shared.TopKOption = None,
    top_p: shared.TopPOption = None,
    min_p: shared.MinPOption = None,
    seed: shared.SeedOption = None,
    repeat_penalty: shared.RepeatPenaltyOption = None,
    presence_penalty: shared.PresencePenaltyOption = None,
    frequency_penalty: shared.FrequencyPenaltyOption = None,
    stop: shared.StopOption = None,
    logit_bias: shared.LogitBiasOption = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="Number of answers. With --seed each further one has the next seed.")
    ] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="N",
            help="With --json: each token's logprob, and those of the N likeliest tokens at its place (0 to 20).",
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema", metavar="FILE", help="Answer with JSON that a JSON schema allows. Needs the extra serve."
        ),
    ] = None,
    system: shared.SystemOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without the chat template.")
    ] = False,
    template_var: TemplateVarOption = None,
    literal_prompt: LiteralOption = False,
    ram: shared.RamOption = None,
    threads: shared.ThreadsOption = None,
    device: shared.DeviceOption = None,
    vram: shared.VramOption = None,
    context: shared.ContextOption = None,
    kv: shared.KvOption = None,
    policy: shared.PolicyOption = "lru",
    prefetch: shared.PrefetchOption = "auto",
    no_warm_start: shared.NoWarmStartOption = False,
    prefix_disk: shared.PrefixDiskOption = None,
    speculate: shared.SpeculateOption = "auto",
    draft: shared.DraftOption = None,
    trace: TraceOption = None,
    cache_aware_routing: shared.CacheAwareOption = 0.0,
    drop_cold: shared.DropColdOption = 0.0,
    experts_per_token: shared.ExpertsPerTokenOption = None,
    on_miss: shared.OnMissOption = "wait",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when the answer is done; of several one on each line.")
    ] = False,
    debug: shared.DebugOption = False,
) -> None:
    """Answer one prompt, or continue a text (--raw). The answer is streamed to stdout.

    A model that reads a text and writes another one (Switch Transformers) reads the prompt as it is.
    """
    if raw and system is not None:
        raise UsageError(
            "--raw and --system exclude each other.", "A raw text has no system message: write it into the prompt."
        )
    if raw and template_var:
        raise UsageError("--raw and --template-var exclude each other.", "A raw text does not use the chat template.")
    shared.check_max_tokens(max_tokens, "run")
    _check_several(n, logprobs, as_json)
    variables = template_variables(template_var)
    text = read_prompt(prompt, raw)
    wanted = None if schema is None else read_schema(schema)
    found, guesser = fetched(model), fetched(draft)

    with collection_paused():
        from edgemoe.cli.compiling import report_compilation
        from edgemoe.cli.lossy import lossy_json, report_lossy
        from edgemoe.cli.remarks import (
            cut_remark,
            device_remarks,
            model_remarks,
            print_remarks,
            prompt_remark,
            tell_of_prefixes,
        )
        from edgemoe.engine.lossy import LossySettings
        from edgemoe.engine.options import EngineOptions
        from edgemoe.session.model import finished, load

        asked = LossySettings(cache_aware_routing, drop_cold, experts_per_token, on_miss)
        options = EngineOptions(
            ram, threads, context, kv, policy, prefetch, not no_warm_start, lossy=asked,
            prefix_disk=prefix_disk, speculate=shared.speculation(speculate), device=device, vram=vram,
        )  # fmt: skip
        opening = load(found, options, guesser)
    with opening as opened, report_compilation(opened), traced(opened.engine, trace):
        report_lossy(opened.path, asked, opened.engine.lossy, model, ram)
        sampling = shared.sampling_options(
            opened, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
            repetition_penalty=repeat_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, stop=stop, logit_bias=logit_bias,
        )  # fmt: skip
        if opened.spec.encoder is not None and (system is not None or template_var):
            raise UsageError(
                "--system and --template-var are for models that hold conversations; this one reads a text and writes"
                " another one.",
                "Leave them out.",
            )
        raw = raw or opened.spec.encoder is not None
        structured = None
        if wanted is not None:
            from edgemoe.cli.structured import Structured

            structured = Structured(opened, wanted, literal_prompt)
            prompt_ids = structured.prompt(text, system, variables, raw)
        elif raw:
            prompt_ids = opened.encode(text, literal=literal_prompt)
        else:
            prompt_ids = opened.encode_chat(text, system, variables, literal_prompt)
        if not raw:
            opened.template.close()  # no further prompt is rendered, and the answer may need the memory
        print_remarks(model_remarks(opened, prompt_ids if raw else ()))
        tell_of_prefixes(opened, prefix_disk)
        if as_json:
            opened.engine.keep_ledger()
        limit = max_tokens or opened.generation_defaults.max_tokens or MAX_TOKENS
        if n > 1 and sampling.temperature == 0:
            print_remarks(["at temperature 0 all answers are the same (--temperature 0.7)"])
        for number in range(n):
            if n > 1 and not as_json:
                print_remarks([f"answer {number + 1} of {n}:"])
            constraint, reads = (None, False) if structured is None else structured.next_answer()
            own = sampling.of_answer(number)
            generation = opened.stream(prompt_ids, limit, own, logprobs, constraint, reads)
            generation.on_long_prompt = lambda estimate: print_remarks([prompt_remark(estimate)])
            pieces = generation if structured is None else structured.said(generation)
            said = _write(generation, pieces, as_json)
            result = finished(generation)
            facts = {**result.to_json(), "text": said, **lossy_json(opened, asked, ram)}
            if logprobs is not None:
                from edgemoe.cli.logprobs_json import logprobs_json

                facts["logprobs"] = logprobs_json(result.logprobs, opened.tokenizer)
            print(json_text(facts, indent=None) if as_json else "", flush=True)
            print_remarks(device_remarks(opened, device) if number == 0 else ())
            if not as_json:
                print_remarks([cut_remark(result.finish_reason, result.generated_tokens)])
            if result.finish_reason == "interrupted":
                raise typer.Exit(INTERRUPTED)


def _write(generation: Generation, pieces: Iterable[str], quietly: bool) -> str:
    """Let an answer be generated, and write it to stdout as it grows; the first Ctrl-C ends it. Returns its text."""
    said = []
    with on_interrupt(generation.stop):
        for piece in pieces:
            said.append(piece)
            if not quietly:
                sys.stdout.write(printable(piece) if sys.stdout.isatty() else piece)
                sys.stdout.flush()
    return "".join(said)


def _check_several(answers: int, logprobs: int | None, as_json: bool) -> None:
    """Raise UsageError for a number of answers or of logprobs out of range, and for logprobs without JSON."""
    if not 1 <= answers <= MOST_ANSWERS:
        raise UsageError(f"--n: expected 1 to {MOST_ANSWERS} answers, found {answers}.", "Leave it out for one.")
    if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
        found = f"--logprobs: expected 0 to {MOST_LOGPROBS} tokens, found {logprobs}."
        raise UsageError(found, "Leave it out for none.")
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs: the logprobs are a part of what --json prints.", "Give --json too.")


def read_prompt(prompt: str | None, raw: bool = False) -> str:
    """The text of `-p`, or of stdin. Raises UsageError if it is missing, empty, too large or not UTF-8.

    White space alone is a valid `raw` text, but not a valid message.
    """
    if prompt is None:
        raise UsageError(
            "there is no prompt: expected -p TEXT, or -p - to read it from stdin.", "See edgemoe run --help."
        )
    text = _read_stdin() if prompt == "-" else shared.utf8_argument(prompt, "the prompt")
    if not (text if raw else text.strip()):
        raise UsageError("the prompt is empty: expected some text.", "Give it with -p TEXT, or on stdin with -p -.")
    return text


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(STDIN_LIMIT_BYTES + 1)
    if len(data) > STDIN_LIMIT_BYTES:
        raise UsageError(
            f"the prompt on stdin is too large: expected at most {STDIN_LIMIT_BYTES >> 20} MiB.", "Give a part of it."
        )
    return shared.utf8(data, "the prompt on stdin")
