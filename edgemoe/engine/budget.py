"""The memory budget: what a caller asks for in bytes, and whether the machine has as much."""

from __future__ import annotations

from edgemoe.errors import BudgetError, UsageError
from edgemoe.process import Limit, available_bytes, memory_limit
from edgemoe.sizes import format_size, parse_size

AUTO_SHARE = 0.85
"""Share of the memory now available that `auto` takes."""


def budget_of(ram: str | int | None, floor_bytes: int) -> int:
    """A budget in bytes: as it is given, as text gives it, the floor, or what `auto` (also None) takes.

    Raises UsageError for anything else.
    """
    if ram is not None and not isinstance(ram, (int, str)):
        raise UsageError(f"ram={ram!r}: expected bytes as an integer, or text such as '6GiB'.")
    if isinstance(ram, int):
        budget_bytes = ram
    elif ram is None or ram.strip().lower() == "auto":
        available = available_bytes()
        budget_bytes = max(int(available * AUTO_SHARE), min(floor_bytes, available))
    elif ram.strip().lower() == "floor":
        budget_bytes = floor_bytes
    else:
        budget_bytes = parse_size(ram)
    if budget_bytes <= 0:
        raise UsageError(f"A memory budget of {ram} cannot be met.", "Give a size such as 512MiB, or floor, or auto.")
    return budget_bytes


def has_ample_room(ram: str | int | None, held_bytes: int) -> bool:
    """Whether a budget is large enough to read dense weights before it is planned.

    `held_bytes` are those of these weights and the interpreter. Budget and machine must both have twice as many. Raises
    UsageError for an invalid budget.
    """
    return min(budget_of(ram, floor_bytes=held_bytes), memory_limit().amount) >= 2 * held_bytes


def check_machine(planned_bytes: int, budget_bytes: int) -> None:
    """Raise BudgetError for a plan that takes more than the machine has, whose memory would be swapped out.

    Where a control group sets the lower limit, the system would end the process.
    """
    limit = memory_limit()
    if planned_bytes > limit.amount:
        raise BudgetError(
            f"Of a budget of {format_size(budget_bytes)} this model would take {format_size(planned_bytes)};"
            f" {_limit_told(limit)}.",
            "Choose a smaller budget (ram), or leave it out to use what is free.",
        )


def check_floor(floor_bytes: int) -> None:
    """Raise BudgetError where the least that a model needs is more than the machine has, whatever the budget.

    The error of a plan would suggest a floor that this machine cannot meet.
    """
    limit = memory_limit()
    if floor_bytes > limit.amount:
        raise BudgetError(
            f"This model needs at least {format_size(floor_bytes)} of memory; {_limit_told(limit)}.",
            "Use a smaller model, or a machine with more memory."
            if limit.group is None
            else "Raise that limit (a container has an option for it), or use a smaller model.",
        )


def _limit_told(limit: Limit) -> str:
    size = format_size(limit.amount)
    if limit.group is None:
        return f"this machine has {size} in all"
    return f"its control group {limit.group.folder} may have {size} in all"
