"""Figures of an analysis, against the same computed plainly, and what they say of the observations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgemoe.analysis import likeness
from edgemoe.analysis.analyse import _rank_correlation, _signed_square, analyse
from edgemoe.analysis.report import AnalysisReport, LayerFigures, observations_of
from edgemoe.analysis.text_pass import TextPass
from edgemoe.analysis.usage import Texts, information, usage_of
from edgemoe.analysis.windows import cut_texts
from edgemoe.bench.analysis_plot import draw_analysis
from edgemoe.cli.terminal.analysis_tables import analysis_tables
from edgemoe.errors import UsageError
from edgemoe.store.reader import Store
from tests.analysis.conftest import random_windows


@pytest.fixture(scope="module")
def report(exact: Store) -> AnalysisReport:
    ids = np.random.default_rng(1).integers(1, 101, (2, 200)).astype(np.int32)
    windows, domains = cut_texts(exact, [("one", ids[0]), ("two", ids[1][:100])], [0])
    return analyse(exact, "tiny", windows, domains, ["one", "two"], origin="scratch")


def plain_cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def test_likeness_is_that_of_the_matrices_and_outputs(exact: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "SLICE_BYTES", 1 << 14)  # several slices
    for layer in TextPass(exact, random_windows()).layers():
        for part in layer.parts:
            rows = np.stack([layer.matrix(expert, part).reshape(-1).astype(np.float64) for expert in range(4)])
            assert np.allclose(likeness.matrix_cosines(layer, part), plain_cosines(rows), atol=1e-5)
        tokens = layer.sample(7)
        (output,) = [found for _, found in layer.outputs(tokens)]
        found = likeness.all_outputs(layer, tokens)
        assert np.allclose(found.cosines, np.mean([plain_cosines(own) for own in output], axis=0), atol=1e-5)
        assert np.allclose(found.norms, np.linalg.norm(output, axis=2), rtol=1e-5)
        assert np.allclose(found.means, output.mean(axis=0), atol=1e-5)


def test_experts_that_are_one_are_alike(exact: Store) -> None:
    for layer in TextPass(exact, random_windows()).layers():
        twins = dataclasses.replace(layer, operation=dataclasses.replace(layer.operation, slots=np.zeros(4, np.int32)))
        assert np.allclose(likeness.matrix_cosines(twins, "up"), 1, atol=1e-5)
        assert np.allclose(likeness.all_outputs(twins, layer.sample(5)).cosines, 1, atol=1e-5)
        own = likeness.neurons(twins, 8)
        assert own is not None
        assert own.best_match == pytest.approx(1, abs=1e-5)
        assert own.chance_match < 0.7


def test_the_fewest_neurons_that_make_most_of_a_sum() -> None:
    shares = np.array([[5.0, 0.5, 4.0, 0.5], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    expected = [[True, False, True, False], [True, True, True, True], [False] * 4]
    assert likeness._at_work(shares).tolist() == expected


def test_use_is_counted_by_domain_and_by_token(exact: Store) -> None:
    layer = next(TextPass(exact, random_windows(count=1, length=9)).layers())
    chosen = np.array([[0, 1], [0, 1], [0, 2], [3, 2], [3, -1], [3, 2], [2, 3], [0, 3]], np.int32)
    ids = np.array([7, 7, 7, 9, 9, 9, 8, 9], np.int32)
    domain = np.array([0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    usage = usage_of(dataclasses.replace(layer, chosen=chosen), Texts(("a", "b"), ids, domain))
    assert usage.shares.tolist() == [[3 / 6, 2 / 6, 1 / 6, 0], [1 / 9, 0, 3 / 9, 5 / 9]]
    assert usage.token_predicts == pytest.approx(6 / 7)
    assert usage.most_frequent == 0.5
    assert usage.tokens == ((7,), (), (), (9,))


def test_mutual_information() -> None:
    assert information(np.array([[5, 0], [0, 5]])) == pytest.approx(np.log(2))
    assert information(np.array([[2, 4], [3, 6]])) == pytest.approx(0, abs=1e-12)
    assert information(np.zeros((2, 2), np.int64)) == 0


def test_correlations() -> None:
    one = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    other = np.array([[10, 20, 30, 99], [1, 2, 3, 4]], np.float32)
    assert _rank_correlation(one[:1], other[:1]) == pytest.approx(1)
    assert _rank_correlation(one, other) == pytest.approx(0)
    assert _signed_square(np.arange(5.0), 3 - 2 * np.arange(5.0)) == pytest.approx(-1)
    assert _signed_square(np.ones(5), np.arange(5.0)) == 0


def test_a_report_holds_what_was_looked_at(report: AnalysisReport) -> None:
    assert report.tokens == 300
    assert [layer.layer for layer in report.layers] == [0, 1]
    for layer in report.layers:
        assert (layer.num_experts, layer.top_k, len(layer.domains)) == (4, 2, 2)
        assert set(layer.cosine) == {"gate", "up", "down", "output", "router"}
        assert abs(layer.cosine["gate"]) < 0.1
        assert all(sum(own) == pytest.approx(1) for own in layer.domains)
    assert [one.verdict for one in report.observations][2] == "confirmed"  # random weights are hardly alike


def test_windows_take_texts_in_turn(exact: Store) -> None:
    texts = [("long", np.arange(1, 91, dtype=np.int32) % 100), ("short", np.full(70, 5, np.int32))]
    windows, domains = cut_texts(exact, [*texts, ("third", np.full(140, 6, np.int32))], [0])
    assert windows.ids.shape == (4, 71)
    assert domains.tolist() == [0, 1, 2, 2]
    assert (windows.ids[:, 0] == 0).all()
    with pytest.raises(UsageError, match="at least 64 tokens, found 63 in few"):
        cut_texts(exact, [("few", np.zeros(63, np.int32))], [])


def figures(**changed: object) -> LayerFigures:
    alike = {"gate": 0.01, "up": 0.01, "down": 0.0, "output": 0.2, "router": 0.0}
    tracks = {"gate": 0.3, "up": 0.2, "down": 0.1, "output": 0.4}
    plain = LayerFigures(0, 4, 2, 0, alike, tracks, 0.3, 1.2, None, 0.0, 0.5, 0.3, [[0.25] * 4], [[]] * 4)
    return dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


def test_observations_are_confirmed_refuted_or_left_open() -> None:
    def verdicts(layers: list[LayerFigures], origin: str | None) -> list[str]:
        return [one.verdict for one in observations_of(layers, origin)]  # type: ignore[arg-type]

    assert verdicts([figures(), figures(score_and_norm=0.28)], "scratch") == ["confirmed"] * 3
    assert verdicts([figures(), figures(score_and_norm=-0.28)], None) == ["confirmed", "undecided", "undecided"]
    other = figures(router_tracks={"gate": -0.3}, score_and_norm=-0.3)
    assert verdicts([other, other], "upcycled") == ["refuted"] * 3
    assert verdicts([figures(score_and_norm=None)], "scratch") == ["confirmed", "confirmed"]


def test_an_origin_that_is_none_is_refused(exact: Store) -> None:
    windows = random_windows()
    with pytest.raises(UsageError, match="`origin`: expected upcycled or scratch, found born"):
        analyse(exact, "tiny", windows, np.zeros(3, np.int32), ["a"], origin="born")


def test_tables_name_observations_and_layers(report: AnalysisReport) -> None:
    tables = analysis_tables(report)
    assert next(title for title, _ in tables) == "tiny, means over layers"
    assert [title for title, _ in tables][-2:] == ["layer 0", "layer 1"]
    assert tables[3][1][0][0] == "confirmed"
    assert any(name == "domains" for name, _ in tables[-1][1])


@pytest.mark.slow
def test_a_picture_is_drawn(report: AnalysisReport, tmp_path: Path) -> None:
    draw_analysis(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
