"""A report made up for tests of what is made of reports."""

from __future__ import annotations

from edgemoe.bench.control_group import GroupUsage
from edgemoe.bench.hit_rates import HitRates
from edgemoe.bench.limits import ForecastReport, GuessReport, LimitReport
from edgemoe.bench.measure import Settings
from edgemoe.bench.report import (
    EngineReport,
    ExpertsReport,
    LedgerReport,
    RatioReport,
    Report,
    RooflineReport,
)
from edgemoe.bench.speed import SpeedEstimate
from edgemoe.bench.spread import Spread
from edgemoe.engine.lossy import EXACT

KERNELS = {"backend": "native", "isa": "avx2", "threads": 2}
MEMORY = {"budget_bytes": 3 << 30, "slots": 40, "total_experts": 64, "all_resident": False}


def spread(*samples: float) -> Spread:
    return Spread.of(samples)


def made_up_report(beside: bool = True, roofline: bool = True) -> Report:
    """Three rounds; `beside` another engine or alone."""
    ours = EngineReport(
        "edgemoe", {"kernels": KERNELS, "memory": MEMORY, "lossy": EXACT.to_json()}, spread(30, 34, 32),
        spread(150, 160, 170), spread(0.5, 0.6, 0.55), 200 << 20,
    )  # fmt: skip
    theirs = EngineReport(
        "llama.cpp", {"version": "llama-cpp-python 9"}, spread(15, 17, 16), spread(50, 50, 50), None, 300 << 20,
        321.4, GroupUsage(3 << 30, 3 << 30, 1 << 30, 12),
    )  # fmt: skip
    return Report(
        version="0",
        machine={"processor": "A <Processor>", "cores": 4, "python_keeps_bytecode": True},
        model={"path": "/models/some-moe/store", "family": "mixtral"},
        settings=Settings(32, 64, 256, 3),
        bytes_per_token=500e6,
        edgemoe=ours,
        roofline=RooflineReport(spread(19e9, 20e9, 21e9), 1 << 30, spread(0.79, 0.85, 0.76)) if roofline else None,
        decode_ledger=LedgerReport(
            192, 31.0, {"attention": 5.0, "experts": 20.0, "disk_wait": 4.0, "python": 1.5}, {"experts": 18e9}
        ),
        prefill_ledger=LedgerReport(768, 6.3, {"attention": 2.0, "experts": 4.0}, {}),
        experts=ExpertsReport(64, 8, [50.0, 60.5], 0.925, 5 << 20, [0.92, 0.925, 0.93]),
        limits=LimitReport(
            spread(1.1e9, 1.0e9, 1.2e9),
            3 << 20,
            4,
            True,
            spread(5e6, 5.2e6, 5.1e6),
            spread(220, 192, 235),
            spread(38, 40, 42) if roofline else None,
            spread(0.8, 0.85, 0.76),
        ),
        guesses=GuessReport(0.81, 0.25, 0.6, 1e5),
        forecast=ForecastReport(
            "uniform routing", HitRates(0.9, 0.9, 0.9), SpeedEstimate(20, 30, 38), -6.25, SpeedEstimate(22, 33, 40), 3.1
        )
        if roofline
        else None,
        routing=None,
        trace=None,
        peer=theirs if beside else None,
        ratios=RatioReport(spread(2, 2.1, 1.9), spread(3, 3.2, 3.4), None) if beside else None,
        idle_cpu_share=0.07 if beside else 0.0,
        others_busy_cores=0.0 if beside else 1.52,
    )
