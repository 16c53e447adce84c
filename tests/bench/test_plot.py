"""Pictures of reports."""

from pathlib import Path

import pytest

from edgemoe.bench.plot import check_plot, draw_report
from edgemoe.errors import UsageError
from tests.bench.reports import made_up_report


@pytest.mark.parametrize(
    ("name", "begins", "beside"),
    [
        ("speed.png", b"\x89PNG", True),
        pytest.param("SPEED.SVG", b"<?xml", False, marks=pytest.mark.slow),
        pytest.param("speed.pdf", b"%PDF", True, marks=pytest.mark.slow),
    ],
)
def test_a_picture(tmp_path: Path, name: str, begins: bytes, beside: bool) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    check_plot(path)
    draw_report(made_up_report(beside, roofline=beside), path)
    assert path.read_bytes().startswith(begins)


def test_an_unknown_kind_of_picture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("speed.gguf", "speed"):
        with pytest.raises(UsageError, match=r"expected a picture: .*png"):
            check_plot(tmp_path / name)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgemoe.bench.plot.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="matplotlib is not installed") as told:
        check_plot(tmp_path / "speed.png")
    assert "pip install 'edgemoe[plot]'" in told.value.hint
