"""Trains a small Switch Transformer on a text file: `python train.py TEXT FOLDER [--steps 600]`; one thread.

Needs torch and transformers. The result is a checkpoint as transformers saves it, with a tokenizer of bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from spans import FIRST_MARK, INPUT_TOKENS, MARKS, PAD, VOCABULARY, halves, held_out, pairs
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

BATCH = 4
LEARNING_RATE, WARMUP_STEPS = 2e-3, 100
BALANCE = 0.01
"""The weight of the loss that evens out how much experts are used (Fedus et al. 2021)."""

Model = SwitchTransformersForConditionalGeneration


def configuration() -> SwitchTransformersConfig:
    """The shape: half of the layers have experts, as in the published models."""
    return SwitchTransformersConfig(
        vocab_size=VOCABULARY, d_model=128, d_kv=32, d_ff=512, num_heads=4, num_layers=2, num_decoder_layers=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=8, expert_capacity=64, dropout_rate=0.0,
        router_bias=False, router_jitter_noise=0.0, tie_word_embeddings=True, pad_token_id=PAD, eos_token_id=PAD,
        decoder_start_token_id=PAD, n_positions=INPUT_TOKENS, use_cache=False,
    )  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """The tokenizer: a token for each byte, and the marks of spans."""
    names = {"<pad>": PAD} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(names, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    marks = [f"<extra_id_{number}>" for number in range(MARKS)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", *marks)])
    assert tokenizer.token_to_id(marks[0]) == FIRST_MARK
    return tokenizer


def loss_on(model: Model, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean loss of the bytes of masked spans, and of their marks, in nats."""
    model.eval()
    with torch.no_grad():
        losses = [float(model(input_ids=torch.tensor(i), labels=torch.tensor(t)).loss) for i, t in batches]
    return float(np.mean(losses))


def balance_loss(model: Model) -> list[torch.Tensor]:
    """A list that each run fills with the balancing loss of every router."""
    found: list[torch.Tensor] = []

    def note(_: object, __: object, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        chosen, _, logits = output
        shares = torch.softmax(logits.float(), -1).flatten(0, 1).mean(0)
        used = chosen.float().flatten(0, 1).mean(0)
        found.append(len(used) * (shares * used).sum())

    for module in model.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            module.register_forward_hook(note)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    text, end = halves(options.text)
    model = Model(configuration())
    balance = balance_loss(model)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    held = list(held_out(end, 8, 8))
    began, log = time.process_time(), []
    for step in range(1, options.steps + 1):
        rate = LEARNING_RATE * min(1, step / WARMUP_STEPS) * (1 - step / (options.steps + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        inputs, targets = pairs(text, random, BATCH)
        balance.clear()
        loss = model(input_ids=torch.tensor(inputs), labels=torch.tensor(targets)).loss
        (loss + BALANCE * sum(balance)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == options.steps:
            seconds = round(time.process_time() - began)
            log.append(
                {
                    "step": step,
                    "seconds": seconds,
                    "loss": round(float(loss.detach()), 4),
                    "held_out": round(loss_on(model, held), 4),
                }
            )
            print(json.dumps(log[-1]), flush=True)
    model.save_pretrained(options.folder)
    byte_tokenizer().save(str(options.folder / "tokenizer.json"))
    (options.folder / "training-log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))


if __name__ == "__main__":
    main()
