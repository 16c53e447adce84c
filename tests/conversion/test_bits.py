"""Formats for a wanted number of bits: they fit, more bits are no worse, and down and the ends get more."""

from __future__ import annotations

import pytest

from edgemoe.conversion.bits import formats_for
from edgemoe.conversion.expert_formats import ExpertFormats
from edgemoe.conversion.formats import expert_of
from edgemoe.errors import UsageError
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.trellis import TRELLISES

Shapes = dict[str, tuple[int, ...]]


def model(layers: int = 6, first: int = 1) -> Shapes:
    """A model with a dense layer before those with experts."""
    return {
        f"layers.{layer}.experts.{expert}.{part}": (512, 1024) if part == "down" else (1024, 512)
        for layer in range(first, layers)
        for expert in range(3)
        for part in ("gate", "up", "down")
    } | {"layers.0.ffn.up": (64, 64), "embedding": (99, 512), "layers.1.experts.0.up_bias": (1024,)}


def bits_of(text: str, shapes: Shapes) -> float:
    formats = ExpertFormats.parse(text, tuple(TRELLISES))
    experts = {name: found for name in shapes if (found := expert_of(name)) and len(shapes[name]) == 2}
    layers = sorted({layer for layer, _, _ in experts.values()})
    stored = sum(
        FORMATS[formats.of(part, layer, layers)].matrix_bytes(*shapes[name])
        for name, (layer, _, part) in experts.items()
    )
    return 8 * stored / sum(shapes[name][0] * shapes[name][1] for name in experts)


def test_what_is_chosen_fits_and_nearly_fills_what_was_wanted() -> None:
    for wanted in (0.85, 1.2, 1.7, 2.2, 2.6, 3.0, 3.5, 4.0):
        found = bits_of(formats_for(wanted, model()), model())
        assert wanted - 0.4 < found <= wanted, wanted
    assert formats_for(9, model()) == "n4"


def test_down_and_the_ends_get_more() -> None:
    formats = ExpertFormats.parse(formats_for(2.6, model()), tuple(TRELLISES))
    names = list(TRELLISES)  # most bits first
    rank = {name: -names.index(name) for name in names}
    middle = rank[formats.of("up", 3, range(1, 6))]
    assert rank[formats.of("down", 3, range(1, 6))] > middle
    assert rank[formats.of("up", 1, range(1, 6))] > middle


def test_models_of_one_or_two_layers() -> None:
    for layers in (2, 3):
        text = formats_for(2.5, model(layers))
        assert 2 < bits_of(text, model(layers)) <= 2.5, text


def test_what_cannot_be_reached_is_refused() -> None:
    for bits in (0.5, 0.0, -3.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"`bits`: expected a number from 0.8\d*, .* to about 4.19 \(n4\)"):
            formats_for(bits, model())
    with pytest.raises(UsageError, match="a model with routed experts"):
        formats_for(2.5, {"layers.0.ffn.up": (64, 64)})
