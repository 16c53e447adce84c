"""Texts and the tokenizer of the carriers: `python texts.py --work FOLDER`.

The texts are those of the bundled model's recipe (Debian packages, by domain; `corpora.py` there says which, and the
card under which licences). A byte-level BPE is learned from a part of each domain. `DOMAIN.npz` has the token ids of
a domain, ``train`` and ``held_out``; `held_out.txt` has the held-out parts of all domains as one text, for `edgemoe
eval`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from carrier import HERE, load_settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def learn_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of ``size`` tokens, of which the first ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def some(texts: list[str], limit: int) -> Iterable[str]:
    """Texts from the whole list, at even distances, of about ``limit`` characters in all."""
    step = max(1, sum(map(len, texts)) // limit)
    return texts[::step]


def load_rows(work: Path, length: int, seed: int) -> np.ndarray:
    """All training rows (rows, length + 1) in a shuffled order; a row's last token is the next one's first."""
    rows = []
    for path in sorted((work / "tokens").glob("*.npz")):
        ids = np.load(path)["train"].astype(np.int64)
        count = (len(ids) - 1) // length
        rows.append(np.lib.stride_tricks.sliding_window_view(ids, length + 1)[: count * length : length])
    if not rows:
        raise SystemExit(f"{work / 'tokens'} has no tokens: run texts.py first.")
    every = np.concatenate(rows)
    return every[np.random.default_rng(seed).permutation(len(every))]


def load_held_out(work: Path, length: int) -> dict[str, np.ndarray]:
    """Held-out rows (rows, length + 1) by domain."""
    found = {}
    for path in sorted((work / "tokens").glob("*.npz")):
        ids = np.load(path)["held_out"].astype(np.int64)
        count = max(0, (len(ids) - 1) // length)
        if count:
            found[path.stem] = np.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])
    return found


def write(texts: dict[str, list[str]], work: Path, settings: dict, tokenise) -> None:
    """The tokenizer, the token ids of every domain, and the held-out text."""
    data = settings["data"]
    sample = [text for of in texts.values() for text in some(of, data["tokenizer_bytes"])]
    tokenizer = learn_tokenizer(sample, settings["body"]["vocab_size"])
    out = work / "tokens"
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(work / "tokenizer.json"))
    held = []
    for name, of in texts.items():
        parts = tokenise(of, tokenizer, data["seed"], data["tokens_per_domain"], data["held_out_tokens"])
        np.savez(out / f"{name}.npz", **parts)
        held.append(tokenizer.decode(parts["held_out"].tolist()))
        row = {"domain": name, "train": len(parts["train"]), "held_out": len(parts["held_out"])}
        print(json.dumps(row | {"held_out_bytes": len(held[-1].encode())}), flush=True)
    (work / "held_out.txt").write_text("\n".join(held), encoding="utf-8")


def main() -> None:
    """Fetch the packages, learn the tokenizer and write the token files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    sys.path.append(str(HERE.parents[1] / "smollm2-135m-moe" / "recipe"))
    from corpora import DOMAINS, fetch, tokenise

    work.mkdir(parents=True, exist_ok=True)
    fetch(work)
    texts = {name: list(read(work / "debroot")) for name, read in DOMAINS.items()}
    write(texts, work, load_settings(), tokenise)


if __name__ == "__main__":
    main()
