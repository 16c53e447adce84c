"""Rounds: engines run alternately on the same ids, one at a time, and are compared round by round."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgemoe.bench import measure
from edgemoe.bench.measure import WARM_UP_RUNS_MAX, Contestant, Measured, Measurement, Round, Settings
from edgemoe.bench.protocol import Worker
from edgemoe.bench.rates import DiskRate
from edgemoe.bench.report import engine_report, ratio_report, roofline_report
from edgemoe.bench.roofline import ReadRate
from edgemoe.errors import UsageError
from tests.support.every_case import every_case

pytestmark = pytest.mark.usefixtures("no_rest")
SETTINGS = Settings(prompt_tokens=4, decode_tokens=6, prefill_tokens=9, repeats=3)
FAKE = [sys.executable, "-m", "tests.support.fake_worker"]


class Taken:
    """A measurement of two fake engines, of which the second takes two and a half times as long."""

    def __init__(self, folder: Path) -> None:
        self.steps: list[tuple[str, int, int]] = []
        rates = iter(range(1, 100))
        log = folder / "log"
        with ExitStack() as stack:
            one, other = (
                stack.enter_context(Worker(name, [*FAKE, str(log), *times]))
                for name, times in (("one", ("0.5", "2")), ("other", ("1.25", "5")))
            )
            self.processes = {one._process.pid: "one", other._process.pid: "other"}
            contestants = [
                Contestant("one", one),
                Contestant("other", other),
                Contestant("again", one, {"ledger": 1}, own_ids=True),
            ]
            self.measured: Measured = Measurement(
                contestants, SETTINGS, 1000, lambda: ReadRate(next(rates) * 1e9, 64), self._note
            ).take()
        self.events: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]

    def _note(self, doing: str, done: int, total: int) -> None:
        self.steps.append((doing, done, total))


@pytest.fixture(scope="module")
def no_rest() -> Iterator[None]:
    """Made-up engines have no threads that spin after a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SETTLE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Taken:
    return Taken(tmp_path_factory.mktemp("measure"))


def test_engines_take_turns_and_never_run_at_once(taken: Taken) -> None:
    kinds = [event["event"] for event in taken.events]
    assert kinds == ["begin", "end"] * (len(kinds) // 2)
    begins = taken.events[::2]
    assert [taken.processes[event["process"]] for event in begins] == ["one", "other", "one"] * 2 * 4
    assert [event["ledger"] for event in begins] == [False, False, 1] * 2 * 4
    assert len(taken.steps) == 4
    assert taken.steps[1] == ("round 1 of 3", 1, 4)


def test_turns_of_a_round_have_the_same_ids_and_rounds_have_others(taken: Taken) -> None:
    begins = taken.events[::2]
    runs = [[(e["prompt"], e["continuation"]) for e in begins[i : i + 3]] for i in range(0, len(begins), 3)]
    assert all(run[0] == run[1] for run in runs)
    assert all(run[0] != run[2] and list(map(len, run[0])) == list(map(len, run[2])) for run in runs)
    sizes = [(len(run[0][0]), len(run[0][1])) for run in runs]
    assert sizes == [(4, 6), (9, 0)] * 4
    assert len({json.dumps(run[0]) for run in runs}) == len(runs)
    ids = [token for run in runs for token in run[0][0] + run[0][1]]
    assert len(set(ids)) > len(ids) // 2
    assert 0 <= min(ids) <= max(ids) < 1000


def test_the_first_round_is_not_counted_and_ratios_are_of_rounds(taken: Taken) -> None:
    rounds = taken.measured.rounds
    assert [one.disk_rate for one in rounds] == [None] * 3
    assert taken.measured.warm_up_runs == 0
    assert [one.read_rate for one in rounds] == [ReadRate(rate * 1e9, 64) for rate in (2, 3, 4)]
    # a fake engine claims to slow down: `one` runs four times in a round, `other` twice
    assert [one.decode["one"]["continuation_s"] for one in rounds] == [10.0, 18.0, 26.0]
    assert [one.prefill["other"]["prompt_s"] for one in rounds] == [5.0, 7.5, 10.0]
    ours, theirs = (
        engine_report(name, {}, taken.measured, SETTINGS, started, 0)
        for name, started in (("one", [1.0, 2.0, 3.0]), ("other", [2.0, 2.0, 2.0]))
    )
    assert ours.decode_tokens_per_s.samples == [6 / 10, 6 / 18, 6 / 26]
    assert theirs.prefill_tokens_per_s.median == 9 / 7.5
    ratios = ratio_report(ours, theirs)
    assert ratios.decode.samples == pytest.approx([15 / 10, 25 / 18, 35 / 26])
    assert ratios.decode.median == pytest.approx(25 / 18)
    assert ratios.startup is not None
    assert ratios.startup.samples == [2.0, 1.0, 2 / 3]
    roof = roofline_report(taken.measured, ours.decode_tokens_per_s, 1e9)
    assert roof is not None
    assert roof.share.samples == pytest.approx([0.6 / 2, 6 / 18 / 3, 6 / 26 / 4])
    assert roof.read_bytes_per_s.median == 3e9
    assert 0 <= taken.measured.idle_cpu_share < 10
    assert taken.measured.others_busy_cores >= 0


def test_what_disturbs_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The running engine uses 4 of 9 seconds, one that waits 2, others 3; each run takes 2."""
    used = {"one": 0.0, "other": 0.0}

    class Busy(Worker):
        def cpu_seconds(self) -> float:
            return used[self.name]

        def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
            for name in used:
                used[name] += 4 if name == self.name else 2
            times["busy"] += 9
            times["now"] += 2
            return {}

    times = {"busy": 100.0, "now": 0.0}
    clock = SimpleNamespace(sleep=lambda seconds: None, perf_counter=lambda: times["now"], process_time=lambda: 0.0)
    monkeypatch.setattr("edgemoe.bench.measure.time", clock)
    monkeypatch.setattr("edgemoe.bench.measure._busy_seconds", lambda: times["busy"])
    with Busy("one", [*FAKE, str(tmp_path / "log"), "1", "1"]) as one, Busy("other", [*FAKE, "log", "1", "1"]) as other:
        measured = Measurement([Contestant("one", one), Contestant("other", other)], SETTINGS, 10).take()
    assert measured.idle_cpu_share == 2 / 2
    assert measured.others_busy_cores == 3 / 2


class Noted(Worker):
    """A worker that does nothing but note what it is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[tuple[int, int]] = []

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append((len(arguments["prompt"]), len(arguments["continuation"])))
        return {"run": len(self.asked)}

    def cpu_seconds(self) -> float:
        return 0.0


def test_an_engine_whose_cache_is_not_full_yet_decodes_on_alone() -> None:
    one, other = Noted("one"), Noted("other")
    contestants = [Contestant("one", one), Contestant("other", other)]
    measured = Measurement(contestants, SETTINGS, 10, is_warm=lambda answer: answer["run"] >= 5).take()
    # a whole round, then runs 3, 4 and 5 of decoding, then the rounds that count
    assert one.asked == [(4, 6), (9, 0), *[(4, 6)] * 3, *[(4, 6), (9, 0)] * 3]
    assert other.asked == [(4, 6), (9, 0)] * 4
    assert measured.warm_up_runs == 3
    assert len(measured.rounds) == 3
    never = Measurement(contestants, SETTINGS, 10, is_warm=lambda answer: False).take()
    assert never.warm_up_runs == WARM_UP_RUNS_MAX


def test_a_slow_engine_decodes_fewer_of_the_same_tokens(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker("one", [*FAKE, str(log), "1", "2"]) as one, Worker("other", [*FAKE, str(log), "1", "2"]) as other:
        contestants = [Contestant("one", one), Contestant("other", other, decode_tokens=2)]
        measured = Measurement(contestants, SETTINGS, 1000).take()
    begins = [json.loads(line) for line in log.read_text().splitlines()][::2]
    runs = [run["continuation"] for run in begins]
    for ours, theirs, our_prefill, their_prefill in zip(*[iter(runs)] * 4, strict=True):
        assert theirs == ours[:2]
        assert len(ours) == 6
        assert our_prefill == their_prefill == []
    slow = engine_report("other", {}, measured, SETTINGS, [], 0, decode_tokens=2)
    seconds = [one.decode["other"]["continuation_s"] for one in measured.rounds]
    assert slow.decode_tokens_per_s.samples == [2 / one for one in seconds]
    assert slow.major_faults_per_token is None


def test_major_faults_are_of_a_token() -> None:
    rounds = [Round(None, None, {"one": {"continuation_s": 1.0, "major_faults": count}}, {"one": {"prompt_s": 1.0}})
              for count in (0, 30)]  # fmt: skip
    report = engine_report("one", {}, Measured(rounds, 0.0, 0.0), SETTINGS, [], 0)
    assert report.major_faults_per_token == 30 / 12


def test_the_disk_is_measured_in_every_round() -> None:
    rates = iter(range(1, 100))
    one = Noted("one")
    disk_rate = lambda: DiskRate(float(next(rates)), 4096, 2, True)  # noqa: E731
    measured = Measurement([Contestant("one", one)], SETTINGS, 10, disk_rate=disk_rate).take()
    assert [taken.disk_rate.bytes_per_s for taken in measured.rounds if taken.disk_rate] == [2.0, 3.0, 4.0]


@every_case(
    ("wrong", "option"),
    [
        ({"prompt_tokens": 0}, "`prompt_tokens`"),
        ({"decode_tokens": -1}, "`decode_tokens`"),
        ({"prefill_tokens": 0}, "`prefill_tokens`"),
        ({"repeats": 0}, "`repeats`"),
        ({"repeats": 1001}, "`repeats`"),
        ({"peer_decode_tokens": 0}, "`peer_decode_tokens`"),
        ({"peer_decode_tokens": 65}, "`peer_decode_tokens`"),
        ({"room_tokens": 255}, "`room_tokens`: expected 256 or more, .* found 255"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, int], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        Settings(**wrong)


def test_positions() -> None:
    assert Settings(32, 64, 256).context_tokens == 256
    assert Settings(32, 640, 256).context_tokens == 672
    assert Settings(32, 64, 256, room_tokens=300).context_tokens == 300
    assert Settings(32, 2, 1).mean_decode_position == 32.5
