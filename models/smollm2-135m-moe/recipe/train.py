"""Trains the routed experts; everything else stays as it is.

The schedule runs over wall-clock time up to ``--ends``: a training that is stopped (SIGTERM saves
first) and started again goes on from its last checkpoint and still ends then. One JSON line per
``log_every`` steps goes to log.jsonl in the work folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import torch
from batches import Batch, Batches, load_chats, load_texts
from decoder import Pass, RouterTrace, segment_mask
from gguf_source import DenseSource
from losses import VocabularyLoss, balance_loss
from routers import start_routers
from settings import build_decoder, load_settings
from tokens import make_tokenizer


def rate_factor(progress: float, training: dict) -> float:
    """Warm-up, then a cosine to a small remainder."""
    warm, final = training["warmup_fraction"], training["final_rate_fraction"]
    if progress < warm:
        return max(progress / warm, 0.02)
    angle = math.pi * (progress - warm) / (1 - warm)
    return final + (1 - final) * 0.5 * (1 + math.cos(min(angle, math.pi)))


class Trainer:
    """Model, optimiser and the counters that a checkpoint keeps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.settings = load_settings()
        self.training = self.settings["training"]
        if args.seed is not None:
            self.training["seed"] = args.seed
        self.work: Path = args.work
        self.ends: float = args.ends
        self.source = DenseSource(args.gguf)
        self.tokenizer = make_tokenizer(self.source)
        self.batches = Batches(self.work, self.tokenizer, self.settings)
        self.saved = self.work / "ckpt" / "last.pt"
        self.model = build_decoder(self.source, self.settings)
        self.precision = getattr(torch, self.training["matrix_precision"])
        self.optimiser = torch.optim.AdamW(
            [
                {"params": [x.gate_up for x in self.model.layers], "peak": "gate_up_rate"},
                {"params": [x.down for x in self.model.layers], "peak": "down_rate"},
                {"params": [x.router for x in self.model.layers], "peak": "router_rate"},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=True,
        )
        experts = self.settings["model"]["experts"]
        self.loads = torch.full((len(self.model.layers), experts), 1 / experts)
        self.step, self.tokens, self.began = 0, 0, time.time()
        if self.saved.exists():
            self.restore()
        else:
            start_routers(self.model, self.batches, self.settings)
            self.began = time.time()
        self.model.cast_frozen_matrices(self.precision)
        self.embedding = self.model.embedding.to(self.precision)

    def restore(self) -> None:
        """Goes on from the last checkpoint."""
        state = torch.load(self.saved, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.loads, self.step = state["loads"], state["step"]
        self.tokens, self.began = state["tokens"], state["began"]

    def save(self) -> None:
        """Writes a checkpoint under a temporary name and renames it."""
        self.saved.parent.mkdir(parents=True, exist_ok=True)
        draft = self.saved.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "loads": self.loads,
            "step": self.step,
            "tokens": self.tokens,
            "began": self.began,
        }
        torch.save(state, draft)
        draft.replace(self.saved)

    def mixed(self) -> torch.autocast:
        """Matrix products in the configured precision; master weights, norms and sums in float32."""
        return torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32)

    def log(self, row: dict) -> None:
        """One line of the training log."""
        row = {"time": datetime.now().isoformat(timespec="seconds"), "step": self.step, **row}
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def progress(self) -> float:
        """Share of the time that has gone by."""
        return (time.time() - self.began) / (self.ends - self.began)

    def train_step(self) -> dict:
        """One batch: forward, losses, backward, update."""
        training, progress = self.training, self.progress()
        batch = self.batches.at(self.step)
        mask = segment_mask(batch.segments)
        noise = training["router_noise"] * max(0.0, 1 - progress / training["noise_until"])
        trace = RouterTrace()
        with self.mixed():
            hidden = self.model(batch.ids, Pass(noise=noise, trace=trace), mask)
            loss, parts = self.losses(batch, mask, hidden)
        loads = torch.stack(trace.loads).float()
        memory = training["balance_memory"]
        self.loads = memory * self.loads + (1 - memory) * loads / loads.sum(dim=1, keepdim=True)
        balance = balance_loss(trace.mean_probability, self.loads)
        (loss + training["balance_weight"] * balance).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training["clip_norm"])
        factor = rate_factor(progress, training)
        for group in self.optimiser.param_groups:
            group["lr"] = training[group["peak"]] * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.ids.numel()
        return {**parts, "balance": balance.item(), "norm": norm.item(), "factor": factor}

    def losses(self, batch: Batch, mask: torch.Tensor, hidden: torch.Tensor):
        """The weighted sum, and the mean of each part."""
        training = self.training
        with torch.no_grad():
            chats = slice(training["text_rows"], None)
            teacher = torch.zeros_like(hidden)
            teacher[chats] = self.model(batch.ids[chats], Pass(routed=False), mask[chats])
        targets = batch.ids.roll(-1, dims=1)
        shares = [w / w.sum().clamp(min=1) for w in (batch.text, batch.fact, batch.chat)]
        text, fact, chat = (share.flatten() for share in shares)
        width = hidden.shape[-1]
        loss, ce, kl = VocabularyLoss.apply(
            hidden.reshape(-1, width),
            self.embedding,
            targets.flatten(),
            text + training["fact_weight"] * fact,
            training["chat_weight"] * chat,
            teacher.reshape(-1, width),
        )
        means = {"text": (ce * text).sum(), "fact": (ce * fact).sum(), "chat": (kl * chat).sum()}
        return loss, {name: value.item() for name, value in means.items()}

    @torch.no_grad()
    def quick_check(self) -> dict:
        """Held-out loss per domain on a little text, and divergence on held-out conversations."""
        out = {}
        size = self.settings["corpora"]["row_tokens"]
        for name, ids in load_texts(self.work / "tokens", "held_out").items():
            row = torch.from_numpy(ids[:size].astype("int64")).unsqueeze(0)
            with self.mixed():
                hidden = self.model(row, Pass())
            loss = torch.nn.functional.cross_entropy(self.model.logits(hidden)[0, :-1], row[0, 1:])
            out[name] = round(loss.item(), 4)
        total, count = 0.0, 0
        for ids, _ in load_chats(self.work / "answers.jsonl", self.tokenizer, True)[:8]:
            row = torch.tensor([ids[:size]])
            with self.mixed():
                finals = [self.model(row, Pass(routed=routed)) for routed in (False, True)]
            logs = [self.model.logits(hidden).log_softmax(dim=-1) for hidden in finals]
            total += (logs[0].exp() * (logs[0] - logs[1])).sum().item()
            count += row.numel()
        return {"held_out": out, "held_out_chat_divergence": round(total / count, 5)}

    def run(self, limit: int | None) -> None:
        """Steps until the time is up, ``limit`` steps are done or a signal asks to stop."""
        stopping = []
        signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
        every, saved_at = self.training["log_every"], time.time()
        sums: dict[str, float] = {}
        saves, logged = 0, (time.time(), self.tokens)
        while self.progress() < 1 and not stopping and (limit is None or self.step < limit):
            threads = threads_for_load()
            torch.set_num_threads(threads)
            for name, value in {**self.train_step(), "threads": float(threads)}.items():
                sums[name] = sums.get(name, 0.0) + value / every
            if self.step % every == 0:
                even = self.loads * self.loads.shape[1]
                speed = (self.tokens - logged[1]) / (time.time() - logged[0])
                logged = (time.time(), self.tokens)
                row = {name: round(value, 5) for name, value in sums.items()}
                row |= {"load_max": round(even.max().item(), 2), "tokens": self.tokens}
                row |= {"conversations": len(self.batches.chats)}
                row |= {"load_min": round(even.min().item(), 3), "tokens_per_s": round(speed, 1)}
                self.log(row | {"progress": round(self.progress(), 4)})
                sums = {}
            if time.time() - saved_at > 60 * self.training["checkpoint_minutes"]:
                self.save()
                self.batches.refresh()
                saves += 1
                if saves % self.training["check_every"] == 0:
                    self.log(self.quick_check())
                saved_at = time.time()
        self.save()
        self.log({"stopped": True, "tokens": self.tokens, "progress": round(self.progress(), 4)})


def threads_for_load() -> int:
    """All cores where they are free, else one thread: barriers wait long for a busy core."""
    cores = os.cpu_count() or 1
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except OSError:
        return cores
    return cores if running - 1 < cores else 1


def clock(text: str) -> float:
    """Seconds since the epoch of an ISO time such as 2030-01-31T18:00 (local time)."""
    return datetime.fromisoformat(text).timestamp()


def main() -> None:
    """Start the training, or go on with it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ends", type=clock, required=True, help="local time, ISO 8601")
    parser.add_argument("--steps", type=int, help="stop earlier, at this step")
    parser.add_argument("--seed", type=int, help="of routers, experts and batches, instead of the configured one")
    args = parser.parse_args()
    torch.manual_seed(int(time.time()))
    Trainer(args).run(args.steps)


if __name__ == "__main__":
    main()
