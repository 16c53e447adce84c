"""Lets the dense model answer the recipe's prompts: the conversations the chat loss is taken on.

Writes one JSON line per conversation: the messages, and whether it is held out. Prompts of similar
length are answered together, padded on the left; padding is masked, and rotary positions are
relative, so an answer does not depend on its neighbours in the batch beyond rounding.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from decoder import Decoder, Pass
from gguf_source import DenseSource
from prompts import Question, questions
from settings import build_decoder, load_settings
from tokens import conversation, make_tokenizer

STOP = 2


@torch.no_grad()
def complete(
    model: Decoder, prompts: list[list[int]], limit: int, how: Pass, temperature: list[float]
) -> list[list[int]]:
    """Continues each prompt until the stop token or ``limit`` tokens."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[STOP] * (longest - len(p)) + p for p in prompts])
    seen = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts])
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = (causal & seen.unsqueeze(1)) | torch.eye(longest, dtype=torch.bool)
    mask = mask.unsqueeze(1)
    cache: list[list] = [[] for _ in model.layers]
    heat = torch.tensor(temperature).unsqueeze(1)
    rows = list(range(len(prompts)))
    out: list[list[int]] = [[] for _ in prompts]
    for _ in range(limit):
        logits = model.logits(model(ids, how, mask, cache)[:, -1])
        warm = heat[:, 0] > 0
        noise = -torch.empty_like(logits[warm]).exponential_().log()  # Gumbel: samples by argmax
        logits[warm] += noise * heat[warm]
        ids = logits.argmax(dim=-1, keepdim=True)
        drawn = ids[:, 0].tolist()
        for row, token in zip(rows, drawn, strict=True):
            if STOP not in out[row][-1:]:
                out[row].append(token)
        open_rows = [i for i, row in enumerate(rows) if out[row][-1] != STOP]
        if not open_rows:
            break
        if len(open_rows) < 0.8 * len(rows):
            keep = torch.tensor(open_rows)
            rows = [rows[i] for i in open_rows]
            ids, seen, heat = ids[keep], seen[keep], heat[keep]
            cache[:] = [[k[keep], v[keep]] for k, v in cache]
        seen = torch.cat([seen, torch.ones(len(rows), 1, dtype=torch.bool)], dim=1)
        mask = seen[:, None, None, :]
    return [[token for token in ids if token != STOP] for ids in out]


def answer_batch(model, tokenizer, group: list[tuple[int, Question]], settings: dict) -> list[list]:
    """The messages of each question with the dense model's answers, turn by turn."""
    chats = [question.opening() for _, question in group]
    heat = [settings["temperature"] if index % 2 else 0.0 for index, _ in group]
    for turn in range(2):
        rows = [i for i, (_, q) in enumerate(group) if turn < len(q.turns)]
        if not rows:
            break
        for i in rows:
            if turn:
                chats[i].append(("user", group[i][1].turns[turn]))
        prompts = [conversation(tokenizer, chats[i], open_answer=True)[0] for i in rows]
        answers = complete(model, prompts, settings["max_tokens"], Pass(routed=False), [heat[i] for i in rows])
        for i, ids in zip(rows, answers, strict=True):
            chats[i].append(("assistant", tokenizer.decode(ids)))
    return chats


def main() -> None:
    """Answer all prompts; finished batches are kept, so an interrupted run goes on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, help="a JSON lines file")
    args = parser.parse_args()
    everything = load_settings()
    settings, seed = everything["answers"], everything["data"]["seed"]
    source = DenseSource(args.gguf)
    tokenizer, model = make_tokenizer(source), build_decoder(source, everything)
    asked = list(enumerate(questions(seed)))[: settings["conversations"]]
    groups = [asked[i : i + settings["batch"]] for i in range(0, len(asked), settings["batch"])]
    kept = args.to.read_text(encoding="utf-8").splitlines() if args.to.exists() else []
    finished = len(kept) // settings["batch"]
    args.to.write_text("".join(x + "\n" for x in kept[: finished * settings["batch"]]), "utf-8")
    start = time.monotonic()
    for number, group in enumerate(groups[finished:], start=finished):
        torch.manual_seed(seed + number)
        chats = answer_batch(model, tokenizer, group, settings)
        with args.to.open("a", encoding="utf-8") as file:
            for (index, _), chat in zip(group, chats, strict=True):
                held_out = index % settings["held_out_every"] == 0
                row = {"messages": chat, "held_out": held_out}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{number + 1}/{len(groups)} batches, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
