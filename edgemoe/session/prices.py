"""Measured prices of lossy settings, kept in a small file in the user's cache.

A price belongs to a store (by its manifest, which has checksums of all the rest), the settings, and the budget as it
was asked for. The file is a convenience: where it is missing, damaged or cannot be written, prices are unknown and
nothing else happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemoe.engine.lossy import LossySettings
from edgemoe.errors import UsageError
from edgemoe.paths import cache_folder

PRICES_VERSION = 1
PRICES_MAX = 1000
"""Maximum number of prices kept; beyond it the oldest are dropped."""
FILE_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Price:
    """Cost and gain of lossy settings, measured over a text (or random ids) against the lossless model."""

    divergence_nats: float
    """Mean KL divergence of the lossy from the lossless next-token distribution."""
    top_changed: float
    """Share of positions whose likeliest token is another one."""
    positions: int
    text: str | None
    """The text that was measured on; None for random ids."""
    speed_ratio: float
    """Tokens per second of the lossy model over the lossless one's."""

    def describe(self) -> str:
        """For people, in one clause."""
        over = f"{self.positions} positions" + ("" if self.text else " of random ids")
        return (
            f"KL {self.divergence_nats:.4f} nats, another top token at {self.top_changed:.1%} of {over},"
            f" {self.speed_ratio:.2f} x the speed"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Price:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            price = cls(**data)
            numbers = (price.divergence_nats, price.top_changed, price.positions, price.speed_ratio)
            if not all(math.isfinite(number) for number in numbers) or not isinstance(price.text, (str, type(None))):
                raise ValueError("not a price")
        except (TypeError, OverflowError) as error:
            raise ValueError("not a price") from error
        return price


def price_key(folder: Path, settings: LossySettings, ram: str | int | None) -> str:
    """The key under which a price is kept. Raises OSError if the store's manifest cannot be read."""
    digest = hashlib.sha256((folder / "edgemoe.json").read_bytes()).hexdigest()[:32]
    return f"{digest} ram={_budget_name(ram)} {settings.describe()}"


def find_price(folder: Path, settings: LossySettings, ram: str | int | None) -> Price | None:
    """The price that was measured last, or None where none is known."""
    path = prices_path()
    try:
        return _read(path).get(price_key(folder, settings, ram)) if path is not None else None
    except OSError:
        return None


def keep_price(folder: Path, settings: LossySettings, ram: str | int | None, price: Price) -> bool:
    """Keep a price for `find_price`; returns whether that could be done."""
    path = prices_path()
    if path is None:
        return False
    try:
        key = price_key(folder, settings, ram)
        path.parent.mkdir(parents=True, exist_ok=True)
        prices = dict(_read(path))
        prices.pop(key, None)  # so that it comes last
        prices[key] = price
        kept = dict(list(prices.items())[-PRICES_MAX:])
        data = {"edgemoe_prices": PRICES_VERSION, "prices": {name: one.to_json() for name, one in kept.items()}}
        _replace(path, json.dumps(data, indent=1) + "\n")
    except OSError:
        return False
    return True


def prices_path() -> Path | None:
    """The path of the file of prices; None if nothing should be kept (see `cache_folder`)."""
    folder = cache_folder()
    return None if folder is None else folder / "prices.json"


def _budget_name(ram: str | int | None) -> str:
    """One name for each budget that can be asked for: bytes, `auto` or `floor`."""
    from edgemoe.sizes import parse_size

    if ram is None:
        return "auto"
    text = str(ram).strip().lower()
    try:
        return str(parse_size(text))
    except UsageError:
        return text


def _read(path: Path) -> Mapping[str, Price]:
    """The prices in a file; none where it is missing or not of this form."""
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            return {}
        data = json.loads(path.read_text("utf-8"))
        if data["edgemoe_prices"] != PRICES_VERSION:
            return {}
        entries = data["prices"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    prices = {}
    for key, entry in entries:
        with contextlib.suppress(ValueError):
            prices[key] = Price.from_json(entry)
    return prices


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
