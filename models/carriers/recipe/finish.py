"""After the trainings: measurements, stores, the page and the cards: `python finish.py --work FOLDER`.

Evaluates every variant, exports those of the whole training, converts each with edgemoe into two stores, in float16
throughout, in which they are compared, and in the formats that are shipped, and measures both. Then it writes
docs/mixtures.md with its plot, and copies the stores of the four to models/carriers with their cards. What is there
and no older than what it is made from is not made again, so the same command goes on after an interruption. Needs
torch and edgemoe in one environment.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from carrier import HERE, load, load_settings
from evaluate import measure
from export import write
from page import card, cards, page
from table import FOUR, draw, find_all, long_runs, read_log

FORMATS = ("--experts", "n3", "--dense", "n3", "--head", "q4")
"""Trees and PEER's neurons stay in f16, 44 of the 60 MB that may be shipped: with q4 for all others they are 62."""

HALVES = ("--experts", "f16", "--dense", "f16", "--head", "f16")
STORE_LIMIT, LIMIT = 30_000_000, 60_000_000
"""Bytes of a store, and of all that are shipped."""

Run = Callable[[Sequence[str]], None]


def run_edgemoe(words: Sequence[str]) -> None:
    """Run a command of edgemoe in this environment."""
    try:
        subprocess.run([sys.executable, "-m", "edgemoe", *words], check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"edgemoe {' '.join(words)} failed: once it works, the same command goes on.") from error


def is_made(result: Path, *sources: Path) -> bool:
    """Whether a result is there, and no older than what it is made from."""
    return result.exists() and all(source.stat().st_mtime <= result.stat().st_mtime for source in sources)


def size_of(folder: Path) -> int:
    """Bytes of all files of a store."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Finish:
    """The steps from trained variants to what is published."""

    def __init__(self, work: Path, settings: dict, text: Path | None, bench: Sequence[str], run: Run) -> None:
        """`bench` are more options of `edgemoe bench`; `run` runs a command of edgemoe, given as its words."""
        self.work, self.settings, self.text, self.bench, self.run = work, settings, text, bench, run

    def check_trained(self) -> None:
        """Ends with the command to run if a training has not come to its end."""
        training = self.settings["training"]
        for name, variant in self.settings["variants"].items():
            log, steps = read_log(self.work / name / "log.jsonl"), variant.get("steps", training["steps"])
            done = log[-1]["step"] if log else 0
            if done < steps or not (self.work / name / "last.pt").exists():
                raise SystemExit(f"{name}: trained for {done} of {steps} steps: run train.py {name} to its end first.")

    def figures(self, result: Path, sources: Sequence[Path], *words: str) -> None:
        """A command that writes its figures as JSON, which get their name when they are whole."""
        if not is_made(result, *sources):
            draft = result.with_suffix(".part")
            self.run([*words, "--json", str(draft)])
            draft.replace(result)

    def store(self, name: str, folder: str, formats: Sequence[str]) -> Path:
        """The store of an exported variant in some formats; its manifest."""
        source, store = self.work / name / "hf", self.work / name / folder
        made = store / "edgemoe.json"
        if not is_made(made, source / "config.json"):
            shutil.rmtree(store, ignore_errors=True)
            self.run(["convert", str(source), str(store), *formats, "--force"])
        return made

    def measure(self) -> None:
        """Every figure of every variant."""
        names, held_out = list(self.settings["variants"]), self.work / "held_out.txt"
        for name in names:
            given = [self.work / name / "last.pt", held_out, *([self.text] if self.text else [])]
            if not is_made(self.work / name / "results.json", *given):
                print(f"{name}: {measure(name, self.work, self.settings, self.text)['held_out']}", flush=True)
        stores, halves = {}, {}
        for name in [name for name in names if not name.startswith("balance")]:
            folder = self.work / name
            if not is_made(folder / "hf" / "config.json", folder / "last.pt"):
                write(load(self.settings, name, self.work), folder / "hf", self.work / "tokenizer.json")
            stores[name] = self.store(name, "store", FORMATS)
            halves[name] = self.store(name, "halves", HALVES)
        context = str(self.settings["body"]["context"])
        read = ["--text", str(held_out), "--context", context]
        for name, made in stores.items():
            folder = self.work / name
            self.figures(folder / "bench.json", [halves[name]], "bench", str(halves[name].parent), *self.bench)
            pair = [made, halves[name]]
            against = ["--against", str(halves[name].parent), *read]
            self.figures(folder / "rounding.json", pair, "eval", str(made.parent), *against)
        for name in [name for name in halves if name not in FOUR]:
            pair = [halves[name], halves["moe"]]
            against = ["--against", str(halves["moe"].parent), *read]
            self.figures(self.work / name / "eval.json", pair, "eval", str(halves[name].parent), *against)

    def publish(self, to: Path, text: Path) -> None:
        """The stores of the four with cards below `to`, and the page with its plot."""
        sizes = {name: size_of(self.work / name / "store") for name in FOUR}
        large = [f"{name} has {size:,} bytes" for name, size in sizes.items() if size > STORE_LIMIT]
        if large or sum(sizes.values()) > LIMIT:
            told = "; ".join(large) or f"the stores have {sum(sizes.values()):,} bytes"
            limits = f"at most {STORE_LIMIT:,} for one and {LIMIT:,} for all"
            raise SystemExit(f"{told}: expected {limits}. Give smaller FORMATS in finish.py.")
        every = find_all(self.work, self.settings)
        own = page(every, self.settings)
        for name in FOUR:
            folder = to / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder / "store", ignore_errors=True)
            shutil.copytree(self.work / name / "store", folder / "store")
            shutil.copyfile(self.work / name / "log.jsonl", folder / "training-log.jsonl")
            (folder / "README.md").write_text(card(every[name]), encoding="utf-8")
        (to / "README.md").write_text(cards(every, self.settings, sizes), encoding="utf-8")
        draw(long_runs(every), text.with_suffix(".png"))
        text.write_text(own, encoding="utf-8")


def main() -> None:
    """Measure all variants, and write stores, cards and the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="another file in the place of config.toml")
    parser.add_argument("--text", type=Path, help="another text to measure on, such as WikiText-103's test split")
    parser.add_argument("--to", type=Path, default=HERE.parent, help="folder of the stores and cards")
    parser.add_argument("--page", type=Path, default=HERE.parents[2] / "docs" / "mixtures.md")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = ["--threads", str(args.threads), "--repeats", "9"]
    finish = Finish(args.work, load_settings(args.settings), args.text, bench, run_edgemoe)
    finish.check_trained()
    finish.measure()
    finish.publish(args.to, args.page)
    print(f"{args.page} and {args.to} are written. Link the page from README.md, and say so in CHANGELOG.md.")


if __name__ == "__main__":
    main()
