"""The part of a benchmark's report that is about a device."""

from __future__ import annotations

import pytest

from edgemoe.bench.device import DeviceRates, DeviceReport, measure_device, measure_rates
from edgemoe.cli.terminal.bench_tables import _device_rows
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.device.cuda import CudaRuntime
from edgemoe.session.default_model import find_model
from tests.support.fake_cuda import FakeCuda


def test_rates_are_those_of_what_is_moved() -> None:
    driver = FakeCuda(memory_bytes=4 << 20)
    runtime = CudaRuntime(driver=driver)
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
    rows = dict(_device_rows(DeviceReport(device, failure, rates, 1000, 1000, 12.34, 5)))
    assert rows["device"].startswith(told)
    assert rows["answers"] == "1,000 of 1,000 logits are the processor's, bit for bit"
    assert rows["decode"] == "12.3 tokens/s, 5.0 without it"
    assert ("q4 products" in rows) == bool(device)


@pytest.mark.slow
def test_the_bundled_model_is_compared_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.bench.device.PROMPT_TOKENS", 3)
    monkeypatch.setattr("edgemoe.bench.device.DECODED_TOKENS", 2)
    report = measure_device(find_model(None), EngineOptions(threads=1, context_length=128, device="host"), 1 << 20)
    assert (report.device, report.failure) == ("host", None)
    assert report.equal_logits == report.logits == 3 * 49152
    assert report.rates is not None
    assert report.tokens_per_s > 0 < report.processor_tokens_per_s
