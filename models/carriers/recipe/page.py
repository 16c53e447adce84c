"""The page and the cards of the carriers, out of measured results only."""

from __future__ import annotations

import math
import re
import runpy
import textwrap

from carrier import HERE
from table import FOUR, NAMES, Found, divergence_figures, tables

WIDTH = 120
BUNDLED_CARD = HERE.parents[1] / "smollm2-135m-moe" / "recipe" / "card.py"
"""It names the texts of both recipes with their licences."""

PAGE = """# Mixtures side by side

What a mixture of experts gives depends on what it is compared with. Here small language models are alike in all but
their FFN: {layers} layers of width {hidden_size}, {vocab_size:,} tokens of a byte-level vocabulary, trained on the
same rows of text in the same order, {steps:,} steps of {step_tokens:,} tokens ({all_tokens:.1f} million), on one
thread of a processor. Each was trained once, with one seed, on far less text than models of its size need, so small
differences mean nothing, and what holds here may not hold at scale. `models/carriers/recipe` has everything, and
made this page: no figure was written by hand.

## The seeds' questions

{answers}

![Held-out loss over the training, and perplexity against the neurons that a token reads](mixtures.png)

## What each reads and gives

{comparison}

*Perplexity* is that of float32 weights on held-out text of all domains, in windows of {context} tokens; *bits of a
byte* is the same loss without the tokenizer in it{other}. A neuron of a gated FFN has three rows of weights, one of
Fast Feed-Forward and PEER two; *FFN weights read* counts routers, nodes, queries and keys too. *tokens/s* and
*bytes of a token* (from memory) are `edgemoe bench`'s, decoding with all weights in f16, on {machine}; other programs
kept {busy:.1f} of its cores busy at most meanwhile, so rates are of use beside each other at best. A model this small
may lie in the processor's caches, and then the bytes that are read say little about its time.

By domain, perplexity:

{domains}

## Balance

How evenly experts are used on the held-out text, mean over layers, 1 being an even share: the standard deviation,
the most and the least used, experts that no token used, and the share of experts that would have the same entropy
if used evenly. The last rows are the mixture again, {short_steps} steps each, so their perplexity compares with
each other's only. Of Fast Feed-Forward a leaf counts as an expert.

{balance}

## Distillation

{distillation}

How far each is from the mixture, both in f16, by `edgemoe eval --against` on the held-out text. Its windows overlap
by half, so perplexities are not those above.

## The stores

{rounding}

How far stores in smaller formats are from the same weights in f16, by `edgemoe eval --against` on the held-out text: n3
for matrices, q4 for the embedding. Trees and PEER's neurons are rows that are read one by one, and stay in f16.
Stores of the first four are in `models/carriers`.
"""

QUESTIONS = """- *More weights for the same reading* (Shazeer et al. 2017): is a mixture better than a dense FFN of
  the neurons that a token reads in it? Perplexity {narrow:.2f} of the dense FFN of {narrow_read:,} neurons,
  {moe:.2f} of the mixture that reads {moe_read:,} of {moe_neurons:,}, {dense:.2f} of the dense FFN
  that reads {dense_read:,}: the mixture {moe_way}.
- *A tree that reads one leaf* (Fast Feed-Forward; Belcak and Wattenhofer 2023): does a token need more? Perplexity
  {fff:.2f} with {fff_read:,} of {fff_neurons:,} neurons read ({fff_share:.1%}), {soft:.2f} with soft decisions and
  all read, {dense:.2f} of the dense FFN, {narrow:.2f} of the narrow one: the tree {fff_way}.
- *Experts as small as can be* (PEER; He 2024): are single neurons, retrieved by product keys, better than few large
  experts? Perplexity {peer:.2f} with {peer_read:,} of {peer_neurons:,} neurons read, {moe:.2f} of the mixture. PEER
  has {peer_weights:.2f} times the mixture's FFN weights.
- *Back to a dense model* (distillation; Fedus et al. 2021): what can a mixture teach the narrow FFN? Perplexity
  {continued:.2f} of the narrow FFN that begins with the mixture's other weights, {distilled:.2f} if a quarter of
  its loss is the divergence from the mixture, {moe:.2f} of the mixture: teaching {taught_way}.
- *Balance* (noise: Shazeer et al. 2017; loss: Fedus et al. 2021): does routing stay even without help? The use of
  experts deviates by {both:.2f} of an even share with noise and loss, {loss:.2f} with the loss alone, {noise:.2f}
  with noise alone, {neither:.2f} with neither; perplexity {p_both:.2f}, {p_loss:.2f}, {p_noise:.2f},
  {p_neither:.2f}."""


def wrapped(text: str) -> str:
    """A text of Markdown whose paragraphs and items have lines of at most `WIDTH`, whatever the figures in them."""
    blocks = []
    for block in text.split("\n\n"):
        if not re.match(r"[|#!`]|---", block):
            items = (" ".join(item.split()) for item in re.split(r"\n(?=- )", block.strip()))
            block = "\n".join(
                textwrap.fill(
                    item,
                    WIDTH,
                    subsequent_indent="  " if item.startswith("- ") else "",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for item in items
            )
        blocks.append(block)
    return "\n\n".join(blocks).rstrip("\n") + "\n"


def way(begin: float, found: float, end: float) -> str:
    """How much of the way from one perplexity to another, in nats, a third one goes."""
    if end >= begin:
        return f"has no way to go, as {end:.2f} is no better than {begin:.2f}"
    share = math.log(begin / found) / math.log(begin / end)
    return f"goes {share:.0%} of the way from {begin:.2f} to {end:.2f} in nats"


def answers(every: dict[str, Found]) -> str:
    """The seeds' questions with the figures that were measured for them."""
    perplexity = {name: one.results["held_out"]["perplexity"] for name, one in every.items()}
    reads = {name: one.results["ffn"] for name, one in every.items()}
    short = {name: f"balance-{name}" for name in ("both", "loss", "noise", "none")}
    values = {name: perplexity[name] for name in (*FOUR, "narrow", "distilled", "continued")}
    for name in (*FOUR, "narrow"):
        values |= {f"{name}_read": reads[name]["neurons_read"], f"{name}_neurons": reads[name]["neurons"]}
    for name, variant in short.items():
        key = "neither" if name == "none" else name
        values |= {key: every[variant].results["balance"]["variation"], f"p_{key}": perplexity[variant]}
    return QUESTIONS.format(
        **values,
        soft=every["fff"].results["soft"]["perplexity"],
        fff_share=reads["fff"]["neurons_read"] / reads["fff"]["neurons"],
        peer_weights=reads["peer"]["weights"] / reads["moe"]["weights"],
        moe_way=way(perplexity["narrow"], perplexity["moe"], perplexity["dense"]),
        fff_way=way(perplexity["narrow"], perplexity["fff"], perplexity["dense"]),
        taught_way=way(perplexity["continued"], perplexity["distilled"], perplexity["moe"]),
    )


def page(every: dict[str, Found], settings: dict) -> str:
    """The text of docs/mixtures.md."""
    body, training = settings["body"], settings["training"]
    step_tokens = training["rows"] * body["context"]
    benches = [one.bench for one in every.values() if one.bench]
    text = every["dense"].results.get("text")
    return wrapped(
        PAGE.format(
            **{key: body[key] for key in ("layers", "hidden_size", "vocab_size", "context")},
            **tables(every),
            answers=answers(every),
            steps=training["steps"],
            step_tokens=step_tokens,
            all_tokens=training["steps"] * step_tokens / 1e6,
            short_steps=every["balance-both"].log[-1]["step"],
            other=f"; *other text* is {text['name']}, on which nothing was trained" if text else "",
            machine=benches[0]["machine"]["processor"],
            busy=max(bench["others_busy_cores"] for bench in benches),
        )
    )


CARDS = """# Carriers

Four small language models that differ in nothing but their FFN, made to look at mixtures side by side
([docs/mixtures.md](../../docs/mixtures.md) has the questions, the plot and all tables). They were trained on
little text, and are of no other use.

```sh
edgemoe run models/carriers/moe --raw -p "In the beginning"
```

{comparison}

Stores: {sizes}. `recipe/` makes them, and says how.

**Licence.** The weights were trained from nothing, and are under Apache-2.0 as edgemoe is.

## Texts

Only texts that may be passed on in this form, at most {tokens:,} tokens of each:

| domain | source (Debian package) | licence |
| --- | --- | --- |
{sources}
"""

CARD = """---
license: apache-2.0
language: en
---

# The carrier with another FFN: {name}

A language model of {parameters:.1f} million parameters, to look at beside [the other carriers](../README.md), which
has texts, licences and comparison. It continues plain text, was trained on little of it, and is of no other use.

| measured | value |
| --- | --- |
| training | {steps:,} steps, {training} of one thread |
| neurons, of which a token reads | {neurons:,}, {neurons_read:,} |
| perplexity on held-out text, float32 | {perplexity:.2f} |
| bits of a byte | {bits:.3f} |
| store | {size:.1f} MB, {bits_per_weight:.2f} bits of a weight |
| store against the weights in f16: KL divergence, perplexity of the store, same likeliest token | {rounding} |
| in f16: decoded tokens per second, bytes of memory that a token reads | {speed} |

Held-out text is of the same domains as the training's, from documents that no training saw. `training-log.jsonl` is
the log.
"""


def card(one: Found) -> str:
    """The card of a variant."""
    results, model = one.results, one.rounding["models"][0]["model"]
    return wrapped(
        CARD.format(
            name=one.name,
            parameters=results["parameters"] / 1e6,
            steps=one.log[-1]["step"],
            training=one.training().replace(",", " tokens,"),
            **{key: results["ffn"][key] for key in ("neurons", "neurons_read")},
            perplexity=results["held_out"]["perplexity"],
            bits=results["held_out"]["bits_per_byte"],
            size=model["bytes"] / 1e6,
            bits_per_weight=model["bits_per_weight"],
            rounding=divergence_figures(one.rounding)[0].replace(" | ", ", "),
            speed=one.speed().replace(" | ", ", "),
        )
    )


def cards(every: dict[str, Found], settings: dict, sizes: dict[str, int]) -> str:
    """The card that the carriers share; `sizes` are bytes of the stores on disk."""
    sources = runpy.run_path(str(BUNDLED_CARD))["SOURCES"]
    return wrapped(
        CARDS.format(
            comparison=tables(every)["comparison"],
            sizes=", ".join(f"{NAMES[name]} {size / 1e6:.1f} MB" for name, size in sizes.items()),
            tokens=settings["data"]["tokens_per_domain"],
            sources="\n".join(f"| {name} | {source} | {licence} |" for name, source, licence in sources),
        )
    )
