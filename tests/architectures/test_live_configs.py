"""Published configs as transformers writes them again, in its newer keys: they mean the same. Needs transformers."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from edgemoe.architectures import model_spec
from tests.architectures import published
from tests.architectures.test_config import refusal

pytestmark = pytest.mark.oracle

NOT_READ = {
    "GROK_2": "its model_type, git, is that of another model in transformers",
    "LLAMA4_MAVERICK": "transformers takes no number for `attn_temperature_tuning`",
}


def published_configs() -> dict[str, dict[str, Any]]:
    """The published configs, by their names, whose classes transformers has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = {name: value for name, value in vars(published).items() if name.isupper() and not name.startswith("_")}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, dict) and value.get("model_type") in CONFIG_MAPPING and name not in NOT_READ
    }


def written_again(config: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """The config as transformers saves it: all of it, or what differs from its defaults."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    again: dict[str, Any] = json.loads(made.to_json_string(use_diff=not whole))
    return again


@pytest.mark.parametrize("whole", [False, True])
def test_a_config_that_transformers_writes_again_means_the_same(whole: bool) -> None:
    configs = published_configs()
    assert len(configs) > 50
    for name, config in configs.items():
        again = written_again(config, whole=whole)
        if name == "DBRX_INSTRUCT":  # transformers writes a theta of its own beside the model's
            assert "rope_theta is 10000, but 500000 in attn_config" in refusal(again)
        else:
            assert model_spec(again) == model_spec(config), name
