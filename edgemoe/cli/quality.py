"""`edgemoe bench --quality`: what lossy settings cost and gain, as a table, as JSON, and kept for later runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgemoe.cli.fetching import fetched
from edgemoe.cli.text_files import read_text_file
from edgemoe.errors import StoreError, UsageError

if TYPE_CHECKING:
    from edgemoe.bench.quality import QualityReport, SideReport
    from edgemoe.engine.options import EngineOptions

DEFAULT_TEXTS = ("README.md", "answers.md")
"""Files beside the bundled model's store: a card and a conversation, the same in every installation."""


def measure_quality(
    model: str | None,
    options: EngineOptions,
    text_file: Path | None,
    tokens: int | None,
) -> QualityReport:
    """Measure, show and keep the quality. Raises as `QualityMeasurement`, and UsageError for an unusable text."""
    from edgemoe.bench.quality import DEFAULT_TOKENS, QualityMeasurement
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.kernels.select import describe_backend
    from edgemoe.session.quality import keep_quality, quality_path
    from edgemoe.session.stores import find_runnable, open_store

    folder = find_runnable(fetched(model))
    file = None if folder.is_dir() else open_store(folder)  # whose text goes with it
    text, name = _read_text(folder if file is None else file.text_folder, text_file)
    with ProgressBar("measuring", still=True) as bar:
        measurement = QualityMeasurement(
            folder,
            describe_backend(options.threads),
            options,
            DEFAULT_TOKENS if tokens is None else tokens,
            lambda doing, done, total: bar.update(doing, done, total, ""),
        )
        report = measurement.run(text, name)
    screen = open_screen()
    for title, rows in quality_tables(report):
        screen.table(rows, title)
    if not keep_quality(folder, LossySettings.from_json(report.lossy_settings), options.ram, report.quality):
        path = quality_path()
        why = "EDGEMOE_CACHE_DIR is empty" if path is None else f"{path} cannot be written"
        print(f"the measured quality could not be kept: {why}", file=sys.stderr)
    return report


def quality_tables(report: QualityReport) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of the costs and of the gains, with their titles."""
    from edgemoe.cli.terminal.bench_tables import spread_text
    from edgemoe.cli.terminal.eval_tables import estimate_text
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.lab.divergence import Estimate

    low, high = report.divergence_interval or (None, None)
    divergence = Estimate(report.divergence_nats, low, high)
    text = report.text or "random ids, as this model has no tokenizer; a text would be more telling"
    costs = [
        ("settings", LossySettings.from_json(report.lossy_settings).describe()),
        ("positions", f"{report.positions}, of {text}"),
        ("KL divergence", f"{estimate_text(divergence, '.5f')} nats (mean, lossless || lossy)"),
        ("top token changed", f"{report.top_changed:.1%} of positions"),
    ]
    if report.losses_nats is not None:
        exact, lossy = report.losses_nats
        costs.append(("loss", f"{exact:.4f} nats lossless, {lossy:.4f} lossy ({lossy - exact:+.4f})"))
    gains = [("lossless", _side(report.lossless)), ("lossy", _side(report.lossy))]
    gains.append(("lossy over lossless", f"{spread_text(report.speed_ratio, '.2f')} x the speed"))
    return [("quality of lossy settings", costs), ("speed, medians of slices (least to most)", gains)]


def _side(side: SideReport) -> str:
    from edgemoe.cli.terminal.bench_tables import spread_text
    from edgemoe.sizes import format_size

    parts = [f"{spread_text(side.tokens_per_s, '.1f')} tokens/s", f"{side.memory['slots']} of"]
    parts[1] += f" {side.memory['total_experts']} experts in memory"
    if side.hit_rate is not None:
        parts.append(f"{side.hit_rate:.1%} hits")
    if side.dropped_share:
        parts.append(f"{side.dropped_share:.1%} dropped")
    if side.from_base_share:
        parts.append(f"{side.from_base_share:.1%} from the base")
    parts.append(f"{format_size(side.disk_bytes_per_token)} per token from disk")
    return ", ".join(parts)


def _read_text(folder: Path, file: Path | None) -> tuple[str | None, str | None]:
    """The text to read and its name; None and None for a model without a tokenizer."""
    from edgemoe.session.default_model import find_model
    from edgemoe.session.tokenizer import has_tokenizer

    if not has_tokenizer(folder):
        if file is not None:
            raise UsageError("--text: this model has no tokenizer.", "Leave --text out: random ids are read.")
        return None, None
    if file is not None:
        return read_text_file(file), file.name
    try:
        card = find_model(None).parent
        return "\n".join((card / name).read_text("utf-8") for name in DEFAULT_TEXTS), "the bundled model's card"
    except (OSError, StoreError):
        raise UsageError(
            "--quality: the default text, which comes with edgemoe, is missing.", "Give one with --text."
        ) from None
