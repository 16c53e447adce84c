"""Many cases of one test: what pytest does for a test costs more than a small case costs itself."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

LONGEST_NAME = 200


def every_case(
    names: str | Sequence[str], cases: Iterable[Any], ids: Callable[[Any], object] | Sequence[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for every case, as `pytest.mark.parametrize` does, but as one test, which names all cases that fail.

    Each case has a `tmp_path` and a `monkeypatch` of its own, if the test takes them; it shares the other fixtures.
    """
    named = [names] if isinstance(names, str) else [*names]
    many = [dict(zip(named, [case] if isinstance(names, str) else case, strict=True)) for case in cases]
    labels = [*ids] if ids is not None and not callable(ids) else [_name(case.values(), ids) for case in many]
    assert many
    assert len(labels) == len(many)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def every(**fixtures: Any) -> None:
            failed: list[str] = []
            for number, (label, case) in enumerate(zip(labels, many, strict=True)):
                try:
                    with _own(fixtures, number) as own:
                        test(**own, **case)
                except Exception:
                    failed.append(label)
                    print(f"\nThe case {label}:", file=sys.stderr)
                    traceback.print_exc()
            if failed:
                pytest.fail(f"{len(failed)} of {len(many)} cases fail: {'; '.join(failed)}", pytrace=False)

        parameters = [parameter for name, parameter in signature.parameters.items() if name not in named]
        assert len(parameters) == len(signature.parameters) - len(named), f"{test.__name__} does not take {named}"
        every.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return every

    return decorate


def _name(values: Iterable[Any], shown: Callable[[Any], object] | None) -> str:
    name = ", ".join(str((shown or repr)(value)) for value in values)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


@contextlib.contextmanager
def _own(fixtures: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The fixtures of one case."""
    own = dict(fixtures)
    if "tmp_path" in own:
        folder: Path = own["tmp_path"] / str(number)
        folder.mkdir()
        own["tmp_path"] = folder
    with contextlib.ExitStack() as stack:
        if "monkeypatch" in own:
            own["monkeypatch"] = stack.enter_context(pytest.MonkeyPatch.context())
        yield own
