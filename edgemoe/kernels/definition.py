"""The definition of an operation: the symbolic shape and the role of each of its fields, to which it is held.

An operation is a frozen dataclass whose fields carry marks (`marks.py`) in `Annotated`, so that it reads as a paper
would write it:

    input: Annotated[Floats, rows("heads*W")]
    weight: Annotated[Floats, weight("W")]

One definition serves everything that would otherwise repeat it: the checks of shapes (`measure`), the structs of the
C library and their filling (`kernels/native`), the bytes that an operation reads, and listings of a program.

A shape is a list of extents. An extent is a number, a letter, or a product such as `2*H*W`, perhaps divided by a
number (`W/2`) or with a letter rounded up to whole panels (`2*up16(F)`). A letter stands for one number throughout an
operation: the first field that has it fixes it, and every other field is held to it. A field of type `int` is a letter
too, by its name. `T`, the rows of a run, is none of these letters: buffers may have room for unlike numbers of rows,
and the least of them bounds a run.
"""

import dataclasses
import functools
import itertools
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from edgemoe.errors import KernelError
from edgemoe.kernels.formats import PANEL_ROWS, Format, panel_count
from edgemoe.kernels.marks import INPUT, SHAPED, Kind, Mark, Role

LARGEST_EXTENT = 2**31 - 1
"""Extents are 32-bit integers in C."""

NO_LIMIT = 2**31 - 1
"""Rows of an operation that no buffer bounds."""


class Misfit(Exception):  # noqa: N818 - never seen by a person: it becomes a KernelError that names the operation
    """A field that is not as its operation defines it: which one, what was expected and what was found."""

    def __init__(self, field: str, expected: object, found: object) -> None:
        super().__init__(field, expected, found)
        self.field = field
        self.expected = expected
        self.found = found

    def within(self, outer: str) -> "Misfit":
        """Return the same for a field of the struct `outer`."""
        return Misfit(f"{outer}.{self.field}", self.expected, self.found)


HINT = "This is a fault in how the model was put together; please report it."


def refusal(number: int, operation: object, misfit: Misfit) -> KernelError:
    """Return the error about an operation, the `number`-th of its program."""
    where = f"operation {number} ({type(operation).__name__}): {misfit.field}"
    return KernelError(f"{where}: expected {misfit.expected}, found {misfit.found}.", HINT)


def unknown(number: int, operation: object) -> KernelError:
    """Return the error about an object that is no operation of any backend."""
    return KernelError(f"operation {number} ({type(operation).__name__}): no backend knows such an operation.", HINT)


def require(holds: bool, field: str, expected: object, found: object) -> None:
    """Raise Misfit unless `holds`."""
    if not holds:
        raise Misfit(field, expected, found)


class Extent(NamedTuple):
    """One extent of a symbolic shape: `factor * product of letters / divisor`, or `factor * up16(letter)`."""

    text: str
    factor: int
    letters: tuple[str, ...]
    divisor: int
    padded: bool
    """Whether its one letter is rounded up to whole panels."""
    letter: str
    """The letter that it is, if it is one and nothing else; else empty."""

    @classmethod
    def parse(cls, text: str) -> "Extent":
        """Raises ValueError for text that is not an extent."""
        product, _, divisor = text.partition("/")
        factors = product.split("*")
        padded = factors[-1].startswith("up16(") and factors[-1].endswith(")")
        if padded:
            factors[-1] = factors[-1][len("up16(") : -1]
        letters = tuple(name for name in factors if not name.isdigit())
        if not all(map(str.isidentifier, letters)) or (padded and len(letters) != 1):
            raise ValueError(f"{text!r} is not an extent such as 2*H*W, W/2 or 2*up16(F)")
        factor = math.prod(int(name) for name in factors if name.isdigit())
        return cls(text, factor, letters, int(divisor or 1), padded, text if letters == (text,) else "")

    def solve(self, found: int, letters: dict[str, int]) -> bool:
        """Take `found` as its value: fix its one unknown letter, or compare. Return whether that holds."""
        unknown = ""
        known = self.factor
        for name in self.letters:
            number = letters.get(name)
            if number is None:
                if unknown or self.padded:
                    return False
                unknown = name
            else:
                known *= PANEL_ROWS * panel_count(number) if self.padded else number
        product = found * self.divisor
        if not unknown:
            return known == product
        if product % known or not 0 < product <= LARGEST_EXTENT:
            return False
        letters[unknown] = product // known
        return True

    def told(self, letters: Mapping[str, int]) -> str:
        """Return it for an error, with numbers in the place of the letters that are known."""
        factors = [str(letters.get(name, name)) for name in self.letters]
        if not all(map(str.isdigit, factors)):
            text = f"up16({factors[0]})" if self.padded else "*".join(factors)
            return f"{self.factor}*" * (self.factor != 1) + text + f"/{self.divisor}" * (self.divisor != 1)
        numbers = [int(factor) for factor in factors]
        product = self.factor * math.prod(PANEL_ROWS * panel_count(n) if self.padded else n for n in numbers)
        return str(product // self.divisor) if product % self.divisor == 0 else f"{product}/{self.divisor}"


class Field(NamedTuple):
    """One field of an operation, or of a struct within one."""

    name: str
    mark: Mark
    role: Role
    optional: bool
    dtype: np.dtype[Any] | None
    """The type of a buffer's elements."""
    struct: type | None
    """The dataclass of a nested struct, or of each struct in a tuple."""
    extents: tuple[Extent, ...]
    default: Any
    """The value that it has unless one is given; `dataclasses.MISSING` if one must be."""

    @property
    def shape(self) -> str:
        """The symbolic shape as a paper writes it, such as `(T, H*W)`."""
        return _shape_text((*["T"] * self.mark.per_row, *self.mark.shape))

    def fit(self, value: Any, letters: dict[str, int]) -> int:
        """Hold a value to the symbolic shape, and return its rows (`NO_LIMIT` if it has none of its own).

        Letters that it is first to have are entered in `letters`. Raises Misfit.
        """
        found = getattr(value, "shape", None)
        if type(found) is not tuple:
            expected = "a matrix" if self.mark.kind == "matrix" else "an array"
            raise Misfit(self.name, expected, type(value).__name__)
        per_row, before = self.mark.per_row, len(letters)
        own = found[1:] if per_row else found
        if len(own) != len(self.extents) or (per_row and not 0 < found[0] <= LARGEST_EXTENT):
            raise self._misfit(found, letters, before)
        for extent, number in zip(self.extents, own):  # noqa: B905 - their lengths were just compared
            letter = extent.letter
            if not letter:
                fits = extent.solve(number, letters)
            elif letter in letters:
                fits = letters[letter] == number
            else:
                fits = 0 < number <= LARGEST_EXTENT or (number == 0 and self.mark.aligned)
                letters[letter] = number
            if not fits:
                raise self._misfit(found, letters, before)
        return found[0] if per_row else NO_LIMIT

    def _misfit(self, found: tuple[int, ...], letters: Mapping[str, int], before: int) -> Misfit:
        """`before` letters were known before this field."""
        known = dict(itertools.islice(letters.items(), before))
        expected = _shape_text((*["T"] * self.mark.per_row, *(extent.told(known) for extent in self.extents)))
        return Misfit(self.name, f"shape {expected}", f"shape {found}")


def _shape_text(extents: Sequence[str]) -> str:
    return f"({extents[0]},)" if len(extents) == 1 else f"({', '.join(extents)})"


class Definition(NamedTuple):
    """The fields of an operation or struct, and the letters of its shapes."""

    fields: tuple[Field, ...]
    letters: tuple[str, ...]
    """Letters that shapes fix here, in order: not those of an outer struct, nor those that integers give."""
    integers: tuple[Field, ...]
    choices: tuple[Field, ...]
    shaped: tuple[Field, ...]
    """Fields with a shape, in an order in which each extent has at most one letter that is not known before."""
    structs: tuple[tuple[Field, "Definition"], ...]
    """Nested structs, whose letters come last."""


Letters = dict[str, int]


class Sizes(NamedTuple):
    """The numbers that the letters of an operation stand for."""

    rows: int
    """Rows that each of its buffers has room for: the bound of `T`."""
    letters: Letters
    parts: dict[str, list[Letters]]
    """By the name of a tuple of structs: the letters of each, those of the operation included."""


_DEFINITIONS: dict[tuple[type, frozenset[str]], Definition] = {}


def definition_of(kind: type, outer: frozenset[str] = frozenset()) -> Definition:
    """Return the definition of an operation or struct; `outer` are the letters that the operation around it has."""
    definition = _DEFINITIONS.get((kind, outer))
    if definition is None:
        definition = _DEFINITIONS[kind, outer] = _read_definition(kind, outer)
    return definition


def _read_definition(kind: type, outer: frozenset[str]) -> Definition:
    hints = _hints(kind)
    fields = tuple(_field(field.name, hints[field.name], field.default) for field in dataclasses.fields(kind))
    integers = tuple(f for f in fields if f.mark.kind == "integer" and not f.mark.wide)
    choices = tuple(f for f in fields if f.mark.kind == "choice")
    known = set(outer).union(f.mark.letter or f.name for f in integers)
    waiting = [f for f in fields if f.mark.kind in SHAPED]
    shaped: list[Field] = []
    letters: list[str] = []
    while waiting:
        new = next(((f, found) for f in waiting if (found := _new_letters(f, known)) is not None), None)
        if new is None:
            raise TypeError(f"{kind.__name__}: no order of its fields gives each letter a value")
        waiting.remove(new[0])
        shaped.append(new[0])
        letters += new[1]
        known.update(new[1])
    structs = tuple((f, definition_of(f.struct, frozenset(known))) for f in fields if f.struct is not None)
    return Definition(fields, tuple(letters), integers, choices, tuple(shaped), structs)


def _hints(kind: type) -> dict[str, Any]:
    """Return the annotation of each field; those that a module left as text are evaluated, which takes far longer."""
    found = {field.name: field.type for field in dataclasses.fields(kind)}
    if any(isinstance(hint, str) for hint in found.values()):
        found = {name: typing.get_type_hints(kind, include_extras=True)[name] for name in found}
    return found


def _new_letters(field: Field, known: set[str]) -> list[str] | None:
    """Return the letters that a field would fix; None if it has an extent that cannot be solved yet."""
    new: list[str] = []
    for extent in field.extents:
        unknown = [name for name in extent.letters if name not in known and name not in new]
        if len(unknown) > 1 or (unknown and extent.padded):
            return None
        new += unknown
    return new


def _field(name: str, hint: Any, default: Any) -> Field:
    marks: tuple[Any, ...] = ()
    optional = False
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            marks += hint.__metadata__
            hint = hint.__origin__
        elif typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint):
            optional = True
            hint = functools.reduce(operator.or_, [a for a in typing.get_args(hint) if a is not type(None)])
        else:
            break
    mark = next((m for m in marks if isinstance(m, Mark)), None) or _mark_of_type(name, hint)
    role = next((m for m in marks if isinstance(m, Role)), INPUT)
    struct = None
    if mark.kind == "struct":
        struct = hint
    elif mark.kind == "structs":
        struct = typing.get_args(hint)[0]
    dtype = np.dtype(typing.get_args(typing.get_args(hint)[1])[0]) if mark.kind == "buffer" else None
    return Field(name, mark, role, optional, dtype, struct, tuple(map(Extent.parse, mark.shape)), default)


def _mark_of_type(name: str, hint: Any) -> Mark:
    kinds: dict[Any, Kind] = {float: "float", int: "integer", bool: "flag", Format: "format"}
    if hint in kinds:
        return Mark(kinds[hint])
    if typing.get_origin(hint) is Literal:
        return Mark("choice", choices=typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return Mark("struct")
    raise TypeError(f"{name}: a field of type {hint} needs a mark that says what it is")


def measure(operation: Any) -> Sizes:
    """Find the numbers behind the letters of an operation, whose fields are arrays or placeholders.

    Raises Misfit for a field that does not have the shape of its definition.
    """
    letters: Letters = {}
    parts: dict[str, list[Letters]] = {}
    return Sizes(_measure(operation, definition_of(type(operation)), letters, parts), letters, parts)


def _measure(value: Any, definition: Definition, letters: Letters, parts: dict[str, list[Letters]]) -> int:
    """Enter the letters of an operation or struct, and return its rows."""
    for field in definition.integers:
        _enter(field, getattr(value, field.name), letters)
    for field in definition.choices:
        word = getattr(value, field.name)
        require(word in field.mark.choices, field.name, " or ".join(field.mark.choices), word)
    room = NO_LIMIT
    for field in definition.shaped:
        member = getattr(value, field.name)
        if member is None and field.optional:
            continue
        found = field.fit(member, letters)
        if found < room:
            room = found
    for field, inner in definition.structs:
        member = getattr(value, field.name)
        if member is None and field.optional:
            continue
        members = member
        if field.mark.kind == "struct":
            members = (member,)
        else:
            require(1 <= len(member) <= field.mark.most, field.name, f"1 to {field.mark.most}", len(member))
            parts[field.name] = [dict(letters) for _ in member]
        for number, one in enumerate(members):
            own = parts[field.name][number] if field.name in parts else letters
            try:
                room = min(room, _measure(one, inner, own, {}))
            except Misfit as misfit:
                raise misfit.within(f"{field.name}[{number}]" if field.name in parts else field.name) from None
    return room


def _enter(field: Field, value: Any, letters: Letters) -> None:
    """Enter an integer as the letter that it is."""
    if not (isinstance(value, (int, np.integer)) and 0 < value <= LARGEST_EXTENT):
        raise Misfit(field.name, "an integer of at least 1", value)
    letter = field.mark.letter or field.name
    if letters.setdefault(letter, int(value)) != value:
        raise Misfit(field.name, letters[letter], value)
