"""The fields of a request: each is taken by its name, checked, and what nobody has taken is told.

Null is the same as a missing field. A known field that cannot be honoured is refused by its name; an unknown one is
answered with a header.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from edgemoe.server.refusals import RefusalError

Value = TypeVar("Value")


class Fields:
    """The fields of one JSON object."""

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        """`where` is the place of the object in the request, such as `messages[0].`."""
        self._data = {name: value for name, value in data.items() if value is not None}
        self._taken: set[str] = set()
        self._where = where
        self.remarks: list[str] = []
        """Sentences for the client about fields that have no effect."""

    @classmethod
    def of_body(cls, body: bytes) -> Fields:
        """The fields of a request's body. Raises RefusalError where it is no JSON object."""
        try:
            data = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        except UnicodeDecodeError as error:
            raise RefusalError(
                f"the body is not UTF-8: found byte 0x{body[error.start]:02x} at {error.start}."
            ) from None
        except RecursionError:
            raise RefusalError("the body is nested too deeply.") from None
        except ValueError as error:
            raise RefusalError(f"the body is not JSON: {error}.") from None
        if not isinstance(data, dict):
            raise RefusalError(f"the body: expected a JSON object, found {_kind(data)}.")
        return cls(data)

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def wrong(self, name: str, expected: str, value: Any) -> RefusalError:
        """The refusal of a field's value."""
        found = json.dumps(value, default=str)
        shown = found if len(found) <= 80 else f"{_kind(value)} {found[:60]}..."
        return RefusalError(f"{self._where}{name}: expected {expected}, found {shown}.", param=self._where + name)

    def any(self, name: str) -> Any:
        """The value of a field, whatever it is; None where it is missing."""
        self._taken.add(name)
        return self._data.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        return self._checked(name, default, is_text, "text")

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self._checked(name, default, lambda value: isinstance(value, bool), "true or false"))

    def whole(self, name: str, least: int, most: int | None = None, default: int | None = None) -> int | None:
        """A whole number; one that is written as a float with no fraction counts."""

        def fits(value: Any) -> bool:
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            return whole and not isinstance(value, bool) and least <= value and (most is None or value <= most)

        expected = f"a whole number, {least} or more" if most is None else f"a whole number from {least} to {most}"
        value = self._checked(name, default, fits, expected)
        return None if value is None else int(value)

    def number(self, name: str) -> float | None:
        return self._checked(
            name, None, lambda value: isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
        )

    def object(self, name: str) -> Fields | None:
        """The fields of a field that is an object."""
        value = self._checked(name, None, lambda value: isinstance(value, dict), "an object")
        return None if value is None else Fields(value, f"{self._where}{name}.")

    def texts(self, name: str, most: int | None = None) -> tuple[str, ...] | None:
        """A text, or a list of texts; empty ones are left out."""
        value = self.any(name)
        if value is None:
            return None
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(map(is_text, listed)):
            raise self.wrong(name, "a text or a list of texts", value)
        if most is not None and len(listed) > most:
            raise self.wrong(name, f"at most {most} texts", value)
        return tuple(filter(None, listed))

    def require(self, name: str, expected: str) -> None:
        """Raise RefusalError where a field is missing that changes nothing, but that an interface requires."""
        if self.text(name) is None:
            place = self._where + name
            raise RefusalError(f"{place}: expected {expected}, found nothing.", "Send it.", param=place)

    def ignore(self, *names: str) -> None:
        """Accept fields that change nothing here."""
        self._taken.update(names)

    def refuse(self, name: str, why: str, harmless: Collection[Any] = ()) -> None:
        """Refuse a field that cannot be honoured, unless its value asks for nothing."""
        value = self.any(name)
        if value is None or value in ([], {}, "", False) or value in harmless:
            return
        raise RefusalError(
            f"{self._where}{name}: {why}.", "Leave it out.", param=self._where + name, code="unsupported"
        )

    def names(self) -> list[str]:
        """The names of all fields."""
        return list(self._data)

    def unknown(self) -> list[str]:
        """The names that nobody has taken."""
        return [self._where + name for name in self._data if name not in self._taken]

    def _checked(self, name: str, default: Value, fits: Callable[[Any], bool], expected: str) -> Value:
        value = self.any(name)
        if value is None:
            return default
        if not fits(value):
            raise self.wrong(name, expected, value)
        return value  # type: ignore[no-any-return]


def is_text(value: Any) -> bool:
    """Whether a value is a text of whole characters: JSON can spell halves of them."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
