"""Lossy settings on the command line: their description, their price, and the command that measures it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.session.model import Model


def lossy_line(folder: Path, asked: LossySettings, used: LossySettings, model: str | None, ram: str | None) -> str:
    """One line on the settings `asked` for; `used` are those that have any effect under this budget.

    `model` and `ram` are as on the command line; the line quotes them in the command that measures a price.
    """
    from edgemoe.session.prices import find_price

    if not used.on:
        return f"lossy: {asked.describe()} · all experts are in memory, so this changes nothing"
    price = find_price(folder, used, ram)
    if price is None:
        return f"lossy: {used.describe()} · price not measured yet: {price_command(model, used, ram)}"
    return f"lossy: {used.describe()} · measured price: {price.describe()}"


def price_command(model: str | None, settings: LossySettings, ram: str | None) -> str:
    """The command that measures a price."""
    words = ["edgemoe", "bench", *([model] if model is not None else []), "--price"]
    if ram is not None:
        words += ["--ram", ram]
    if settings.cache_aware_routing > 0:
        words += ["--cache-aware-routing", f"{settings.cache_aware_routing:g}"]
    if settings.drop_cold > 0:
        words += ["--drop-cold", f"{settings.drop_cold:g}"]
    if settings.experts_used is not None:
        words += ["--experts-used", str(settings.experts_used)]
    return shlex.join(words)


def tell_lossy(folder: Path, asked: LossySettings, used: LossySettings, model: str | None, ram: str | None) -> None:
    """Print `lossy_line` to stderr if any lossy setting was asked for."""
    if asked.on:
        print(lossy_line(folder, asked, used, model, ram), file=sys.stderr, flush=True)


def lossy_json(model: Model, asked: LossySettings, ram: str | None) -> dict[str, Any]:
    """Lossy settings for `--json`: those asked for, those with any effect, the price if known; empty if none is on."""
    if not asked.on:
        return {}
    from edgemoe.session.prices import find_price

    used = model.engine.lossy
    price = find_price(model.folder, used, ram) if used.on else None
    return {
        "lossy": {
            "asked": asked.to_json(),
            "used": used.to_json(),
            "price": price.to_json() if price is not None else None,
            "expert_drops": model.engine.statistics.expert_drops,
        }
    }
