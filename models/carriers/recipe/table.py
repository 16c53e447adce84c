"""Tables and plots of the carriers out of logs, results and benchmarks: `python table.py --work FOLDER`.

Prints Markdown. For each variant it reads results.json (evaluate.py), log.jsonl (train.py) and, where they are, what
`edgemoe bench` and `edgemoe eval --against` write: bench.json of its speed, eval.json of how far it is from the
mixture, rounding.json of how far its store is from the weights in f16. With ``--plot`` it draws the losses of the
training, and perplexity against the neurons that a token reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from carrier import load_settings

FOUR = ("dense", "moe", "fff", "peer")
NAMES = {
    "dense": "dense",
    "moe": "top-k mixture",
    "fff": "Fast Feed-Forward",
    "peer": "PEER",
    "narrow": "dense, narrow",
    "distilled": "dense, narrow, taught by the mixture",
    "continued": "dense, narrow, begun as the mixture",
    "balance-both": "noise and loss",
    "balance-loss": "loss only",
    "balance-noise": "noise only",
    "balance-none": "neither",
}


def read_json(path: Path) -> dict | None:
    """A file's content; None if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_log(path: Path) -> list[dict]:
    """The lines of a training log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


class Found:
    """Everything that is known about a variant."""

    def __init__(self, name: str, work: Path, tokens_per_step: int) -> None:
        self.name, folder = NAMES.get(name, name), work / name
        self.results, self.log = read_json(folder / "results.json"), read_log(folder / "log.jsonl")
        self.bench, self.eval = read_json(folder / "bench.json"), read_json(folder / "eval.json")
        self.rounding = read_json(folder / "rounding.json")
        self.tokens_per_step = tokens_per_step

    def training(self) -> str:
        """Tokens and processor time of the training."""
        last = self.log[-1] if self.log else {"step": 0, "seconds": 0}
        return f"{last['step'] * self.tokens_per_step / 1e6:.1f} M, {last['seconds'] / 3600:.1f} h"

    def speed(self) -> str:
        """Decoded tokens per second of the store, and the bytes that each reads from memory."""
        if self.bench is None:
            return "not measured | not measured"
        rate, size = self.bench["edgemoe"]["decode_tokens_per_s"]["median"], self.bench["bytes_per_token"]
        return f"{rate:.0f} | {size / 1e6:.2f} MB"


def comparison(found: list[Found]) -> list[str]:
    """One row for each trained variant."""
    lines = [
        "| FFN | parameters | neurons, of which a token reads | FFN weights read | perplexity | bits of a byte "
        "| other text | tokens/s | bytes of a token | trained on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        results = one.results
        if results is None:
            continue
        ffn, held = results["ffn"], results["held_out"]
        other = f"{results['text']['perplexity']:.1f}" if "text" in results else "not measured"
        lines.append(
            f"| {one.name} | {results['parameters'] / 1e6:.1f} M "
            f"| {ffn['neurons']:,}, {ffn['neurons_read']:,} ({ffn['neurons_read'] / ffn['neurons']:.1%}) "
            f"| {ffn['weights_read'] / 1e6:.2f} of {ffn['weights'] / 1e6:.2f} M "
            f"| {held['perplexity']:.2f} | {held['bits_per_byte']:.3f} "
            f"| {other} | {one.speed()} | {one.training()} |"
        )
    for one in found:
        soft = (one.results or {}).get("soft")
        if soft:
            lines += ["", f"{one.name} with soft decisions, every leaf read: perplexity {soft['perplexity']:.2f}."]
    return lines


def domain_table(found: list[Found]) -> list[str]:
    """Perplexity by domain."""
    measured = [one for one in found if one.results]
    if not measured:
        return []
    lines = [
        "| domain | " + " | ".join(one.name for one in measured) + " |",
        "| --- |" + " --- |" * len(measured),
    ]
    for domain in measured[0].results["domains"]:
        figures = (f"{one.results['domains'][domain]['perplexity']:.2f}" for one in measured)
        lines.append(f"| {domain.replace('_', ' ')} | " + " | ".join(figures) + " |")
    return lines


def balance_table(found: list[Found]) -> list[str]:
    """How evenly experts are used, 1 being an even share."""
    lines = [
        "| experts | variation of use | most and least used | never used | effective share | perplexity |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        figures = (one.results or {}).get("balance")
        if figures:
            lines.append(
                f"| {one.name}, {figures['experts']} | {figures['variation']:.2f} "
                f"| {figures['most']:.2f}, {figures['least']:.2f} | {figures['unused']:.1%} "
                f"| {figures['effective_share']:.1%} | {one.results['held_out']['perplexity']:.2f} |"
            )
    return lines


def divergence_figures(report: dict | None) -> list[str]:
    """Divergence, perplexity and agreement of each model of an `edgemoe eval --against`, as cells of a row."""
    rows = []
    for model in (report or {}).get("models", []):
        against = model["divergence"]
        if against:
            kl = against["nats"]
            within = "" if kl["low"] is None else f" ({kl['low']:.4f} to {kl['high']:.4f})"
            perplexity, agree = model["perplexity"]["mean"], against["same_top"]["mean"]
            rows.append(f"{kl['mean']:.4f}{within} | {perplexity:.2f} | {agree:.1%}")
    return rows


def distillation_table(found: list[Found]) -> list[str]:
    """Divergence of dense models from the mixture, as `edgemoe eval --against` of it measured."""
    lines = ["| model | KL divergence, nats (95 %) | perplexity | same likeliest token |", "| --- | --- | --- | --- |"]
    return lines + [f"| {one.name} | {row} |" for one in found for row in divergence_figures(one.eval)]


def rounding_table(found: list[Found]) -> list[str]:
    """Sizes of stores, and their divergence from the same weights in f16."""
    lines = [
        "| store | size | bits of a weight | KL divergence, nats (95 %) | perplexity | same likeliest token |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        for row in divergence_figures(one.rounding):
            model = one.rounding["models"][0]["model"]
            lines.append(f"| {one.name} | {model['bytes'] / 1e6:.1f} MB | {model['bits_per_weight']:.2f} | {row} |")
    return lines


def draw(found: list[Found], path: Path) -> None:
    """Held-out losses over the training, and perplexity against neurons read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    curves, points = figure.subplots(1, 2)
    for one in found:
        checks = [line for line in one.log if "held_out" in line]
        if checks:
            steps = [line["step"] * one.tokens_per_step / 1e6 for line in checks]
            curves.plot(steps, [line["held_out"] for line in checks], ".-", label=one.name)
        if one.results:
            read, perplexity = one.results["ffn"]["neurons_read"], one.results["held_out"]["perplexity"]
            points.plot(read, perplexity, "o", color="black")
            points.annotate(one.name, (read, perplexity), xytext=(5, 5), textcoords="offset points")
    curves.set_xlabel("million tokens")
    curves.set_ylabel("held-out loss, nats of a token")
    points.set_xlabel("neurons that a token reads, all layers")
    points.set_ylabel("held-out perplexity")
    points.set_xscale("log")
    points.margins(x=0.3)
    curves.legend(fontsize="small")
    for axes in (curves, points):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def find_all(work: Path, settings: dict) -> dict[str, Found]:
    """Everything that is known about the variants of the settings, by name."""
    tokens = settings["training"]["rows"] * settings["body"]["context"]
    return {name: Found(name, work, tokens) for name in settings["variants"]}


def long_runs(every: dict[str, Found]) -> list[Found]:
    """The variants of the whole training: all but those that are there to look at balance."""
    return [one for name, one in every.items() if not name.startswith("balance")]


def tables(every: dict[str, Found]) -> dict[str, str]:
    """Every table as Markdown."""
    main_ones = long_runs(every)
    mixtures = [every[name] for name in FOUR[1:] if name in every]
    short = [one for name, one in every.items() if name.startswith("balance")]
    made = {
        "comparison": comparison(main_ones),
        "domains": domain_table(main_ones),
        "balance": balance_table(mixtures + short),
        "distillation": distillation_table(main_ones),
        "rounding": rounding_table(main_ones),
    }
    return {name: "\n".join(lines) for name, lines in made.items()}


def main() -> None:
    """Print the tables, and draw the plots."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="another file in the place of config.toml")
    parser.add_argument("--plot", type=Path, help="a picture: png, svg or pdf")
    args = parser.parse_args()
    every = find_all(args.work, load_settings(args.settings))
    print("\n\n".join(text for text in tables(every).values() if text))
    if args.plot:
        draw(long_runs(every), args.plot)


if __name__ == "__main__":
    main()
