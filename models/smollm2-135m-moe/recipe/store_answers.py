"""Writes answers.md: both models' greedy answers to the fixed prompts, as edgemoe gives them from their stores.

These are the answers that a user gets: from the 4-bit blocks, with the kernels' int8 activations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edgemoe

PROMPTS = Path(__file__).with_name("evaluation_prompts.txt")

ANSWER_TOKENS = 100


def cell(text: str) -> str:
    """A text inside a table cell."""
    return text.strip().replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


def answers(store: Path, prompts: list[str]) -> list[str]:
    """One greedy answer for each prompt, each in a conversation of its own."""
    with edgemoe.load(store) as model:
        return [model.generate(model.encode_chat(prompt), max_tokens=ANSWER_TOKENS).text for prompt in prompts]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--store", type=Path, required=True, help="store of the upcycled model")
    parser.add_argument("--dense", type=Path, required=True, help="store of the dense model, from its GGUF")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    rows = zip(prompts, answers(args.dense, prompts), answers(args.store, prompts), strict=True)
    lines = [
        "# Twenty prompts",
        "",
        f"Greedy answers of the stores, cut at {ANSWER_TOKENS} tokens; none was selected. The dense model is"
        " SmolLM2-135M-Instruct from the same 4-bit GGUF, run by the same kernels.",
        "",
        "| prompt | dense model | this model |",
        "| --- | --- | --- |",
        *("| " + " | ".join(cell(text) for text in row) + " |" for row in rows),
    ]
    args.to.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
