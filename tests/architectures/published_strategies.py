"""Random configs of the families whose reference is `tests/golden/published_more.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st


@st.composite
def smallthinker(draw: st.DrawFn, config: dict[str, Any]) -> dict[str, Any]:
    layers, count = config["num_hidden_layers"], draw(st.integers(2, 12) | st.integers(65, 80))
    layout = st.lists(st.integers(0, 1), min_size=layers, max_size=layers)
    return _without(config, "intermediate_size", "rope_parameters") | {
        "moe_ffn_hidden_size": draw(st.integers(1, 40)),
        "moe_num_active_primary_experts": draw(st.integers(1, min(count, 8))),
        "moe_num_primary_experts": count,
        "moe_primary_router_apply_softmax": draw(st.booleans()),
        "rope_layout": draw(layout),
        "rope_theta": draw(st.sampled_from([1e4, 1.5e6])),
        "sliding_window_layout": draw(layout),
        "sliding_window_size": draw(st.integers(1, 80)),
    }


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


OWN_CONFIGS: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[dict[str, Any]]]] = {"smallthinker": smallthinker}
"""The config of each of these families, from the keys that those of all families have."""
