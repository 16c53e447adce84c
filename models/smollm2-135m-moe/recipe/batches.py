"""Batches of the training: plain-text segments and packed conversations, by step number.

A batch depends on the seed, the step and the conversations at hand alone, so a training that was
interrupted goes on with the batches it would have seen. Position ``t`` carries the weights of
predicting token ``t + 1``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from prompts import SYSTEMS, facts, sums
from tokens import conversation

PROMPT_WEIGHT = 0.2  # of the dense model's distribution on tokens that the assistant did not write
SUMS = 900


@dataclass
class Batch:
    """Token ids and weights, all (B, T); ``segments`` tells the texts of a row apart."""

    ids: torch.Tensor
    segments: torch.Tensor
    text: torch.Tensor  # weight of the next token, plain text
    fact: torch.Tensor  # weight of the next token, known answers
    chat: torch.Tensor  # weight of the divergence from the dense model


def load_texts(folder: Path, part: str) -> dict[str, np.ndarray]:
    """Token ids by domain."""
    return {path.stem: np.load(path)[part] for path in sorted(folder.glob("*.npz"))}


def load_chats(path: Path, tokenizer, held_out: bool) -> list[tuple[list[int], list[bool]]]:
    """The dense model's conversations as token ids and a mark on what the assistant wrote."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    chosen = [row["messages"] for row in rows if row["held_out"] == held_out]
    return [conversation(tokenizer, [tuple(m) for m in messages]) for messages in chosen]


class Batches:
    """All training data in memory; ``at(step)`` makes one batch."""

    def __init__(self, work: Path, tokenizer, settings: dict) -> None:
        self.settings = settings
        self.texts = load_texts(work / "tokens", "train")
        self.domains = list(self.texts)
        self.tokenizer, self.answers = tokenizer, work / "answers.jsonl"
        self.refresh()
        self.sums, self.facts = sums(settings["data"]["seed"], SUMS), facts()

    def refresh(self) -> None:
        """Reads the conversations again: more of them may have been answered meanwhile."""
        self.chats = load_chats(self.answers, self.tokenizer, held_out=False)

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        training, corpora = self.settings["training"], self.settings["corpora"]
        rng = np.random.default_rng((training["seed"], step))
        length = corpora["row_tokens"]
        shape = (training["text_rows"] + training["chat_rows"], length)
        batch = Batch(
            torch.zeros(shape, dtype=torch.long),
            torch.full(shape, -1),
            *(torch.zeros(shape) for _ in range(3)),
        )
        segment = corpora["segment_tokens"]
        per_row = length // segment
        for slot in range(training["text_rows"] * per_row):
            turn = step * training["text_rows"] * per_row + slot
            ids = self.texts[self.domains[turn % len(self.domains)]]
            start = rng.integers(0, len(ids) - segment)
            row, column = slot // per_row, slot % per_row * segment
            place = slice(column, column + segment)
            batch.ids[row, place] = torch.from_numpy(ids[start : start + segment].astype(np.int64))
            batch.segments[row, place] = slot
            batch.text[row, column : column + segment - 1] = 1
        for row in range(training["text_rows"], shape[0]):
            self.pack(batch, row, rng)
        return batch

    def pack(self, batch: Batch, row: int, rng: np.random.Generator) -> None:
        """Fills a row with conversations; the last one is cut at the row's end."""
        length, filled, segment = batch.ids.shape[1], 0, 0
        tokens = {"fact": 0, "chat": 0}
        while filled < length:
            share = tokens["fact"] / max(1, filled)
            kind = "fact" if share < self.settings["training"]["fact_share"] else "chat"
            if filled == 0:
                kind = "fact" if rng.random() < 0.5 else "chat"
            if kind == "fact":
                ids, written = self.known_answers(rng)
            else:
                ids, written = self.chats[rng.integers(len(self.chats))]
            count = min(len(ids), length - filled)
            place = slice(filled, filled + count)
            batch.ids[row, place] = torch.tensor(ids[:count])
            batch.segments[row, place] = segment
            by_assistant = torch.tensor(written[1:count], dtype=torch.float32)
            predicting = slice(filled, filled + count - 1)
            if kind == "fact":
                batch.fact[row, predicting] = by_assistant
            else:
                batch.chat[row, predicting] = by_assistant.clamp(min=PROMPT_WEIGHT)
            tokens[kind] += count
            filled += count
            segment += 1

    def known_answers(self, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """A conversation of one to three questions with known answers."""
        messages: list[tuple[str, str]] = []
        if rng.random() < 0.2:
            messages.append(("system", SYSTEMS[rng.integers(len(SYSTEMS))]))
        for _ in range(1 + int(rng.random() < 0.4) + int(rng.random() < 0.2)):
            source = self.sums if rng.random() < 0.5 else self.facts
            ask, answer = source[rng.integers(len(source))]
            messages += [("user", ask), ("assistant", answer)]
        return conversation(self.tokenizer, messages)
