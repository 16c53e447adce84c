"""The common part of reports: their JSON, and what those that are kept begin with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

from edgemoe.bench.machine import describe_machine


@dataclass(frozen=True)
class PlainReport:
    """A report whose fields are plain values, or reports themselves."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)


@dataclass(frozen=True)
class KeptReport(PlainReport):
    """A report that is kept: it names its form, the program and the machine to its later readers."""

    form: ClassVar[tuple[str, int]]
    """The first name of its JSON, and the number of the form in which the rest is written."""
    version: str = field(default_factory=functools.partial(version, "edgemoe"), kw_only=True)
    machine: Mapping[str, Any] = field(default_factory=describe_machine, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        name, number = self.form
        return {name: number, **super().to_json()}
