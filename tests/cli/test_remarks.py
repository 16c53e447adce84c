"""Lines about a prompt that takes long, and about prefixes that are not kept."""

from types import SimpleNamespace
from typing import cast

import pytest

from edgemoe.cli.remarks import prompt_remark, tell_of_prefixes
from edgemoe.engine.prompt_times import PromptEstimate
from edgemoe.session.model import Model
from tests.support.every_case import every_case


@every_case(("least", "most", "said"), [
    (61.2, 61.2, "about 61 seconds"),
    (300, 300, "about 5 minutes"),
    (20.4, 20.1, "about 20 seconds"),
    (20, 57, "between 20 and 57 seconds"),
    (70, 200, "between 70 seconds and 3 minutes"),
    (600, 1800, "between 10 and 30 minutes"),
])  # fmt: skip
def test_the_time_of_a_prompt_is_said_as_well_as_it_is_known(least: float, most: float, said: str) -> None:
    estimate = PromptEstimate(2048, least, most)
    assert prompt_remark(estimate) == f"a prompt of 2,048 tokens: {said} until the answer begins"


def test_a_size_for_prefixes_that_are_not_kept_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = cast(Model, SimpleNamespace(engine=SimpleNamespace(sequences=SimpleNamespace(tier=None))))
    tell_of_prefixes(model, None)
    assert capsys.readouterr().err == ""
    tell_of_prefixes(model, "1GiB")
    assert "--prefix-disk has no effect" in capsys.readouterr().err
