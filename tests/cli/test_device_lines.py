"""Lines about devices: about those that are here, about a plan for one, and about one that does not run."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.cli.info import _device_rows as info_rows
from edgemoe.cli.remarks import device_remarks
from edgemoe.cli.terminal.plan_tables import _device_rows as plan_rows
from edgemoe.engine.device_plan import DevicePlan
from edgemoe.kernels.device.opening import Found
from edgemoe.kernels.device.runtime import DeviceError

FOUND = [
    Found("cuda", "", "There is no NVIDIA driver here."),
    Found("opencl:0", "Card", ""),
    Found("opencl:1", "PoCL", "", processor=True),
]


@pytest.mark.parametrize("tried", [False, True])
def test_info_tells_each_device_or_why_there_is_none(tried: bool) -> None:
    known = "gives the processor's bits"
    known = known if tried else f"--measure asks whether it {known}"
    assert info_rows([asdict(one) for one in FOUND], tried) == [
        ("cuda", "There is no NVIDIA driver here."),
        ("opencl:0", f"Card: {known}"),
        ("opencl:1", f"PoCL, the processor itself: {known}"),
    ]


def test_a_plan_tells_what_has_no_room() -> None:
    rows = dict(
        plan_rows(DevicePlan("Card", 6 << 30, 4 << 30, 1 << 30, 1 << 20, 200, 12, 400, 1 << 29, 80, 3 << 28, 96))
    )
    assert rows["device slots"].startswith("80 of 96 experts, 768.0 MiB: those that are used most")
    assert rows["its budget"] == "6.00 GiB"
    assert rows["copies of state"] == "1.00 GiB: keys and values, fixed state, slots of experts"
    assert rows["operations"] == "200 of the 400 of a token, 12 more with a larger budget"
    assert rows["long prompts"] == "the experts pass through 512.0 MiB of it where that is found to pay"
    rows = dict(plan_rows(DevicePlan("Card", None, 4 << 30, 1 << 30, 1 << 20, 212, 0, 400, 0, 0, 0, 0)))
    assert "device slots" not in rows
    assert rows["its budget"] == "the memory's: it has none of its own"
    assert rows["operations"] == "212 of the 400 of a token"
    assert "long prompts" not in rows


@pytest.mark.parametrize(
    ("asked", "device", "failure", "told"),
    [
        (None, None, None, []),
        ("cpu", None, None, []),
        ("auto", "Card", None, []),
        ("auto", "Small", None, ["warning: the device Small has room for no part of this model in its budget"]),
        ("auto", None, None, ["warning: there is no device that works"]),
        (
            "cuda",
            None,
            DeviceError("The device Card is lost."),
            ["warning: The device Card is lost. The processor went"],
        ),
    ],
)
def test_a_device_that_does_not_run_is_told(asked: Any, device: Any, failure: Any, told: list[str]) -> None:
    segments = [SimpleNamespace(on_device=device == "Card")]
    backend = SimpleNamespace(device=device, failure=failure, segments=segments)
    lines = device_remarks(SimpleNamespace(engine=SimpleNamespace(backend=backend)), asked)  # type: ignore[arg-type]
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))
