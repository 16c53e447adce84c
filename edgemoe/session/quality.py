"""Measured quality of lossy settings, kept in a small file in the user's cache folder.

A measurement belongs to a store (by its manifest, which has checksums of all the rest), the settings, and the budget
as it was asked for. The file is a convenience: where it is missing, damaged or cannot be written, the quality counts
as not measured and nothing else happens.
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

QUALITY_VERSION = 1
KEPT_MAX = 1000
"""Maximum number of measurements kept; beyond it the oldest are dropped."""
FILE_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Quality:
    """Quality loss and speed-up of lossy settings, measured over a text (or random ids) against the lossless model."""

    divergence_nats: float
    """Mean KL divergence of the lossy from the lossless next-token distribution."""
    top_changed: float
    """Share of positions whose most likely token changes."""
    positions: int
    text: str | None
    """The text that was measured on; None for random ids."""
    speed_ratio: float
    """Tokens per second of the lossy model over the lossless one's."""

    def describe(self) -> str:
        """For people, in one clause."""
        over = f"{self.positions} positions" + ("" if self.text else " of random ids")
        return (
            f"KL divergence {self.divergence_nats:.4f} nats, top token changed at {self.top_changed:.1%} of {over},"
            f" {self.speed_ratio:.2f} x the speed"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Quality:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            quality = cls(**data)
            numbers = (quality.divergence_nats, quality.top_changed, quality.positions, quality.speed_ratio)
            if not all(math.isfinite(number) for number in numbers) or not isinstance(quality.text, (str, type(None))):
                raise ValueError("not a quality measurement")
        except (TypeError, OverflowError) as error:
            raise ValueError("not a quality measurement") from error
        return quality


def quality_key(folder: Path, settings: LossySettings, ram: str | int | None) -> str:
    """The key under which a measurement is kept. Raises OSError if the store's manifest cannot be read."""
    if folder.is_file():  # a GGUF file
        status = folder.stat()
        identity = f"{folder.resolve()} {status.st_size} {status.st_mtime_ns}".encode()
    else:
        identity = (folder / "edgemoe.json").read_bytes()
    digest = hashlib.sha256(identity).hexdigest()[:32]
    return f"{digest} ram={_budget_name(ram)} {settings.describe()}"


def find_quality(folder: Path, settings: LossySettings, ram: str | int | None) -> Quality | None:
    """The quality that was measured last, or None if it was never measured."""
    path = quality_path()
    try:
        return _read(path).get(quality_key(folder, settings, ram)) if path is not None else None
    except OSError:
        return None


def keep_quality(folder: Path, settings: LossySettings, ram: str | int | None, quality: Quality) -> bool:
    """Keep a measurement for `find_quality`; returns whether it could be written."""
    path = quality_path()
    if path is None:
        return False
    try:
        key = quality_key(folder, settings, ram)
        path.parent.mkdir(parents=True, exist_ok=True)
        measured = dict(_read(path))
        measured.pop(key, None)  # so that it comes last
        measured[key] = quality
        kept = dict(list(measured.items())[-KEPT_MAX:])
        data = {"edgemoe_quality": QUALITY_VERSION, "measured": {name: one.to_json() for name, one in kept.items()}}
        _replace(path, json.dumps(data, indent=1) + "\n")
    except OSError:
        return False
    return True


def quality_path() -> Path | None:
    """The path of the file of measurements; None if nothing should be kept (see `cache_folder`)."""
    folder = cache_folder()
    return None if folder is None else folder / "quality.json"


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


def _read(path: Path) -> Mapping[str, Quality]:
    """The measurements in a file; an empty mapping where it is missing or not of this form."""
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            return {}
        data = json.loads(path.read_text("utf-8"))
        if data["edgemoe_quality"] != QUALITY_VERSION:
            return {}
        entries = data["measured"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    measured = {}
    for key, entry in entries:
        with contextlib.suppress(ValueError):
            measured[key] = Quality.from_json(entry)
    return measured


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
