"""After the training: evaluation, both exports, their verification, and the card.

Writes ``--to``/hf, ``--to``/model.gguf and ``--to``/results.json, and in the ``--card`` folder
README.md and training-log.jsonl. The model that is measured is the one that is
exported: its experts are rounded to float16 first. The exports come before the evaluation, so that
they exist whatever happens after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from card import write_card
from decoder import Decoder, Pass
from evaluate import evaluate
from export import FFN_NAMES, round_experts, write_all
from gguf_source import DenseSource
from settings import build_decoder, load_settings
from tokens import conversation, make_tokenizer


def training_facts(work: Path) -> dict:
    """Steps, tokens and hours, from the log."""
    rows = [json.loads(x) for x in (work / "log.jsonl").read_text("utf-8").splitlines()]
    steps = [row for row in rows if "tokens_per_s" in row]
    last = max(rows, key=lambda row: row["step"])
    return {
        "steps": last["step"],
        "tokens": max(row.get("tokens", 0) for row in rows),
        "from": rows[0]["time"],
        "to": rows[-1]["time"],
        "tokens_per_s": float(np.mean([row["tokens_per_s"] for row in steps])) if steps else 0.0,
        "conversations": max((row.get("conversations", 0) for row in steps), default=0),
    }


def verify_gguf(path: Path, source: DenseSource, model: Decoder) -> None:
    """Dense blocks equal the source's byte for byte; experts and routers equal the model's."""
    import gguf

    written = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    for name, tensor in source.tensors.items():
        parts = name.split(".")
        if parts[0] == "blk" and parts[2] in FFN_NAMES:
            name = f"blk.{parts[1]}.{FFN_NAMES[parts[2]]}.weight"
        other = written.pop(name)
        same = other.tensor_type == tensor.tensor_type and np.array_equal(other.data, tensor.data)
        if not same:
            raise RuntimeError(f"{name}: the export differs from the source")
    for index, layer in enumerate(model.layers):
        gate, up = layer.gate_up.detach().chunk(2, dim=1)
        for part, value in (
            ("ffn_gate_inp", layer.router.detach()),
            ("ffn_gate_exps", gate),
            ("ffn_up_exps", up),
            ("ffn_down_exps", layer.down.detach()),
        ):
            name = f"blk.{index}.{part}.weight"
            if not np.array_equal(written.pop(name).data.astype(np.float32), value.numpy()):
                raise RuntimeError(f"{name}: the export differs from the model")
    if written:
        raise RuntimeError(f"left over in the export: {sorted(written)[:3]}")


@torch.no_grad()
def verify_hugging_face(folder: Path, model: Decoder, tokenizer) -> float | None:
    """Relative error of transformers' logits against ours; None where it is not installed."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        return None
    text = "Explain gravity in simple words."
    ids, _ = conversation(tokenizer, [("user", text)], open_answer=True)
    other = AutoTokenizer.from_pretrained(folder)
    theirs = other.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    if theirs != ids:
        raise RuntimeError("the exported tokenizer or chat template differs from the recipe's")
    row = torch.tensor([ids])
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(row).logits
    ours = model.logits(model(row, Pass()))
    error = ((ours - reference).norm() / reference.norm()).item()
    if error > 1e-4:
        raise RuntimeError(f"transformers' logits differ: relative error {error:.1e}")
    return error


def main() -> None:
    """Evaluate, export and write the card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--card", type=Path, required=True, help="folder for README.md")
    parser.add_argument(
        "--also", nargs=2, action="append", default=[], metavar=("SEED", "WORK"), help="a run with another seed"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    settings, source = load_settings(), DenseSource(args.gguf)
    tokenizer = make_tokenizer(source)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:.0f} s: {text}", flush=True)

    model = build_decoder(source, settings, args.work / "ckpt" / "last.pt")
    write_all(model, source, args.to)
    say("exported")
    verify_gguf(args.to / "model.gguf", source, model)
    say("the GGUF is verified")
    results = {"training": training_facts(args.work), "settings": settings}
    error = verify_hugging_face(args.to / "hf", model, tokenizer)
    results["transformers_relative_error"] = error
    say(f"the Hugging Face folder is verified: relative error {error}")
    results |= evaluate(model, tokenizer, args.work, settings)
    say("evaluated")
    results["other_seeds"] = []
    for seed, work in args.also:
        other = build_decoder(source, settings, Path(work) / "ckpt" / "last.pt")
        round_experts(other)
        facts = {"seed": int(seed), "training": training_facts(Path(work))}
        results["other_seeds"].append(facts | evaluate(other, tokenizer, Path(work), settings))
        say(f"seed {seed} evaluated")
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (args.to / "results.json").write_text(text, encoding="utf-8")
    args.card.mkdir(parents=True, exist_ok=True)
    write_card(results, args.card / "README.md")
    shutil.copyfile(args.work / "log.jsonl", args.card / "training-log.jsonl")
    say("the card is written")


if __name__ == "__main__":
    main()
