"""Forms of quantised matrices: which tensors of a checkpoint are one, by their names, and what it is shown as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgemoe.conversion.quantised.raw import DAMAGED, Raw
from edgemoe.conversion.source import TensorInfo
from edgemoe.errors import SourceError
from edgemoe.kernels.file_rows import Rows

FLOATS, HALVES, E8M0, E4M3 = ("F32", "BF16", "F16"), ("BF16", "F16"), ("U8", "F8_E8M0"), ("F8_E4M3",)
"""Dtypes of scales, and of codes."""

Settings = Mapping[str, Any]
"""The object of config.json that says how weights are quantised."""


@dataclass(frozen=True)
class Quantised:
    """A matrix, or several in a stack, as a source shows it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Raw, int, int], Rows]
    """Reads rows, which are counted through all matrices of a stack."""


@dataclass(frozen=True)
class Form:
    """One way in which programs write a quantised matrix: as tensors whose names are a stem with several ends."""

    program: str
    codes: str
    """The end of the name of the tensor that has the codes."""
    dtypes: tuple[str, ...]
    """The dtypes of codes. A tensor of another dtype is not of this form."""
    needed: Mapping[str, tuple[str, ...]]
    """The other ends, with the dtypes that those tensors may have."""
    open: Callable[[Parts], Quantised]
    """Raises SourceError where the tensors contradict each other or the settings."""
    dtype: Callable[[str, Settings], str]
    """The dtype that a stem's matrix is shown with, where nothing is known but names and settings."""
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shown: str = ".weight"
    """The end of the name that the matrix is shown by."""


@dataclass(frozen=True)
class Parts:
    """The tensors of one quantised matrix, by the ends of their names."""

    form: Form
    stem: str
    infos: Mapping[str, TensorInfo]
    settings: Settings
    expected: tuple[int, ...] | None = None
    """The shape that the model's family has for it, if it has the tensor."""

    def __iter__(self) -> Iterator[str]:
        """The ends that it has."""
        return iter(self.infos)

    def shape(self, end: str) -> tuple[int, ...]:
        return self.infos[end].shape

    def check_stack(self, end: str) -> None:
        """Raise SourceError where a tensor is no matrix and no stack of them, or is empty."""
        shape = self.shape(end)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise self.wrong(end, "two or three dimensions", f"{shape}")

    def check_shape(self, end: str, *expected: tuple[int, ...]) -> None:
        """Raise SourceError where a tensor has none of these shapes."""
        if self.shape(end) not in expected:
            raise self.wrong(end, f"a shape of {' or '.join(map(str, expected))}", f"{self.shape(end)}")

    def wrong(self, end: str, expected: str, found: str, way_out: str = DAMAGED) -> SourceError:
        """The error about one of its tensors."""
        codes = self.stem + self.form.codes
        beside = "" if end == self.form.codes else f", to fit {codes} of {self.shape(self.form.codes)}"
        shard = self.infos[end].shard
        return SourceError(f"{shard}: {self.stem}{end}: expected {expected}{beside}; found {found}.", way_out)


def parts_of(
    forms: tuple[Form, ...],
    name: str,
    tensors: Mapping[str, TensorInfo],
    settings: Settings,
    expected: Mapping[str, tuple[int, ...]],
) -> Parts | None:
    """The tensors that belong to the codes of this name, in the first form that fits; None if it has no codes.

    `expected` are the shapes that the family has for tensors, where the forms do not say them.

    A dtype of "" is unknown, and may be any. Raises SourceError for codes without the rest of their form, where their
    name alone tells that they are such, or their dtype and a config (`settings`) that declares them.
    """
    problem = None
    for form in forms:
        info = tensors[name]
        if not name.endswith(form.codes) or info.dtype not in ("", *form.dtypes):
            continue
        stem = name[: len(name) - len(form.codes)]
        missing = [end for end in form.needed if stem + end not in tensors]
        if not missing:
            ends = [form.codes, *form.needed, *(end for end in form.optional if stem + end in tensors)]
            parts = Parts(
                form, stem, {end: tensors[stem + end] for end in ends}, settings, expected.get(stem + form.shown)
            )
            for end, dtypes in (*form.needed.items(), *form.optional.items()):
                if end in parts.infos and parts.infos[end].dtype not in ("", *dtypes):
                    raise parts.wrong(end, f"{form.program} with {' or '.join(dtypes)}", parts.infos[end].dtype)
            return parts
        if (info.dtype and settings) or form.codes not in (".weight", "_proj"):
            problem = problem or SourceError(
                f"{stem}{missing[0]}: missing; {name} has codes of {form.program}, which need it.",
                DAMAGED,
            )
    if problem:
        raise problem
    return None
