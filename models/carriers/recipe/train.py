"""Trains one variant of the carrier: `python train.py VARIANT --work FOLDER`; goes on where it was when started
again.

A step depends on the settings, its number and the weights before it alone: rows are drawn by number, and noise is
seeded by it. So a training that was stopped at any moment goes on to the weights that it would have had (with as many
threads). The work folder's VARIANT/log.jsonl has a line for each step; lines after the last checkpoint are taken back
when it goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from carrier import Carrier, build, load, load_settings
from texts import load_held_out, load_rows
from torch import Tensor

LOOKED_UP = ("embed_tokens", "weight_down_embed", "weight_up_embed")
"""Tables of which a step reads some rows: to let all others decay would forget them."""


def rate_factor(step: int, steps: int, training: dict) -> float:
    """The learning rate of a step as a share of the largest."""
    if step < training["warmup_steps"]:
        return (step + 1) / training["warmup_steps"]
    least = training["final_rate_fraction"]
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * step / steps))


def make_optimiser(model: Carrier, training: dict) -> torch.optim.AdamW:
    """AdamW, where only matrices decay."""
    decaying, others = [], []
    for name, value in model.named_parameters():
        decays = value.ndim > 1 and not any(part in name for part in LOOKED_UP) and "biases" not in name
        (decaying if decays else others).append(value)
    groups = [{"params": decaying, "weight_decay": training["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training["rate"], betas=(0.9, 0.95), fused=True)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of logits (N, V), the mean over rows in nats."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def copy_body(model: Carrier, teacher: Carrier) -> None:
    """Gives a student all weights of its teacher but those of FFNs, where they are of one shape."""
    own = model.state_dict()
    for name, value in teacher.state_dict().items():
        if ".mlp." not in name:
            own[name].copy_(value)


class Trainer:
    """The model, its optimiser and where the training stands."""

    def __init__(self, name: str, work: Path, settings: dict) -> None:
        self.name, self.settings = name, settings
        self.folder = work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_path, self.saved = self.folder / "log.jsonl", self.folder / "last.pt"
        self.training = settings["training"]
        self.model = build(settings, name)
        self.variant = settings["variants"][name]
        self.steps = self.variant.get("steps", self.training["steps"])
        self.optimiser = make_optimiser(self.model, self.training)
        length = settings["body"]["context"]
        self.rows = load_rows(work, length, settings["data"]["seed"])
        domains = load_held_out(work, length).values()
        each = -(-self.training["check_rows"] // max(1, len(domains)))
        self.held = [torch.from_numpy(rows[:each]) for rows in domains]
        self.teacher = load(settings, self.variant["teacher"], work) if "teacher" in self.variant else None
        self.step, self.seconds = 0, 0.0
        if self.saved.exists():
            self.restore()
        else:
            self.log_path.write_text("", encoding="utf-8")
            if self.teacher:
                copy_body(self.model, self.teacher)

    def restore(self) -> None:
        """Goes on from the checkpoint, and takes the log back to it."""
        state = torch.load(self.saved, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        *lines, _cut_short = self.log_path.read_text(encoding="utf-8").split("\n")
        kept = [line + "\n" for line in lines if json.loads(line)["step"] <= self.step]
        self.log_path.write_text("".join(kept), encoding="utf-8")

    def save(self) -> None:
        """Writes a checkpoint under another name and renames it."""
        draft = self.saved.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, draft)
        draft.replace(self.saved)

    def batch(self, step: int) -> Tensor:
        """Rows (rows, context + 1) of a step: one after the other through the shuffled text, and around."""
        count = self.training["rows"]
        places = [(step * count + i) % len(self.rows) for i in range(count)]
        return torch.from_numpy(self.rows[places])

    def train_step(self) -> dict:
        """One batch: forward, losses, backward, update."""
        training, began = self.training, time.process_time()
        torch.manual_seed(training["seed"] * 1_000_003 + self.step)
        ramp = (self.step / self.steps - training["hardening_from"]) / (
            training["hardening_to"] - training["hardening_from"]
        )
        self.model.train()
        self.model.begin_step(min(1.0, max(0.0, ramp)))
        ids = self.batch(self.step)
        logits = self.model(ids[:, :-1]).flatten(0, 1)
        text = F.cross_entropy(logits, ids[:, 1:].flatten())
        loss, told = text, {"loss": text.item()}
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher(ids[:, :-1]).flatten(0, 1)
            soft, share = divergence(taught, logits), self.variant["teacher_weight"]
            loss = (1 - share) * text + share * soft
            told["divergence"] = soft.item()
        (loss + self.model.extra_loss()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training["clip_norm"])
        rate = training["rate"] * rate_factor(self.step, self.steps, training)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.process_time() - began
        return told | {"norm": norm.item(), "rate": rate, **self.seen()}

    def seen(self) -> dict:
        """Figures of the FFNs, the mean over layers."""
        figures = [ffn.seen for ffn in self.model.ffns()]
        return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}

    @torch.no_grad()
    def check(self) -> dict:
        """The loss on a little held-out text, as inference has it."""
        self.model.eval()
        losses = []
        for rows in self.held:
            logits = self.model(rows[:, :-1])
            losses.append(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item())
        return {"held_out": sum(losses) / len(losses), **{f"held_out_{k}": v for k, v in self.seen().items()}}

    def log(self, row: dict) -> None:
        """One line of the training log."""
        rounded = {name: float(f"{value:.6g}") for name, value in row.items()}
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **rounded, "seconds": round(self.seconds, 1)}) + "\n")

    def run(self, until: int | None = None) -> None:
        """Steps until the training is done, step ``until`` is reached or SIGTERM asks to stop."""
        stopping: list[bool] = []
        before = signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
        last, saved_at = min(self.steps, until or self.steps), time.monotonic()
        while self.step < last and not stopping:
            row = self.train_step()
            if self.step % self.training["check_every"] == 0 or self.step == self.steps:
                row |= self.check()
            self.log(row)
            if self.step % self.training["log_every"] == 0:
                print(f"{self.name} {self.step}/{self.steps} loss {row['loss']:.4f} {self.seconds:.0f} s", flush=True)
            if time.monotonic() - saved_at > 60 * self.training["save_minutes"]:
                self.save()
                saved_at = time.monotonic()
        self.save()
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Train variants of the carrier, one after the other, or go on with them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "variants", nargs="+", metavar="VARIANT", help="tables of config.toml, such as dense, moe, fff, peer"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="another file in the place of config.toml")
    parser.add_argument("--steps", type=int, help="stop at this step; the rate is that of the whole training")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.variants:
        Trainer(name, args.work, load_settings(args.settings)).run(args.steps)


if __name__ == "__main__":
    main()
