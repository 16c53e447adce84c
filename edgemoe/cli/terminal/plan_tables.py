"""A plan as tables for people."""

from __future__ import annotations

from edgemoe.bench.hit_rates import HitRates
from edgemoe.bench.plan import BASE_PAYS_AT, POSITION, BudgetForecast, dense_parts
from edgemoe.bench.plan_model import ModelPlan
from edgemoe.bench.speed import SpeedEstimate
from edgemoe.conversion.formats import ROW_TABLES
from edgemoe.engine.device_plan import DevicePlan
from edgemoe.sizes import format_size

Rows = list[tuple[str, str]]


def plan_tables(planned: ModelPlan) -> list[tuple[str, Rows]]:
    """Tables with their titles: the model, the budget, the speed, and other budgets."""
    tables = [
        ("the model", _model_rows(planned)),
        ("the budget", [*_budget_rows(planned.forecast), *_base_rows(planned)]),
        (f"a decoded token, {POSITION} tokens into a conversation (estimates)", _speed_rows(planned)),
    ]
    if planned.device is not None:
        tables.insert(2, ("the device", _device_rows(planned.device)))
    if planned.others:
        tables.append(("other budgets", [_other_row(other) for other in planned.others]))
    return tables


def _model_rows(planned: ModelPlan) -> Rows:
    source, store = planned.source, planned.source.store
    memory, work = planned.forecast.memory, planned.planner.work
    rows = [("source", f"{source.name}, known from {source.known_from}")]
    as_what = "as a store" if store.manifest.records.places is None else "in the file"
    rows.append(("on disk", f"{format_size(store.manifest.total_bytes)} {as_what}"))
    for name, (formats, size) in dense_parts(store.manifest).items():
        by_rows = name == ROW_TABLES or (name == "embedding" and not memory.embedding_resident)
        where = "on disk, read row by row" if by_rows else "in memory"
        rows.append((f"{where}: {name}", f"{format_size(size)}, {formats}"))
    if memory.total_experts:
        layers = f"{work.experts_per_token} per token in each of {work.moe_layers} layers"
        what = "" if store.neurons is None else f"{store.neurons.count} neurons in pages: "
        rows.append(("experts", f"{what}{memory.total_experts} of {format_size(memory.slot_bytes)}, {layers}"))
    whole = planned.planner.whole_layers
    if whole:
        rows.append(("soft gates", f"a token reads all experts of {whole} layer{'s' * (whole > 1)}"))
    return rows


def _budget_rows(forecast: BudgetForecast) -> Rows:
    memory = forecast.memory
    rows = [
        ("budget", format_size(memory.budget_bytes)),
        ("floor", f"{format_size(memory.floor_bytes)}: the smallest budget for this model"),
        (
            "interpreter",
            f"{format_size(memory.interpreter_bytes)} (measured in this process; a run may need more or less)",
        ),
        ("dense weights", format_size(memory.dense_bytes)),
        (
            "workspace",
            f"{format_size(memory.workspace_bytes)}, prompts in chunks of {memory.chunk_tokens} tokens",
        ),
        (
            "keys and values",
            f"{format_size(memory.kv_cache_bytes)}, {memory.kv_format}, {memory.context_length} tokens",
        ),
    ]
    for plan in memory.windows:
        kept, whole = format_size(plan.kept_bytes), format_size(plan.whole_bytes)
        rows.append((f"of that, windows of {plan.window}", f"{kept}; their whole context would take {whole}"))
    if memory.input_bytes:
        size = format_size(memory.input_bytes)
        rows.append(("of inputs", f"{size} of keys and values, which the encoder writes once"))
    if memory.fixed_state_bytes:
        size = format_size(memory.fixed_state_bytes)
        rows.append(("fixed state", f"{size}, with {memory.snapshots} snapshots to go back to"))
    if memory.draft_model_bytes:
        rows.append(("draft model", f"{format_size(memory.draft_model_bytes)}, all of it in memory"))
    if memory.total_experts:
        size = format_size(memory.experts_bytes)
        rows.append(("experts", f"{size}: {_slots(forecast)}"))
    return rows


def _device_rows(device: DevicePlan) -> Rows:
    """Rows about the device; its weights are in memory too."""
    budget = "the memory's: it has none of its own" if device.budget_bytes is None else format_size(device.budget_bytes)
    held = format_size(device.slots_bytes)
    slots = f"{device.slots} of {device.slot_experts} experts, {held}: those that are used most, if trials find it pays"
    larger = f", {device.without_room} more with a larger budget" if device.without_room else ""
    rows = [
        ("device", device.name),
        ("its budget", budget),
        ("weights", f"{format_size(device.weight_bytes)}, which are in memory too"),
        ("copies of state", f"{format_size(device.state_bytes)}: keys and values, fixed state, slots of experts"),
        ("activations", f"at most {format_size(device.activation_bytes)}"),
        *([("device slots", slots)] if device.slot_experts else []),
        ("operations", f"{device.operations} of the {device.total_operations} of a token{larger}"),
    ]
    if device.staging_bytes:
        passing = f"the experts pass through {format_size(device.staging_bytes)} of it where that is found to pay"
        rows.append(("long prompts", passing))
    return rows


def _base_rows(planned: ModelPlan) -> Rows:
    """From which budget on bases stand in for missed experts, by recorded routing of other models."""
    pays = planned.planner.base_pays_bytes(planned.forecast.memory)
    if pays is None:
        return []
    return [
        ("--on-miss base", f"pays from about {format_size(pays)} on, with slots for {BASE_PAYS_AT:.0%} of the experts")
    ]


def _speed_rows(planned: ModelPlan) -> Rows:
    forecast, work = planned.forecast, planned.planner.work
    earlier = ", ".join(
        f"plus {size / 1e3:.1f} kB for each {f'of the last {window} tokens' if window else 'earlier token'}"
        for window, size in planned.planner.traffic.kv_bytes
    )
    rows = [
        ("from memory", f"{work.bytes_per_token / 1e6:.1f} MB, {earlier}"),
        ("memory's rate", f"{planned.memory_rate.bytes_per_s / 1e9:.2f} GB/s, {planned.memory_rate.basis}"),
        ("memory's limit", f"{forecast.limits.memory:.1f} tokens/s"),
    ]
    if planned.kernel_bytes_per_s < planned.memory_rate.bytes_per_s:
        rate = f"{planned.kernel_bytes_per_s / 1e9:.2f} GB/s of experts in these formats, less than the memory"
        rows.append(("kernels' rate", rate))
    if planned.disk_rate is not None:
        rows.append(("disk's rate", f"{planned.disk_rate.bytes_per_s / 1e9:.2f} GB/s, {planned.disk_rate.basis}"))
        if not forecast.memory.all_resident:
            rows += [
                ("routing", planned.assumption.basis),
                ("expert hits", _hits(forecast.hit_rates)),
                ("from disk", f"{forecast.missed_bytes_per_token / 1e6:.1f} MB"),
                ("disk's limit", f"{forecast.limits.disk:.1f} tokens/s"),
            ]
    rows.append(("speed", f"{_speed(forecast.tokens_per_s)} tokens/s"))
    return rows


def _other_row(forecast: BudgetForecast) -> tuple[str, str]:
    what = "all experts in memory" if forecast.memory.all_resident else _slots(forecast)
    floor = ", the floor" if forecast.memory.budget_bytes == forecast.memory.floor_bytes else ""
    return format_size(forecast.memory.budget_bytes) + floor, f"{what}, {_speed(forecast.tokens_per_s)} tokens/s"


def _slots(forecast: BudgetForecast) -> str:
    memory = forecast.memory
    if memory.all_resident:
        return f"slots for all {memory.total_experts}"
    return f"{memory.slots} slots for {memory.total_experts} ({memory.slots / memory.total_experts:.0%})"


def _hits(rates: HitRates) -> str:
    if rates.low == rates.high:
        return f"{rates.likely:.1%}"
    return f"{rates.likely:.1%} ({rates.low:.1%} to {rates.high:.1%})"


def _speed(speed: SpeedEstimate) -> str:
    low, likely, high = (
        f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in (speed.low, speed.likely, speed.high)
    )
    return f"about {likely} ({low} to {high})"
