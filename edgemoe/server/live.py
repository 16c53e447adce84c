"""The paths of the page: what is served, and the live picture of the engine at work.

GET /edgemoe/live is a stream of events: `model` once, then `steps` with the routing of each step as it is run, `places`
with where each expert is, and `status` with counters and memory. The numbers in `steps` are those of a trace: columns
of one run are in its order, layer by layer and token by token (base64 of little-endian arrays).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from edgemoe.engine.phase import DECODE
from edgemoe.lab.trace import write_trace
from edgemoe.process import peak_rss_bytes, rss_bytes
from edgemoe.server.exchange import Exchange, event, json_response
from edgemoe.server.fields import Fields
from edgemoe.server.models import description
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service
from edgemoe.server.watch import RunSeen, StepSeen, Watch
from edgemoe.session.token_bytes import TokenBytes

INTERFACE = 1
"""The number of this interface. A page that needs a higher one tells that the server is older."""
MOST_WATCHERS = 8
FRAME_SECONDS = 0.05
STATUS_SECONDS = 1.0
ROWS_AT_ONCE = 1 << 17
"""Rows of routing in one event."""
CAPACITIES = (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
"""Sizes of the expert cache for which routing is replayed, in percent of all experts."""


async def about(exchange: Exchange) -> Response:
    """Tell the page what server this is, and what it serves."""
    service = exchange.service
    loading = service.engine.model is None
    sampling = {} if loading else asdict(service.defaults.sampling)
    return json_response({
        "interface": INTERFACE,
        "version": version("edgemoe"),
        "loading": loading,
        "model": None if loading else description(service),
        "defaults": {name: value for name, value in sampling.items() if isinstance(value, (int, float))},
    })  # fmt: skip


async def resume_stream(exchange: Exchange) -> Response:
    """Send a kept stream from the event of a number on. Raises RefusalError where it is not kept any more."""
    request = exchange.request
    given = request.query_params.get("from", "0")
    if not given.isdecimal() or len(given) > 9:
        raise RefusalError(f"from: expected the number of an event, found {given[:40]!r}.", param="from")
    return exchange.stream(exchange.service.streams.resume(request.path_params["key"], int(given)), Fields({}))


async def end_stream(exchange: Exchange) -> Response:
    """End a kept stream, and the answer with it."""
    return json_response({"ended": await exchange.service.streams.end(exchange.request.path_params["key"])})


def watch_of(service: Service) -> Watch:
    """The watch of the engine. Raises RefusalError where there is nothing to watch."""
    assert service.model is not None
    scheduler = service.engine.scheduler
    assert scheduler is not None
    if scheduler.watch.shape is None:
        raise RefusalError("this model has no routed experts.", "There is no routing to show.", 404)
    return scheduler.watch


async def live(exchange: Exchange) -> Response:
    """Send what the engine does, for as long as the client listens; first of all the steps that are kept."""
    watch = watch_of(exchange.service)
    if watch.watchers >= MOST_WATCHERS:
        raise RefusalError(f"{MOST_WATCHERS} clients watch already.", "Close one of them.", 429, retry_s=10)
    return exchange.stream(_live(exchange.service, watch), Fields({}))


async def _live(service: Service, watch: Watch) -> AsyncGenerator[bytes, None]:
    spelled = TokenBytes(service.model.tokenizer)
    seen, told, status_s = 0, b"", 0.0
    with watch.watched():
        yield event(model_facts(service, watch), "model")
        while True:
            for steps in _portions(watch.after(seen)):
                seen = steps[-1].number
                yield event([step_facts(step, spelled) for step in steps], "steps")
            places = watch.places()[watch.layers].tobytes()
            if places != told:
                told = places
                yield event({"packed": packed_places(np.frombuffer(places, np.uint8))}, "places")
            if time.monotonic() - status_s >= STATUS_SECONDS:
                status_s = time.monotonic()
                yield event(status_facts(service), "status")
            await asyncio.sleep(FRAME_SECONDS)


def _portions(steps: list[StepSeen]) -> list[list[StepSeen]]:
    """Steps in groups of about `ROWS_AT_ONCE` rows."""
    portions: list[list[StepSeen]] = []
    rows = ROWS_AT_ONCE
    for step in steps:
        if rows + step.rows > ROWS_AT_ONCE:
            portions.append([])
            rows = 0
        portions[-1].append(step)
        rows += step.rows
    return portions


def model_facts(service: Service, watch: Watch) -> dict[str, Any]:
    """The model's shape, and how its memory is shared out."""
    engine, shape = watch.engine, watch.shape
    assert shape is not None
    memory = engine.memory
    return {
        "name": service.name,
        "layers": [
            {
                "layer": layer,
                "experts": one.num_experts,
                "used": used,
                "expert_bytes": shape.expert_bytes[layer],
            }
            for layer, used in zip(watch.layers, watch.used, strict=True)
            if (one := engine.spec.layers[layer].routed) is not None
        ],
        "experts": shape.experts,
        "slots": min(memory.slots, memory.total_experts),
        "total_experts": memory.total_experts,
        "policy": engine.policy,
        "memory": {
            "budget_bytes": memory.budget_bytes,
            "planned_bytes": memory.planned_bytes,
            "parts": {
                "interpreter": memory.interpreter_bytes,
                "weights of every token": memory.dense_bytes,
                "experts": memory.experts_bytes,
                "keys and values": memory.kv_cache_bytes + memory.fixed_state_bytes + memory.input_bytes,
                "workspace": memory.workspace_bytes,
                **({"draft model": memory.draft_model_bytes} if memory.draft_model_bytes else {}),
            },
        },
    }


def step_facts(step: StepSeen, spelled: TokenBytes) -> dict[str, Any]:
    """A step as JSON."""
    return {
        "number": step.number,
        "us": round(step.seconds * 1e6),
        "parts_us": step.parts_us,
        "waits_us": step.waits_us.tolist(),
        "read_bytes": step.read_bytes,
        "runs": [_run_facts(run, spelled) for run in step.runs],
    }


def _run_facts(run: RunSeen, spelled: TokenBytes) -> dict[str, Any]:
    return {
        "spans": [
            {
                "answer": span.answer,
                "request": span.request_id,
                "phase": span.phase,
                "position": span.position,
                "step": span.step,
                "token_ids": span.token_ids,
                "texts": [spelled.text(token) for token in span.token_ids],
            }
            for span in run.spans
        ],
        "experts": _base64(run.experts, "<i2"),
        "weights": _base64(run.weights, "<f4"),
        "flags": _base64(run.flags, "u1"),
        "wrong_guesses": run.wrong_guesses,
    }


def packed_places(places: npt.NDArray[np.uint8]) -> str:
    """Places in two bits each, the first in the lowest bits of the first byte."""
    four = np.zeros((-(-len(places) // 4), 4), np.uint8)
    four.reshape(-1)[: len(places)] = places
    return _base64((four << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1).astype(np.uint8), "u1")


def status_facts(service: Service) -> dict[str, Any]:
    """Counters since the start, and the state of now."""
    scheduler = service.engine.scheduler
    assert scheduler is not None
    experts, totals = service.model.engine.statistics, scheduler.totals
    return {
        "s": time.time(),
        "rss_bytes": rss_bytes(),
        "peak_rss_bytes": peak_rss_bytes(),
        "running": service.engine.running,
        "waiting": service.engine.waiting,
        "sequences": scheduler.most_running,
        "places": [asdict(place) for place in scheduler.places()],
        "hits": experts.expert_hits,
        "misses": experts.expert_misses,
        "read_bytes": experts.disk_bytes,
        "prefetched_reads": experts.cache.prefetched_reads,
        "useful_prefetches": experts.cache.useful_prefetches,
        "guessable_uses": experts.cache.guessable_uses,
        "guessed_uses": experts.cache.guessed_uses,
        "generated_tokens": totals.generated_tokens,
        "prompt_tokens": totals.prompt_tokens,
        "cached_tokens": totals.cached_tokens,
    }


async def trace(exchange: Exchange) -> Response:
    """Send the routing that is kept as a file of `edgemoe trace`."""
    with tempfile.TemporaryDirectory() as folder:
        path = await _written(watch_of(exchange.service), Path(folder))
        name = 'attachment; filename="session.trace"'
        return Response(path.read_bytes(), 200, {"content-disposition": name}, "application/octet-stream")


async def _written(watch: Watch, folder: Path) -> Path:
    """The routing that is kept, in a file. Raises RefusalError where there is none."""
    path = folder / "session.trace"

    def write() -> int:
        rows = watch.trace()
        write_trace(path, rows)
        return len(rows)

    if not await asyncio.get_running_loop().run_in_executor(None, write):
        raise RefusalError("no routing has been seen yet.", "Ask the model something while you watch.", 409)
    return path


async def what_if(exchange: Exchange) -> Response:
    """Tell what hit rates other memory budgets would have had, by `edgemoe replay` of the routing that is kept.

    It runs in a process of its own, for a few seconds, so that its memory does not count in this one's budget. Speeds
    follow from the steps that are kept: their time without waits, and what a missed byte cost.
    """
    watch = watch_of(exchange.service)
    memory = watch.engine.memory
    total = memory.total_experts
    now = 100 * min(memory.slots, total) / total
    shares = sorted({float(share) for share in CAPACITIES if share * total >= 100} | {now})
    with tempfile.TemporaryDirectory() as folder:
        path = await _written(watch, Path(folder))
        report = await exchange.whole(_replayed(path, watch.engine.policy, shares))
    return json_response(_curve(report, watch, now))


async def _replayed(path: Path, policy: str, shares: list[float]) -> Any:
    """The report of `edgemoe replay` as JSON. Raises RefusalError where it fails."""
    result = path.with_suffix(".json")
    command = [*(["nice"] if shutil.which("nice") else []), sys.executable, "-m", "edgemoe", "replay", str(path)]
    # Rates are given so that none is measured: speeds follow from this session's steps.
    given = {
        "policy": f"{policy},belady",
        "capacity": ",".join(f"{share!r}%" for share in shares),
        "disk-rate": "1GB/s",
        "memory-rate": "1GB/s",
        "json": str(result),
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        *(word for name, value in given.items() for word in ("-" * 2 + name, value)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode:
        raise RefusalError(f"the replay failed: {errors.decode(errors='replace').strip()[:500]}", status=500)
    return json.loads(result.read_text("utf-8"))


def _curve(report: Any, watch: Watch, now: float) -> dict[str, Any]:
    """The points of the curve, with a whole memory budget for each."""
    memory = watch.engine.memory
    slots_now = min(memory.slots, memory.total_experts)
    compute_s, read_s = _measured(watch.after(0))
    points = []
    for row in report["results"]:
        if row["policy"] == "belady":
            continue
        read_bytes = row["bytes_per_decode_token"]
        speed = None if compute_s is None or read_bytes is None else _speed(compute_s, read_s, read_bytes)
        points.append({
            "capacity_percent": row["capacity_percent"],
            "slots": row["slots"],
            "budget_bytes": memory.planned_bytes + memory.slot_bytes * (row["slots"] - slots_now),
            "hit_rate": row["hit_rate"],
            "decode_hit_rate": row["decode_hit_rate"],
            "optimum_hit_rate": row["optimum_hit_rate"],
            "bytes_per_decode_token": read_bytes,
            "tokens_per_s": speed,
        })  # fmt: skip
    return {
        "routing": report["routing"],
        "policy": watch.engine.policy,
        "now_percent": now,
        "compute_ms": None if compute_s is None else 1000 * compute_s,
        "points": points,
    }


def _measured(steps: list[StepSeen]) -> tuple[float | None, float | None]:
    """Seconds of a generated token without waits for the disk, and seconds waited for each byte that was read.

    Of the steps that had one generated token alone; None where there were none, or nothing was read.
    """
    alone = [step for step in steps if _is_alone(step)]
    if not alone:
        return None, None
    waited = sum(step.parts_us.get("disk_wait", 0) for step in alone) / 1e6
    read = sum(step.read_bytes for step in alone)
    compute = (sum(step.seconds for step in alone) - waited) / len(alone)
    return compute, waited / read if read else None


def _is_alone(step: StepSeen) -> bool:
    spans = [span for run in step.runs for span in run.spans]
    return len(spans) == 1 and spans[0].phase == DECODE and len(spans[0].token_ids) == 1


def _speed(compute_s: float, read_s: float | None, read_bytes: float) -> float | None:
    """Tokens per second; None where bytes would be read and none have been, so that their cost is not known."""
    if read_bytes and read_s is None:
        return None
    return 1 / (compute_s + read_bytes * (read_s or 0.0))


def _base64(values: npt.NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode("ascii")
