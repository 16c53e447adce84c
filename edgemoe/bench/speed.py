"""How fast a model will decode, estimated from the bytes that a token needs and the rates of a machine.

Letters, all of one layer: `K` experts that a token uses, `m` of them missing from memory, `c` seconds to compute one
(its bytes over the memory's rate, or over that of the kernels for its formats where that is lower), `d` seconds to read
one from the disk.

The model. Decoding is bound by bytes: whatever is computed takes as long as reading its weights from memory, but for
experts in formats whose kernels are slower than the memory (trellises, say: `expert_rate.py`). A layer's
routing is known only after its attention, so reads of missing experts run beside the layer's experts and its shared
expert, and beside nothing else:

    time of a layer's experts = max(K c + shared, m d + c)    if m > 0, else K c + shared

(the last expert to land is computed after it has landed). `m` differs from layer to layer and token to token; it is
modelled as binomial, each expert missing with the same chance, since the mean of such a maximum is more than the
maximum of means. All else (attention, routers, norms, head, keys and values) is added, and so is a fixed time for each
layer.

The model gives three figures:

- `high`: the lowest of the limits, the disk's, the memory's and the kernels', as if each ran at its rate all the time.
- `likely`: the formula above, with kernels at their usual share of the memory's rate.
- `low`: nothing overlaps, and kernels and disk reach less of their rates.

Source of the shares: docs/performance.md, "Kernels: share of the memory's read rate" and "Against llama.cpp".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from edgemoe.engine.traffic import TokenTraffic
from edgemoe.model.graph import Part
from edgemoe.model.spec import ModelSpec


@dataclass(frozen=True)
class Assumptions:
    """Fractions of a machine's rates that an engine reaches, and its fixed times."""

    memory_share: float
    """Fraction of the memory's read rate that kernels reach."""
    kernel_share: float
    """Fraction of their own rate, on experts that caches hold, that the experts' kernels reach."""
    disk_share: float
    """Fraction of the disk's rate for many reads at once that the few reads of one layer reach."""
    layer_s: float
    """Seconds for calls, waking of threads and bookkeeping of each layer while experts are streamed."""
    dense_layer_s: float
    """The same if all experts are in memory."""


LIKELY = Assumptions(memory_share=0.83, kernel_share=0.9, disk_share=0.92, layer_s=40e-6, dense_layer_s=15e-6)
LOW = Assumptions(memory_share=0.65, kernel_share=0.7, disk_share=0.75, layer_s=120e-6, dense_layer_s=40e-6)


@dataclass(frozen=True)
class MachineRates:
    """Rates of a machine, in bytes per second: reads of its memory with all threads, and of experts from its disk."""

    memory_bytes_per_s: float
    disk_bytes_per_s: float
    kernel_bytes_per_s: float = math.inf
    """Experts that kernels compute where memory is no limit (see `measure_experts`)."""

    def to_json(self) -> dict[str, float]:
        """Plain JSON: the rates that are known."""
        return {name: rate for name, rate in asdict(self).items() if math.isfinite(rate)}

    def expert_rate(self, assumed: Assumptions) -> float:
        """Bytes of experts in memory that are computed in a second."""
        return min(assumed.memory_share * self.memory_bytes_per_s, assumed.kernel_share * self.kernel_bytes_per_s)


@dataclass(frozen=True)
class TokenWork:
    """Work of decoding one token, on average."""

    layers: int
    moe_layers: int
    experts_per_token: int
    """Experts that a token uses in one MoE layer (on average, if layers differ)."""
    expert_bytes: float
    """Bytes read from memory to compute one routed expert."""
    record_bytes: float
    """Bytes read from the disk for one missing expert."""
    shared_bytes: float
    """Bytes of the shared experts of all layers."""
    rest_bytes: float
    """Bytes of all other weights, and of keys and values."""

    @property
    def routed(self) -> int:
        """Experts that a token uses, summed over all layers."""
        return self.moe_layers * self.experts_per_token

    @property
    def bytes_per_token(self) -> float:
        """Bytes read from memory for one token, as in `TokenTraffic.at`."""
        return self.rest_bytes + self.shared_bytes + self.routed * self.expert_bytes

    def missed_bytes(self, hit_rate: float) -> float:
        """Bytes read from the disk for one token if `hit_rate` of its experts are in memory."""
        return (1 - hit_rate) * self.routed * self.record_bytes


@dataclass(frozen=True)
class SpeedEstimate:
    """Tokens per second: `low` and `high` bound the expected speed, `likely` is the best single guess."""

    low: float
    likely: float
    high: float


def work_of_model(spec: ModelSpec, traffic: TokenTraffic, record_bytes: float, position: float) -> TokenWork:
    """The work of the token at a (mean) position. `record_bytes` is the size of one expert on disk."""
    moes = spec.routed_of_tokens.values()
    layers = len(moes) or sum("retrieved" in layer.sizes for layer in spec.layers)
    used = sum(moe.mean_top_k for moe in moes) or sum(layer.sizes.get("retrieved", 0) for layer in spec.layers)
    weights: Mapping[Part, int] = traffic.weight_bytes
    routed, shared = weights.get("experts", 0), weights.get("shared_expert", 0)
    return TokenWork(
        layers=len(spec.layers) - spec.encoder_layers,
        moe_layers=layers,
        experts_per_token=round(used / layers) if layers else 0,
        expert_bytes=routed / used if used else 0.0,
        record_bytes=record_bytes,
        shared_bytes=shared,
        rest_bytes=traffic.at(position) - routed - shared,
    )


def predict_speed(work: TokenWork, hit_rate: float, rates: MachineRates, all_resident: bool = False) -> SpeedEstimate:
    """Estimate tokens per second of decoding, past the cold start; the module's docstring describes the model.

    `hit_rate` is the share of routed experts that are in memory when a token asks for them, 0 to 1; with
    `all_resident` it does not matter.
    """
    hits = 1.0 if all_resident or not work.routed else min(1.0, max(0.0, hit_rate))
    return SpeedEstimate(
        low=1 / _apart_seconds(work, hits, rates, LOW, all_resident),
        likely=1 / token_seconds(work, hits, rates, LIKELY, all_resident),
        high=min(speed_limits(work, hits, rates).lower, _kernels_limit(work, rates)),
    )


@dataclass(frozen=True)
class SpeedLimits:
    """Tokens per second at the memory's and at the disk's rate, each as if it were the only limit and never idle."""

    memory: float
    disk: float
    """Infinite if nothing is missed."""

    @property
    def lower(self) -> float:
        """The lower limit, which binds."""
        return min(self.memory, self.disk)


def speed_limits(work: TokenWork, hit_rate: float, rates: MachineRates) -> SpeedLimits:
    """The memory's limit and the disk's."""
    missed = work.missed_bytes(hit_rate)
    return SpeedLimits(
        memory=rates.memory_bytes_per_s / work.bytes_per_token,
        disk=rates.disk_bytes_per_s / missed if missed else math.inf,
    )


def _kernels_limit(work: TokenWork, rates: MachineRates) -> float:
    """Tokens per second if experts' kernels never waited; infinite where nothing is known of them."""
    routed = work.routed * work.expert_bytes
    return rates.kernel_bytes_per_s / routed if routed else math.inf


def token_seconds(
    work: TokenWork, hit_rate: float, rates: MachineRates, assumed: Assumptions, all_resident: bool = False
) -> float:
    """The time of a token whose reads run beside its layers' experts."""
    memory = assumed.memory_share * rates.memory_bytes_per_s
    seconds = work.rest_bytes / memory + work.layers * (assumed.dense_layer_s if all_resident else assumed.layer_s)
    if not work.moe_layers:
        return seconds
    compute = work.expert_bytes / rates.expert_rate(assumed)
    read = work.record_bytes / (assumed.disk_share * rates.disk_bytes_per_s)
    beside = work.experts_per_token * compute + work.shared_bytes / work.moe_layers / memory
    layer = sum(
        chance * max(beside, missing * read + compute if missing else 0.0)
        for missing, chance in enumerate(_binomial(work.experts_per_token, 1 - hit_rate))
    )
    return seconds + work.moe_layers * layer


def step_seconds(
    work: TokenWork, experts: float, missed: float, rates: MachineRates, all_resident: bool = False
) -> float:
    """The likely time of a step of several tokens, which use `experts` different experts in a layer.

    `missed` of these come from the disk, on average. All weights are read once, so the tokens' number does not matter
    otherwise: what several rows take longer to compute than one is not in this model.
    """
    hit_rate = 1 - missed / experts if experts else 1.0
    whole, part = int(experts), experts % 1
    return sum(
        share * token_seconds(replace(work, experts_per_token=count), hit_rate, rates, LIKELY, all_resident)
        for count, share in ((whole, 1 - part), (whole + 1, part))
        if share
    )


def _apart_seconds(
    work: TokenWork, hit_rate: float, rates: MachineRates, assumed: Assumptions, all_resident: bool
) -> float:
    """The time of a token that computes nothing while it reads."""
    routed = work.routed * work.expert_bytes
    compute = (work.bytes_per_token - routed) / (assumed.memory_share * rates.memory_bytes_per_s)
    compute += routed / rates.expert_rate(assumed)
    read = work.missed_bytes(hit_rate) / (assumed.disk_share * rates.disk_bytes_per_s)
    return compute + read + work.layers * (assumed.dense_layer_s if all_resident else assumed.layer_s)


def _binomial(count: int, chance: float) -> list[float]:
    """The chance of each number of missing experts, from none to all `count`."""
    return [math.comb(count, hit) * chance**hit * (1 - chance) ** (count - hit) for hit in range(count + 1)]
