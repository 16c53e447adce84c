"""Folders of the user, and what becomes of a user without a home."""

import sys
from pathlib import Path

import platformdirs
import pytest

from edgemoe import paths
from tests.support.every_case import every_case
from tests.support.homes import without_home

XDG = {"cache_folder": "XDG_CACHE_HOME", "state_folder": "XDG_STATE_HOME"}


@pytest.fixture(params=[paths.cache_folder, paths.state_folder], ids=lambda ask: ask.__name__)
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    for variable in (paths.CACHE_VARIABLE, *XDG.values()):
        monkeypatch.delenv(variable, raising=False)
    return request.param


@pytest.mark.skipif(sys.platform == "darwin", reason="elsewhere variables have other names")
def test_folders_are_those_of_the_platform(ask: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert callable(ask)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = ask()
    assert found is not None
    assert tmp_path in found.parents
    monkeypatch.setenv(XDG[ask.__name__], str(tmp_path / "elsewhere"))
    assert ask() == tmp_path / "elsewhere" / "edgemoe"


@pytest.mark.skipif(sys.platform == "darwin", reason="elsewhere homes are found otherwise")
def test_a_user_without_a_home_has_no_folders(ask: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the specification of XDG base directories has a folder of its own named, that is taken; `~` never is."""
    assert callable(ask)
    without_home(monkeypatch)
    assert ask() is None
    monkeypatch.setenv(XDG[ask.__name__], str(tmp_path))
    assert ask() == tmp_path / "edgemoe"


@pytest.mark.parametrize("answer", ["~/.cache/edgemoe", None])
def test_whatever_the_version_of_platformdirs_says_of_an_unknown_home(
    answer: str | None, ask: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 4.0 answers with the text, 4.14 raises."""
    assert callable(ask)

    def user_dir(name: str) -> str:
        if answer is None:
            raise RuntimeError("could not determine the home directory")
        return answer

    monkeypatch.setattr(platformdirs, "user_cache_dir", user_dir)
    monkeypatch.setattr(platformdirs, "user_state_dir", user_dir)
    assert ask() is None


@every_case(
    ("chosen", "found"),
    [("/x", "/x"), ("x/y", "x/y"), ("~/x", "{home}/x"), ("", None), ("~no-such-user/x", None)],
)
def test_a_variable_names_the_cache_folder(
    chosen: str, found: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(paths.CACHE_VARIABLE, chosen)
    assert paths.cache_folder() == (None if found is None else Path(found.format(home=tmp_path)))


def test_a_variable_with_a_home_that_is_not_known_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    monkeypatch.setenv(paths.CACHE_VARIABLE, "~/x")
    assert paths.cache_folder() is None
