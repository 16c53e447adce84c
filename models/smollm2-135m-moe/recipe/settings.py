"""Reads config.toml and builds the decoder with or without trained weights."""

from __future__ import annotations

from pathlib import Path

import tomllib
import torch
from decoder import Decoder
from gguf_source import DenseSource

HERE = Path(__file__).parent


def load_settings(path: Path | None = None) -> dict:
    """All tables of config.toml."""
    return tomllib.loads((path or HERE / "config.toml").read_text(encoding="utf-8"))


def build_decoder(source: DenseSource, settings: dict, weights: Path | None = None) -> Decoder:
    """The upcycled model: as it starts (down and routers zero), or with saved weights."""
    shape = settings["model"]
    model = Decoder(source, shape["experts"], shape["experts_per_token"], shape["expert_width"])
    if weights is None:
        model.copy_neurons(settings["training"]["seed"])
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("model", state))
    return model
