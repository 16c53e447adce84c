"""A replay as tables for people."""

from __future__ import annotations

from collections.abc import Callable

from edgemoe.bench.replay_report import ReplayReport, ReplayRow
from edgemoe.experts.policy import parse_policy
from edgemoe.sizes import format_size

Rows = list[tuple[str, str]]

HEAD_COLUMNS, BAR_COLUMNS = 20, 45
"""Fixed widths, so that output to a pipe has columns too."""


def replay_tables(report: ReplayReport) -> list[tuple[str, Rows]]:
    """Tables with their titles: the trace, hits, bytes, speeds, the curve, and last the recommendation."""
    optimum = ("optimum", lambda row: f"{row.optimum_hit_rate:.1%}")
    tables = [
        ("trace", _trace_rows(report)),
        ("hit rate, all uses", _grid(report, lambda row: f"{row.result.hit_rate:.1%}", optimum)),
    ]
    if report.routing.decode_tokens:
        tables += [
            ("hit rate, generated tokens", _grid(report, lambda row: _percent(row.result.decode_hit_rate))),
            ("MB from disk per generated token", _grid(report, lambda row: _megabytes(row))),
        ]
    if any(row.tokens_per_s is not None for row in report.rows):
        tables.append(("tokens/s (estimates)", _grid(report, lambda row: _speed(row).split()[0])))
    shown = report.recommended.result.policy
    tables.append((f"hit rate by capacity: '#' {shown}, '.' added by the optimum", _bars(report, shown)))
    tables.append(("recommendation", _choice_rows(report)))
    return tables


def _trace_rows(report: ReplayReport) -> Rows:
    shape, routing = report.shape, report.routing
    distinct = routing.distinct_per_layer
    rows = [
        ("model", f"{shape.model} ({shape.architecture})"),
        ("experts", f"{report.total_experts}, of which a token uses {report.cycle_experts}"
         f" ({100 * report.cycle_experts / report.total_experts:.1f} %)"),
        ("tokens", f"{routing.prompt_tokens} of prompts, {routing.decode_tokens} generated;"
         f" {report.accesses} uses of experts"),
        ("different experts", f"{routing.distinct_experts} used;"
         f" {sum(distinct) / len(distinct):.1f} per layer ({min(distinct)} to {max(distinct)})"),
    ]  # fmt: skip
    if routing.repeat_recall is not None:
        rows.append(
            ("repeats", f"{routing.repeat_recall:.1%} of a generated token's experts are also the previous token's")
        )
    if report.accesses_per_s is not None:
        rows.append(("replayed", f"{report.accesses_per_s / 1e6:.1f} million uses a second"))
    rows += [(policy, parse_policy(policy)[0].summary) for policy in report.policies]
    if report.rates is not None:
        rates = f"memory {report.rates.memory_bytes_per_s / 1e9:.2f} GB/s, disk"
        rows.append(("rates", f"{rates} {report.rates.disk_bytes_per_s / 1e9:.2f} GB/s; {report.rates_basis}"))
    elif routing.decode_tokens:
        rows.append(("rates", f"not known, so no speeds: {report.rates_basis}"))
    return rows


def _grid(
    report: ReplayReport,
    cell: Callable[[ReplayRow], str],
    beside: tuple[str, Callable[[ReplayRow], str]] | None = None,
) -> Rows:
    """Make a line for each capacity, a column for each policy; `beside` is one more column, equal for all policies."""
    names = [*report.policies, *([beside[0]] if beside and "belady" not in report.policies else [])]
    by_policy = [report.rows_of(policy) for policy in report.policies]
    lines: list[list[str]] = []
    for rows in zip(*by_policy, strict=True):
        lines.append([cell(row) for row in rows])
        if beside is not None and len(names) > len(report.policies):
            lines[-1].append(beside[1](rows[0]))
    widths = [max(len(name), *(len(line[column]) for line in lines)) for column, name in enumerate(names)]

    def aligned(cells: list[str]) -> str:
        return "  ".join(text.rjust(width) for text, width in zip(cells, widths, strict=True))

    return [
        ("capacity".ljust(HEAD_COLUMNS), aligned(names)),
        *zip(map(_capacity, by_policy[0]), map(aligned, lines), strict=True),
    ]


def _bars(report: ReplayReport, policy: str) -> Rows:
    rows = []
    for row in sorted(report.rows_of(policy), key=lambda row: row.result.capacity_percent):
        full, most = round(BAR_COLUMNS * row.result.hit_rate), round(BAR_COLUMNS * row.optimum_hit_rate)
        bar = "#" * full + "." * max(0, most - full)
        rows.append(
            (_capacity(row), f"|{bar.ljust(BAR_COLUMNS)}| {row.result.hit_rate:.1%} of {row.optimum_hit_rate:.1%}")
        )
    return rows


def _choice_rows(report: ReplayReport) -> Rows:
    chosen, row = report.recommendation, report.recommended
    rows = []
    if chosen is not None:
        why_capacity, why_policy = chosen.reasons
        size = format_size(chosen.budget_bytes)
        rows += [
            (
                "capacity",
                f"{chosen.capacity_percent:g} % of all experts: {chosen.slots} slots, {size} of memory for them",
            ),
            ("reason", why_capacity),
            ("policy", chosen.policy),
            ("reason", why_policy),
        ]
        if row.tokens_per_s is not None:
            rows.append(("expected speed", f"{_speed(row)} tokens/s (an estimate)"))
    else:
        rows.append(("none", "only the optimum was replayed, which no real cache can reach"))
    below = dict.fromkeys(one.result.capacity_percent for one in report.rows if one.below_cycle)
    if below:
        rows.append(
            ("note", f"{', '.join(f'{share:g} %' for share in below)}: fewer slots than the {report.cycle_experts}"
             " experts that a token uses, so lru has no hits from one token to the next")
        )  # fmt: skip
    return rows


def _capacity(row: ReplayRow) -> str:
    return f"{row.result.capacity_percent:5g} %, {format_size(row.result.budget_bytes)}".ljust(HEAD_COLUMNS)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _megabytes(row: ReplayRow) -> str:
    read = row.result.bytes_per_decode_token
    return "-" if read is None else f"{read / 1e6:.1f}"


def _speed(row: ReplayRow) -> str:
    speed = row.tokens_per_s
    return "-" if speed is None else f"{speed.likely:.1f} ({speed.low:.1f} to {speed.high:.1f})"
