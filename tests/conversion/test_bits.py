"""Formats for a wanted number of bits: they fit, bytes go where errors fall most, and a user may write the choice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgemoe.conversion.bits import NAMES, Errors, formats_for
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


def errors(layers: int = 6, **dear: float) -> Callable[[], Errors]:
    """The squared errors of normal weights, times what `dear` says of a place, such as `l3_down`."""
    plain = dict(zip(NAMES, (0.41, 0.29, 0.15, 0.072, 0.021, 0.0058), strict=True))
    return lambda: {
        (layer, part): {name: error * dear.get(f"l{layer}_{part}", 1) for name, error in plain.items()}
        for layer in range(1, layers)
        for part in ("", "down")
    }


def bits_of(text: str, shapes: Shapes) -> float:
    formats = ExpertFormats.parse(text, tuple(TRELLISES))
    experts = {name: found for name in shapes if (found := expert_of(name)) and len(shapes[name]) == 2}
    layers = sorted({layer for layer, _, _ in experts.values()})
    formats.check(layers)
    stored = sum(
        FORMATS[formats.of(part, layer, layers)].matrix_bytes(*shapes[name])
        for name, (layer, _, part) in experts.items()
    )
    return 8 * stored / sum(shapes[name][0] * shapes[name][1] for name in experts)


def test_what_is_chosen_fits_and_nearly_fills_what_was_wanted() -> None:
    for wanted in (0.85, 1.2, 1.7, 2.2, 2.6, 3.0, 3.5, 4.0):
        for dear in ({}, {"l3_down": 9.0, "l1_": 3.0}):
            found = bits_of(formats_for(wanted, model(), errors(**dear)), model())
            assert wanted - 0.15 < found <= wanted, (wanted, dear)
    assert formats_for(4.2, model(), errors()) == "n4"


def test_bytes_go_where_the_error_falls_most() -> None:
    formats = ExpertFormats.parse(formats_for(2.4, model(), errors(l3_down=30.0, l5_=30.0, l2_=0.01)), tuple(TRELLISES))
    rank = {name: number for number, name in enumerate(NAMES)}
    found = {
        (layer, part): rank[formats.of(part, layer, range(1, 6))] for layer in (2, 3, 4, 5) for part in ("up", "down")
    }
    assert found[3, "down"] > found[4, "down"] >= found[4, "up"] > found[2, "up"]
    assert found[5, "up"] > found[4, "up"]


def test_the_choice_is_written_as_it_was_made() -> None:
    for wanted in (1.3, 2.4, 3.1):
        text = formats_for(wanted, model(), errors(l3_down=30.0, l5_=30.0, l2_=0.01, l4_down=0.1))
        parsed = ExpertFormats.parse(text, tuple(TRELLISES))
        assert parsed.of("gate", 3, range(1, 6)) == parsed.of("up", 3, range(1, 6))
        assert bits_of(text, model()) <= wanted


def test_models_of_one_or_two_layers() -> None:
    for layers in (2, 3):
        text = formats_for(2.5, model(layers), errors(layers))
        assert 2 < bits_of(text, model(layers)) <= 2.5, text


def test_what_cannot_be_reached_is_refused_before_anything_is_measured() -> None:
    def never() -> Errors:
        raise AssertionError("measured")

    for bits in (0.5, 0.0, -3.0, 4.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"`bits`: expected a number from 0.8\d* to 4.2\d*, .* found"):
            formats_for(bits, model(), never)
    with pytest.raises(UsageError, match="a model with routed experts"):
        formats_for(2.5, {"layers.0.ffn.up": (64, 64)}, never)
