"""Lossy settings on the command line: their description, their measured quality, and the command that measures it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.session.model import Model


def lossy_line(folder: Path, asked: LossySettings, effective: LossySettings, model: str | None, ram: str | None) -> str:
    """One line on the settings `asked` for; `effective` are those that have any effect under this budget.

    `model` and `ram` are as on the command line; the line quotes them in the command that measures the quality.
    """
    from edgemoe.session.quality import find_quality

    if not effective.on:
        return f"lossy: {asked.describe()} · all experts are in memory, so this changes nothing"
    quality = find_quality(folder, effective, ram)
    if quality is None:
        command = quality_command(model, effective, ram)
        return f"lossy: {effective.describe()} · quality not measured yet; to measure it: {command}"
    return f"lossy: {effective.describe()} · measured: {quality.describe()}"


def quality_command(model: str | None, settings: LossySettings, ram: str | None) -> str:
    """The command that measures the quality."""
    words = ["edgemoe", "bench", *([model] if model is not None else []), "--quality"]
    if ram is not None:
        words += ["--ram", ram]
    if settings.cache_aware_routing > 0:
        words += ["--cache-aware-routing", f"{settings.cache_aware_routing:g}"]
    if settings.drop_cold > 0:
        words += ["--drop-cold", f"{settings.drop_cold:g}"]
    if settings.from_base:
        words += ["--on-miss", settings.on_miss]
    if settings.experts_per_token is not None:
        words += ["--experts-per-token", str(settings.experts_per_token)]
    return shlex.join(words)


def report_lossy(
    folder: Path, asked: LossySettings, effective: LossySettings, model: str | None, ram: str | None
) -> None:
    """Print `lossy_line` to stderr if any lossy setting was asked for."""
    if asked.on:
        print(lossy_line(folder, asked, effective, model, ram), file=sys.stderr, flush=True)


def lossy_json(model: Model, asked: LossySettings, ram: str | None) -> dict[str, Any]:
    """Lossy settings for `--json`: those asked for, those with an effect, the measured quality; empty if none is on."""
    if not asked.on:
        return {}
    from edgemoe.session.quality import find_quality

    effective = model.engine.lossy
    quality = find_quality(model.path, effective, ram) if effective.on else None
    return {
        "lossy": {
            "asked": asked.to_json(),
            "effective": effective.to_json(),
            "quality": quality.to_json() if quality is not None else None,
            "expert_drops": model.engine.statistics.expert_drops,
            "experts_from_base": model.engine.statistics.experts_from_base,
        }
    }
