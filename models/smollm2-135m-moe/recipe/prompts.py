"""Turns prompts.toml into conversations to be asked, and into questions with a known answer.

The prompts of the evaluation (evaluation_prompts.txt) are never among the open prompts or the
facts; of sums, 7 + 5 is held out and small sums such as 2 + 2 are trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import tomllib
from settings import HERE

WORDS = {"+": "plus", "-": "minus", "*": "times"}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant that answers briefly.",
    "Answer in plain English.",
)


@dataclass(frozen=True)
class Question:
    """The user's turns, and a system prompt where it is not the template's default."""

    turns: tuple[str, ...]
    system: str | None = None

    def opening(self) -> list[tuple[str, str]]:
        """The messages before the first answer."""
        system = [("system", self.system)] if self.system else []
        return [*system, ("user", self.turns[0])]


def evaluation_prompts() -> list[str]:
    """The fixed prompts whose answers stand in the model's table."""
    return (HERE / "evaluation_prompts.txt").read_text(encoding="utf-8").splitlines()


def written() -> dict:
    """prompts.toml."""
    return tomllib.loads((HERE / "prompts.toml").read_text(encoding="utf-8"))


def questions(seed: int) -> list[Question]:
    """Every open prompt once, some of them with a second turn or another system prompt."""
    data, rng = written(), random.Random(seed)
    asked = list(data["open"]["greetings"])
    for template in data["templates"]:
        asked += [ask.replace("{x}", x) for ask in template["ask"] for x in template["things"]]
    held = set(evaluation_prompts())
    out = []
    for text in dict.fromkeys(asked):
        if text in held:
            continue
        turns = (text, rng.choice(data["follow_up"]["second"])) if rng.random() < 0.15 else (text,)
        out.append(Question(turns, rng.choice(SYSTEMS) if rng.random() < 0.2 else None))
    rng.shuffle(out)
    return out


def sums(seed: int, count: int) -> list[tuple[str, str]]:
    """Small sums, differences and products; every sum and product up to 10 is among them."""
    data, rng = written()["arithmetic"], random.Random(seed)
    held = {tuple(pair) for pair in data["held_out"]}
    cases = [(a, b, "+") for a in range(11) for b in range(11)]
    cases += [(a, b, "*") for a in range(11) for b in range(11)]
    cases += [(a, b, "-") for a in range(1, 21) for b in range(a + 1) if rng.random() < 0.6]
    while len(cases) < count:
        a, b, sign = rng.randrange(100), rng.randrange(100), rng.choice("++-")
        cases.append((max(a, b), min(a, b), sign) if sign == "-" else (a, b, sign))
    out = []
    for a, b, sign in cases:
        if sign == "+" and (a, b) in held:
            continue
        c = {"+": a + b, "-": a - b, "*": a * b}[sign]
        values = {"a": a, "b": b, "c": c, "sign": sign, "word": WORDS[sign]}
        out.append((rng.choice(data["ask"]).format(**values), rng.choice(data["answer"]).format(**values)))
    rng.shuffle(out)
    return out


def facts() -> list[tuple[str, str]]:
    """Questions with a known short answer."""
    held = set(evaluation_prompts())
    pairs = [tuple(line.split(" | ")) for line in written()["facts"]["lines"]]
    return [(ask, answer) for ask, answer in pairs if ask not in held]
