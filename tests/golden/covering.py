"""A few golden models that between them have every form of every operation.

The default tests run each golden model once, on the engine's own kernels; what follows from operations alone they try
on these few, and the slow tests on all.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from edgemoe.kernels.definition import definition_of
from edgemoe.model.build import Graph
from edgemoe.model.graph import ExpertRecords
from tests.golden.cases import CASES

GOLDEN = Path(__file__).parent
COVERING = [
    "deepseek_v4",
    "qwen4_exp_text",
    "bailing_hybrid",
    "gemma4",
    "nemotron_h_latent",
    "gpt_oss",
    "llama4",
    "laguna_fused",
    "dbrx_plain",
    "lfm2_moe",
    "lfm2_moe_fused",
    "kimi_linear_latent",
    "minimax",
    "smallthinker",
    "phimoe",
    "qwen2_moe",
    "ernie4_5_moe",
    "deepseek_v2",
    "mistral4",
    "mistral4_fused",
    "granitemoehybrid",
    "jamba",
    "longcat_flash",
    "longcat_flash_fused",
    "afmoe_fused",
    "granitemoe_swa",
    "flint",
    "kolibri1",
    "kolibri1_fused",
    "laguna",
    "grok_1",
    "grok_2",
    "carrier_leaves",
    "carrier_nodes",
    "carrier_levels",
]
"""Names of the golden models that the default tests try everything on, as `covering` finds them."""


def forms(graph: Graph) -> set[Hashable]:
    """The forms in which operations occur: each kind with its flags and choices, and the parts that it may be without.

    Between two operations of one form only sizes and numbers differ, which the tests of kernels draw at random.
    """
    return {tuple(_form(step.operation)) for section in graph.sections() for step in section.steps}


def _form(value: object) -> Iterator[Hashable]:
    yield type(value).__name__
    for field in definition_of(type(value)).fields:
        part = getattr(value, field.name)
        if field.mark.kind in ("flag", "choice"):
            yield field.name, part
        elif field.mark.kind == "struct" and part is not None:
            yield field.name, tuple(_form(part))
        elif field.mark.kind == "structs" and not isinstance(part, ExpertRecords):
            yield field.name, frozenset(tuple(_form(member)) for member in part)
        elif field.optional:
            yield field.name, part is not None
        elif field.mark.kind in ("float", "integer") and field.default is not MISSING:
            yield field.name, part == field.default


def covering(graphs: Mapping[str, Graph]) -> Sequence[str]:
    """Names of few graphs that have all forms which any of them has: each time the one with the most new ones."""
    left = {name: forms(graph) for name, graph in graphs.items()}
    missing = set().union(*left.values())
    chosen: list[str] = []
    while missing:
        chosen.append(max(left, key=lambda name: len(left[name] & missing)))
        missing -= left[chosen[-1]]
    return chosen


@functools.cache
def golden_configs() -> Mapping[str, Mapping[str, Any]]:
    """The config of each golden model."""
    return {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in CASES}


def covering_models() -> list[Any]:
    """All golden models as parameters; the tests of those that have no form of their own are slow ones."""
    return [pytest.param(name, marks=[] if name in COVERING else pytest.mark.slow) for name in CASES]
