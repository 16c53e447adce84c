"""Compares stores of one model on held-out text: `python losses.py TEXT STORE...`, a line of JSON for each.

The loss is that of what the decoder writes, bytes and marks, in nats, on 128 inputs from the end of the text; the
share of zeros is that of the weights of experts, and their bits are those of records.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from spans import PAD, halves, held_out

import edgemoe
from edgemoe.analysis.matrices import part_rows
from edgemoe.store.reader import Store

BATCHES, BATCH = 16, 8


def loss_of(store: Path, text: Path) -> float:
    """The mean loss of what is written."""
    losses = []
    with edgemoe.load(store) as model:
        for inputs, targets in held_out(halves(text)[1], BATCHES, BATCH):
            for read, written in zip(inputs.tolist(), targets.tolist(), strict=True):
                logits = model.logits([PAD, *written[:-1]], read).astype(np.float64)
                chosen = logits[np.arange(len(written)), written]
                losses.append(float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean()))
    return float(np.mean(losses))


def zeros_and_bits(folder: Path) -> tuple[float, float]:
    """The share of zeros among the weights of experts, and the bits of records for each weight."""
    store, zeros, weights, size = Store.open(folder), 0, 0, 0
    for record in store.manifest.records:
        place, layout = store.record(record.layer, record.expert), store.manifest.layouts[record.layout].matrices
        own = layout.weights(np.fromfile(place.path, np.uint8, place.length, offset=place.offset))
        for part, rows in (("up", layout.intermediate_size), ("down", layout.hidden_size)):
            matrix = part_rows(layout.gated, own, part, 0, rows)
            zeros, weights = zeros + int((matrix == 0).sum()), weights + matrix.size
        size += record.length
    return zeros / weights, 8 * size / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("stores", type=Path, nargs="+")
    options = parser.parse_args()
    for store in options.stores:
        zeros, bits = zeros_and_bits(store)
        found = {"loss": round(loss_of(store, options.text), 4), "zeros": round(zeros, 4), "bits": round(bits, 3)}
        print(json.dumps({"store": store.name} | found), flush=True)


if __name__ == "__main__":
    main()
