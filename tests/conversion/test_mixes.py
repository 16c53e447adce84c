"""llama.cpp's mixes of formats, on published shapes."""

from __future__ import annotations

import pytest

from edgemoe.architectures import model_spec
from edgemoe.conversion.formats import BY_DEFAULT, choose_formats
from edgemoe.conversion.mixes import MIXES, mix_formats
from edgemoe.conversion.shapes import SHAPES
from edgemoe.conversion.synthetic import synthesise
from edgemoe.errors import UsageError
from tests.support.every_case import every_case


def formats(shape: str, mix: str) -> dict[str, str]:
    spec = model_spec(SHAPES[shape])
    chosen = choose_formats(spec.tensors(), dict.fromkeys(spec.tensors(), "F32"), BY_DEFAULT)
    return {name: fmt.name for name, fmt in mix_formats(mix, spec, chosen).items() if fmt is not None}


def layers_with(found: dict[str, str], end: str, fmt: str) -> list[int]:
    return [int(name.split(".")[1]) for name in found if name.endswith(end) and found[name] == fmt]


def test_more_bits_for_some_layers() -> None:
    found = formats("olmoe-1b-7b", "q4_k_m")
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers_with(found, ".value", "q6k") == more
    assert layers_with(found, "experts.5.down", "q6k") == more
    assert {found[f"layers.3.{name}"] for name in ("query", "key", "output", "experts.0.gate", "experts.9.up")} == {
        "q4k"
    }
    assert (found["head"], found["embedding"], found["layers.3.router"]) == ("q6k", "q4k", "f32")


@every_case(
    ("mix", "head", "value", "down", "output"),
    [
        ("q2_k", "q6k", "q3k", "q3k", "q3k"),
        ("q3_k_m", "q6k", "q5k", "q5k", "q4k"),
        ("q5_k_m", "q6k", "q6k", "q6k", "q5k"),
        ("q6_k", "q6k", "q6k", "q6k", "q6k"),
        ("iq4_xs", "q6k", "iq4xs", "q5k", "iq4xs"),
    ],
)
def test_the_first_layer_of_each_mix(mix: str, head: str, value: str, down: str, output: str) -> None:
    found = formats("olmoe-1b-7b", mix)
    own = (found[f"layers.0.{name}"] for name in ("value", "experts.0.down", "output"))
    assert (found["head"], *own) == (head, value, down, output)
    assert found["layers.0.experts.0.gate"] == MIXES[mix]


def test_few_experts_and_narrow_matrices() -> None:
    found = formats("mixtral-8x7b", "q4_k_m")
    assert {found[f"layers.9.{name}"] for name in ("key", "value")} == {"q8"}
    assert found["layers.9.output"] == "q5k"
    assert formats("tiny", "q4_k_m")["layers.1.experts.0.down"] == "q5"  # 128 columns
    assert formats("tiny", "iq4_xs")["layers.1.experts.0.down"] == "iq4nl"


def test_linear_layers_take_the_place_of_values() -> None:
    found = formats("qwen3.6-35b-a3b", "q4_k_m")
    assert layers_with(found, ".delta_in", "q6k")[:4] == [0, 1, 2, 4]
    assert found["layers.0.delta_out"] == "q4k"


@every_case(
    ("options", "message"),
    [
        ({"mix": "q4_k_l"}, r"`mix`: expected one of q2_k, .*, iq4_xs, found 'q4_k_l'"),
        ({"mix": "q4_k_m", "head": "q8"}, r"`head`: expected no format beside `mix=q4_k_m`"),
        ({"experts": "q7"}, r"`experts`: expected one of q4, .*q6k.*, found 'q7'"),
    ],
)
def test_what_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        synthesise("tiny", "nowhere", **options)  # type: ignore[arg-type]  # strings all
