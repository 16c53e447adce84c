"""The part of a benchmark's report that is about a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from edgemoe.bench.device import DeviceRates, DeviceReport, DeviceWay, measure_device, measure_rates
from edgemoe.bench.spread import Spread
from edgemoe.cli.terminal.bench_tables import _device_rows
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.device import opening
from edgemoe.kernels.device.cuda import CudaRuntime
from edgemoe.kernels.device.host import HostRuntime
from edgemoe.kernels.device.runtime import Argument
from edgemoe.kernels.device.table import kernels
from edgemoe.session.default_model import find_model
from tests.support.fake_cuda import FakeCuda


class Counting(CudaRuntime):
    """Holds launches to the number of arguments that their kernels have, which no driver looks at."""

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        assert len(arguments) == len(kernels()[kernel].arguments)
        super().launch(kernel, arguments, items)


def test_rates_are_those_of_what_is_moved() -> None:
    driver = FakeCuda(memory_bytes=4 << 20)
    runtime = Counting(driver=driver)
    rates = measure_rates(runtime)
    assert min(vars(rates).values()) > 0
    assert driver.calls.count("cuLaunchKernel") == 2 * 6
    assert driver.device_bytes == 0 < driver.most_device_bytes <= 2 << 20
    runtime.close()


@pytest.mark.parametrize(
    ("device", "failure", "told"),
    [("Card", None, "Card"), (None, "Card is lost.", "Card is lost."), (None, None, "none that works")],
)
def test_a_person_reads_of_bits_first(device: str | None, failure: str | None, told: str) -> None:
    rates = DeviceRates(1e9, 2e9, 3e9, 4e9) if device else None
    ways = [
        DeviceWay("the processor alone", None, Spread.of([90.0]), Spread.of([5.0]), 0.0),
        DeviceWay("the whole budget", 6 << 30, Spread.of([100.0]), Spread.of([12.34, 14.0, 11.0]), 0.25),
    ]
    rows = dict(_device_rows(DeviceReport(device, failure, rates, 1000, 1000, ways)))
    assert rows["device"].startswith(told)
    assert rows["answers"] == "1,000 of 1,000 logits are the processor's, bit for bit"
    assert rows["the processor alone"] == "5.0 (5.0 to 5.0) tokens/s, prompt 90 (90 to 90)"
    told = "12.3 (11.0 to 14.0) tokens/s, prompt 100 (100 to 100), 25% of choices in device slots"
    assert rows["the whole budget (6.00 GiB)"] == told
    assert ("q4 products" in rows) == bool(device)


@pytest.mark.slow
@pytest.mark.parametrize("room", ["all", "some"])
def test_the_bundled_model_is_compared_bit_by_bit(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PROMPT_TOKENS", 3), ("DECODED_TOKENS", 4), ("ROUNDS", 1)):
        monkeypatch.setattr(f"edgemoe.bench.device.{name}", value)
    options = EngineOptions(threads=1, context_length=128, device="host")
    if room == "some":
        driver = FakeCuda(memory_bytes=1 << 30, host=HostRuntime())
        monkeypatch.setattr(opening, "open_runtime", lambda _: CudaRuntime(driver=driver))
        options = replace(options, device="cuda", vram=160 << 20)
    report = measure_device(find_model(None), options, 1 << 20)
    assert report.failure is None
    assert report.device
    assert report.rates is not None
    names = [way.name for way in report.ways]
    some = ["all but routed experts", "75 % of the budget"] if room == "some" else []
    assert names == ["the processor alone", *some, "the whole budget"]
    assert report.equal_logits == report.logits == (len(names) - 1) * 6 * 49152
    assert all(way.tokens_per_s.median > 0 < way.prompt_tokens_per_s.median for way in report.ways)
    budgets = [way.budget_bytes or 0 for way in report.ways]
    assert budgets == sorted(budgets)
