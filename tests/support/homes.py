"""A user whom the system does not know, as containers have them."""

import pytest


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an unknown user id without HOME: `os.path.expanduser` then changes nothing, as its manual says."""
    monkeypatch.delenv("HOME", raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
