"""The memory plan: what sizes mean, that the parts never exceed the budget, and what is refused."""

import dataclasses
import itertools
import mmap
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgemoe.architectures import model_spec
from edgemoe.conversion.shapes import SHAPES
from edgemoe.engine import budget
from edgemoe.engine.budget import has_ample_room
from edgemoe.engine.decoder import Decoder
from edgemoe.engine.memory import plan_memory
from edgemoe.engine.part_sizes import POSITION_OBJECT_BYTES, ModelSizes, kv_cache_bytes, workspace_bytes
from edgemoe.engine.scratch import WeightFormats, step_scratch_bytes
from edgemoe.engine.workspace import (
    Workspace,
    encoder_work_bytes,
    kept_bytes,
    rope_bytes,
    work_bytes,
    written_once_bytes,
)
from edgemoe.errors import BudgetError, UsageError
from edgemoe.experts.opening import cache_bytes
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.kernels.backend import Program
from edgemoe.kernels.formats import FORMATS, Matrix
from edgemoe.kernels.operations import Operation
from edgemoe.model.blocks import Attention, GatedFfn, Moe, RouterSpec, SharedExpert
from edgemoe.model.build import Graph, build_graph
from edgemoe.model.graph import BuildOptions, Section, weights_of
from edgemoe.model.rope import RopeSpec
from edgemoe.model.spec import LayerSpec, ModelSpec
from edgemoe.process import Limit
from edgemoe.sizes import format_size, parse_size
from edgemoe.store.layouts import packed_layout
from tests.kernels.conftest import make_backend
from tests.support.engines import with_windows
from tests.support.every_case import every_case
from tests.support.pairs import default_pairs

MIB = 1 << 20
ATTENTION = Attention(heads=8, kv_heads=2, head_dim=64, scale=0.125, rope=RopeSpec(10_000.0, 64))
SPEC = ModelSpec(
    family="test",
    vocab_size=32_000,
    hidden_size=512,
    layers=tuple(LayerSpec.of(ATTENTION, Moe(16, 2, 1024, RouterSpec(True))) for _ in range(12)),
    norm_epsilon=1e-5,
    max_positions=32_768,
    tied_embeddings=True,
)
GRAPH = build_graph(SPEC)
GRAPHS = st.sampled_from([GRAPH, build_graph(with_windows(SPEC, (64, 0)))])


def all_sections(graph: Graph) -> list[Section]:
    """The sections of a run of tokens, and those of an encoder."""
    return [section for section, _ in (*graph.kinds(), *graph.encoder_kinds())]


def weight_formats(graph: Graph, dense: str, experts: str) -> WeightFormats:
    """One format for all matrices outside experts, and one for all within."""
    steps = (step for section in all_sections(graph) for step in section.steps)
    names = {weight.name for step in steps for weight in weights_of(step.operation) if len(weight.shape) == 2}
    fmt, spec = FORMATS[experts], graph.spec
    layouts: list[ex.RecordLayouts | None] = []
    slot_bytes = 0
    for routed in (layer.routed for layer in spec.layers):
        if routed is None:
            layouts.append(None)
            continue
        layout = packed_layout(spec.hidden_size, routed.intermediate_size, fmt, fmt, gated=routed.gated)
        layouts.append(ex.RecordLayouts((layout.matrices,), np.zeros(routed.num_experts, np.uint8)))
        slot_bytes = max(slot_bytes, layout.slot_bytes)
    return WeightFormats(dict.fromkeys(names, FORMATS[dense]), layouts, slot_bytes)


SIZES = ModelSizes(
    dense_bytes=80 * MIB,
    slot_bytes=900 * 1024,
    total_experts=16 * 12,
    kv_format="f16",
    formats=weight_formats(GRAPH, "q8", "q4"),
)
UNTIED = dataclasses.replace(SIZES, embedding_bytes=30 * MIB)


class StubBackend:
    """A backend that has nothing but an appetite."""

    name, isa, threads = "stub", "-", 1
    scratch_grows_with_context = True
    device = tier = None

    def __init__(self, growth_bytes: int = 0, scratch_per_position_bytes: int = 0) -> None:
        self.growth_bytes = growth_bytes
        self._scratch_per_position_bytes = scratch_per_position_bytes

    def scratch_bytes(self, operations: Sequence[Operation]) -> int:
        attentions = [operation for operation in operations if isinstance(operation, so.Attention)]
        return max((self._attention_bytes(attention) for attention in attentions), default=0)

    def _attention_bytes(self, attention: so.Attention) -> int:
        tokens, context_length = attention.query.shape[0], attention.key_cache.shape[0] * op.PAGE_TOKENS
        return 8192 * tokens + self._scratch_per_position_bytes * context_length

    def program(self, operations: object) -> Program:
        raise AssertionError("a plan binds no operations")

    def forget_copies(self, arrays: object) -> None:
        pass

    def close(self) -> None:
        pass


BACKEND = StubBackend()


@every_case(
    ("text", "size_bytes"),
    [
        ("512MiB", 512 * MIB),
        ("6GiB", 6 << 30),
        ("6GB", 6 * 10**9),
        ("1.5g", 3 << 29),
        ("1000000", 10**6),
        (" 2 kb ", 2000),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@every_case("text", ["", "lots", "-5GiB", "5 GiBs", "1e9", "0x10", "٣GiB", "9" * 40, "1.GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@every_case(("size", "text"), [(12, "12 bytes"), (5 << 20, "5.0 MiB"), (6 << 30, "6.00 GiB"), (2048, "2 KiB")])
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(extra=st.integers(0, 3 << 30), sizes=st.sampled_from([SIZES, UNTIED]), graph=GRAPHS)
def test_parts_fill_but_never_exceed_the_budget(extra: int, sizes: ModelSizes, graph: Graph) -> None:
    floor = plan_memory(graph, sizes, BACKEND, "floor").floor_bytes
    plan = plan_memory(graph, sizes, BACKEND, floor + extra + 4 * MIB)
    assert plan.planned_bytes <= plan.budget_bytes
    assert plan.slots >= 4  # two tokens' worth of a layer
    layers, experts = len(graph.spec.layers), graph.spec.most_experts
    with_one_more = (plan.slots + 1) * plan.slot_bytes + cache_bytes(plan.slots + 1, layers, experts, BACKEND)
    assert plan.all_resident or plan.planned_bytes - plan.experts_bytes + with_one_more > plan.budget_bytes
    assert plan.context_length >= 512


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 30), st.sampled_from([SIZES, UNTIED]), GRAPHS)
def test_more_memory_never_means_less(first: int, second: int, sizes: ModelSizes, graph: Graph) -> None:
    assume(first < second)
    floor = plan_memory(graph, sizes, BACKEND, "floor").floor_bytes + 8 * MIB
    smaller, larger = (
        plan_memory(graph, sizes, BACKEND, floor + first),
        plan_memory(graph, sizes, BACKEND, floor + second),
    )
    assert smaller.embedding_resident <= larger.embedding_resident
    assert smaller.context_length <= larger.context_length
    assert smaller.all_resident <= larger.all_resident
    assert smaller.all_resident < larger.all_resident or smaller.chunk_tokens <= larger.chunk_tokens


def test_chunks_are_large_where_every_one_reads_most_experts() -> None:
    many = dataclasses.replace(SIZES, total_experts=1 << 20)
    floor = plan_memory(GRAPH, many, BACKEND, "floor").floor_bytes
    whole, streamed = (plan_memory(GRAPH, sizes, BACKEND, floor + (8 << 30)) for sizes in (SIZES, many))
    assert (whole.all_resident, whole.chunk_tokens) == (True, 512)
    assert (streamed.all_resident, streamed.chunk_tokens) == (False, 2048)
    assert streamed.context_length == whole.context_length
    assert plan_memory(GRAPH, many, BACKEND, floor + (8 << 30), context_length=600).chunk_tokens == 1024
    in_between = plan_memory(GRAPH, many, BACKEND, floor + (256 << 20))
    assert 8 < in_between.chunk_tokens < 2048
    assert in_between.workspace_bytes <= in_between.budget_bytes // 10


def test_weights_are_read_before_the_plan_only_in_a_budget_with_ample_room(monkeypatch: pytest.MonkeyPatch) -> None:
    floor = plan_memory(GRAPH, SIZES, BACKEND, "floor")
    held_bytes = floor.interpreter_bytes + floor.dense_bytes
    assert has_ample_room(3 * held_bytes, held_bytes)
    monkeypatch.setattr(budget, "memory_limit", lambda: Limit(2 * held_bytes - (64 << 20), None))
    assert not has_ample_room(3 * held_bytes, held_bytes)  # the machine would not have it
    monkeypatch.undo()
    assert not has_ample_room(held_bytes, held_bytes)
    assert not has_ample_room("floor", held_bytes)
    with pytest.raises(UsageError, match="is not a size"):
        has_ample_room("plenty", held_bytes)


def test_below_the_floor_is_refused_with_the_floor() -> None:
    floor = plan_memory(GRAPH, SIZES, BACKEND, "floor")
    with pytest.raises(BudgetError, match=r"needs at least .* MiB of memory; the budget is 100\.0 MiB.*`ram=\d+MiB`"):
        plan_memory(GRAPH, SIZES, BACKEND, "100MiB")
    assert floor.budget_bytes == floor.floor_bytes
    assert floor.slots == 4


@every_case("ram", ["0", 0, -5, "0GiB"])
def test_a_budget_of_nothing(ram: str | int) -> None:
    with pytest.raises(UsageError, match="cannot be met"):
        plan_memory(GRAPH, SIZES, BACKEND, ram)


def test_all_resident_where_it_fits_and_a_long_context_then() -> None:
    plan = plan_memory(GRAPH, SIZES, BACKEND, "2GiB")
    assert plan.all_resident
    assert plan.slots == SIZES.total_experts
    assert plan.context_length == 4096


def test_the_embedding_stays_on_disk_until_all_else_fits_beside_it() -> None:
    floor = plan_memory(GRAPH, UNTIED, BACKEND, "floor")
    assert not floor.embedding_resident
    assert floor.dense_bytes == 50 * MIB
    tied = plan_memory(GRAPH, SIZES, BACKEND, "floor")
    assert floor.floor_bytes == pytest.approx(tied.floor_bytes - 30 * MIB, abs=MIB)
    ample = plan_memory(GRAPH, UNTIED, BACKEND, "2GiB")
    assert ample.embedding_resident
    assert ample.all_resident
    assert ample.dense_bytes == 80 * MIB
    assert ample.floor_bytes == pytest.approx(floor.floor_bytes, abs=MIB)
    tight = plan_memory(GRAPH, UNTIED, BACKEND, ample.planned_bytes - 10 * MIB)
    assert tight.all_resident
    assert not tight.embedding_resident  # or experts would have no slots
    settled = plan_memory(GRAPH, UNTIED, BACKEND, tight.budget_bytes, embedding_resident=True)
    assert (settled.context_length, settled.slots) < (tight.context_length, tight.slots)
    assert settled.dense_bytes == 80 * MIB


def test_an_asked_for_context_is_kept_or_refused() -> None:
    assert plan_memory(GRAPH, SIZES, BACKEND, "2GiB", context_length=20_000).context_length == 20_000
    with pytest.raises(UsageError, match="1 to 32768"):
        plan_memory(GRAPH, SIZES, BACKEND, "2GiB", context_length=40_000)
    with pytest.raises(BudgetError):
        plan_memory(
            GRAPH, SIZES, BACKEND, plan_memory(GRAPH, SIZES, BACKEND, "floor").floor_bytes, context_length=20_000
        )


@every_case("extra", [0, MIB, 3 * MIB, 20 * MIB])
def test_a_long_context_at_the_floor_leaves_the_experts_their_slots(extra: int) -> None:
    floor = plan_memory(GRAPH, SIZES, BACKEND, "floor", context_length=20_000).floor_bytes
    plan = plan_memory(GRAPH, SIZES, BACKEND, floor + extra + MIB, context_length=20_000)
    assert plan.slots >= 4
    assert plan.planned_bytes <= plan.budget_bytes


def test_a_dense_model_needs_no_slots() -> None:
    plan = plan_memory(GRAPH, dataclasses.replace(SIZES, slot_bytes=0, total_experts=0), BACKEND, "floor")
    assert plan.slots == 0
    assert plan.all_resident


def test_what_the_backend_will_still_take_counts() -> None:
    modest = plan_memory(GRAPH, SIZES, BACKEND, "floor")
    assert plan_memory(GRAPH, SIZES, StubBackend(1 << 30), "floor").floor_bytes - modest.floor_bytes > 1000 * MIB


def test_scratch_that_grows_with_the_context_counts() -> None:
    hungry = StubBackend(scratch_per_position_bytes=1 << 16)
    floors = [plan_memory(GRAPH, SIZES, backend, "floor").floor_bytes for backend in (BACKEND, hungry)]
    assert floors[1] - floors[0] > 30 * MIB  # 512 positions
    budget = floors[1] + 100 * MIB
    modest, careful = (plan_memory(GRAPH, SIZES, backend, budget) for backend in (BACKEND, hungry))
    assert careful.planned_bytes <= budget
    assert (careful.context_length, careful.slots) < (modest.context_length, modest.slots)


def model_of(
    vocab_size: int, width: int, heads: tuple[int, int, int], *ffns: Moe | GatedFfn, windows: tuple[int, ...] = (0,)
) -> ModelSpec:
    """A model whose layers have these FFNs, and windows in turn."""
    attentions = (
        Attention(*heads, scale=0.1, rope=RopeSpec(10_000.0, heads[2]), window=window)
        for window in itertools.cycle(windows)
    )
    layers = tuple(LayerSpec.of(attention, ffn) for attention, ffn in zip(attentions, ffns, strict=False))
    return dataclasses.replace(
        SPEC, vocab_size=vocab_size, hidden_size=width, layers=layers, tied_embeddings=False, max_positions=1 << 17
    )


# The sizes of published models, each layer that differs from the others once or twice.
MODELS = {
    "mixtral-8x7b": model_of(32_000, 4096, (32, 8, 128), *[Moe(8, 2, 14_336, RouterSpec(True))] * 2),
    "qwen3-30b-a3b": model_of(151_936, 2048, (32, 4, 128), *[Moe(128, 8, 768, RouterSpec(True))] * 2, GatedFfn(6144)),
    "qwen2-57b-a14b": model_of(
        151_936, 3584, (28, 4, 128), *[Moe(64, 8, 2560, RouterSpec(False), SharedExpert(20_480, True))] * 2
    ),
    "granite-3b-a800m": model_of(
        49_155, 1536, (24, 8, 64), *[Moe(40, 8, 512, RouterSpec(True), SharedExpert(1024))] * 2
    ),
    "gpt-oss-20b": model_of(201_088, 2880, (64, 8, 64), *[Moe(32, 4, 2880, RouterSpec(True))] * 3, windows=(128, 0)),
    "llama-8b": model_of(128_256, 4096, (32, 8, 128), GatedFfn(14_336)),
    "many narrow experts beside a wide layer": model_of(
        1000, 2048, (4, 4, 64), Moe(512, 32, 8, RouterSpec(False)), GatedFfn(100_000)
    ),
    "switch-base-8": model_spec(SHAPES["switch-base-8"]),
}


def untouched(size: int) -> np.ndarray:
    """Memory that the system gives only where it is written, which here is nowhere."""
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)[:size]


def decoder_without_weights(graph: Graph, formats: WeightFormats, workspace: Workspace) -> Decoder:
    """Every matrix in the same untouched place: enough to bind operations, nothing to run."""
    named = {
        weight.name: weight
        for section in all_sections(graph)
        for step in section.steps
        for weight in weights_of(step.operation)
    }
    sizes = [
        formats.matrices[name].matrix_bytes(*weight.shape) for name, weight in named.items() if len(weight.shape) == 2
    ]
    place = untouched(max(sizes))
    weights = {
        name: np.zeros(weight.shape, np.float32)
        if len(weight.shape) == 1
        else Matrix(place[: formats.matrices[name].matrix_bytes(*weight.shape)], formats.matrices[name], *weight.shape)
        for name, weight in named.items()
    }
    arena = untouched(formats.slot_bytes).reshape(1, -1)
    return Decoder(graph, weights, workspace, arena, formats.layouts)


@pytest.mark.parametrize(
    ("name", "kind"), default_pairs([*MODELS], ["native generic", "jit", "jit 3 threads", "reference"])
)
@pytest.mark.parametrize(("chunk_tokens", "context_length"), [(8, 512), (128, 4096)])
def test_what_is_planned_holds_what_is_allocated(name: str, chunk_tokens: int, context_length: int, kind: str) -> None:
    graph = build_graph(MODELS[name], BuildOptions(cache_aware_routing=0.5))
    workspace = Workspace(graph, chunk_tokens, context_length, "q8")
    backend = make_backend(kind)
    for dense, experts in (("q8", "q4"), ("f16", "q4m"), ("f32", "f32")):
        formats = weight_formats(graph, dense, experts)
        decoder = decoder_without_weights(graph, formats, workspace)
        programs = [decoder.whole(), decoder.head, *(layer.guess for layer in decoder.layers)]
        programs.append(decoder.encode({"fetch", "guess"}))
        scratch = max(backend.scratch_bytes(operations) for operations in programs if operations)
        sizes = dataclasses.replace(SIZES, formats=formats, kv_format="q8")
        planned = workspace_bytes(graph, sizes, backend, chunk_tokens, context_length) + kv_cache_bytes(
            graph, chunk_tokens, context_length, "q8"
        )
        planned += written_once_bytes(graph, context_length, "q8")
        assert workspace.nbytes + scratch <= planned, (dense, experts)
    shared = max(work_bytes(graph, chunk_tokens), encoder_work_bytes(graph, context_length))
    kept = kept_bytes(graph, chunk_tokens, context_length) + written_once_bytes(graph, context_length, "q8")
    assert workspace.nbytes == shared + kept + kv_cache_bytes(graph, chunk_tokens, context_length, "q8")
    backend.close()


def test_tables_about_slots_are_planned_and_none_where_all_experts_are_resident() -> None:
    slots = SIZES.total_experts // 2
    whole = plan_memory(GRAPH, SIZES, BACKEND, "1TiB")
    assert whole.cache_table_bytes == 0
    part = plan_memory(GRAPH, SIZES, BACKEND, whole.planned_bytes - slots * SIZES.slot_bytes)
    assert part.cache_table_bytes == cache_bytes(part.slots, 12, 16, BACKEND) > 0
    assert part.planned_bytes <= part.budget_bytes < part.planned_bytes + SIZES.slot_bytes
    # many small experts: what is known about them takes megabytes, and the floor says so
    many = dataclasses.replace(SIZES, slot_bytes=4096, total_experts=1 << 20)
    least = plan_memory(GRAPH, many, BACKEND, "floor")
    assert least.planned_bytes <= least.floor_bytes
    more = plan_memory(GRAPH, many, BACKEND, least.floor_bytes + 64 * MIB)
    assert more.slots * 4096 < 64 * MIB - more.slots * 200
    assert more.planned_bytes <= more.budget_bytes


@pytest.mark.parametrize("sequences", [2, 8])
def test_each_sequence_costs_its_positions_and_its_logits(sequences: int) -> None:
    several = dataclasses.replace(SIZES, sequences=sequences)
    one, more = (plan_memory(GRAPH, sizes, BACKEND, "1TiB", 512, interpreter=0) for sizes in (SIZES, several))
    assert more.kv_cache_bytes == sequences * one.kv_cache_bytes - (sequences - 1) * rope_bytes(GRAPH, 512)
    others = more.workspace_bytes - one.workspace_bytes
    assert others > (sequences - 1) * (2 * 4 * SPEC.vocab_size + 512 * POSITION_OBJECT_BYTES)


@pytest.mark.parametrize("kv_format", ["f16", "q8"])
def test_only_backends_that_say_so_need_more_scratch_for_a_longer_context(kv_format: str) -> None:
    graph = build_graph(MODELS["qwen3-30b-a3b"])
    formats = weight_formats(graph, "q8", "q4")
    for kind in ("native generic", "jit", "reference"):
        backend = make_backend(kind)
        backend.scratch_grows_with_context, grows = True, backend.scratch_grows_with_context
        sizes = [step_scratch_bytes(graph, formats, backend, 16, length, kv_format) for length in (64, 1 << 15)]
        assert (sizes[1] > sizes[0]) == grows
        backend.close()


def test_a_window_costs_no_more_the_longer_the_context() -> None:
    graph = build_graph(MODELS["gpt-oss-20b"])
    formats = weight_formats(graph, "q8", "q4")
    sizes = dataclasses.replace(SIZES, formats=formats, total_experts=0, slot_bytes=0)
    lengths = (1 << 15, 1 << 17)
    plans = [plan_memory(graph, sizes, BACKEND, "1TiB", length, interpreter=0) for length in lengths]
    (short,), (long,) = (plan.windows for plan in plans)
    assert short.kept_bytes == long.kept_bytes
    position_bytes = 2 * 8 * 64 * 2  # keys and values of a layer in float16
    assert [one.whole_bytes for one in (short, long)] == [2 * length * position_bytes for length in lengths]
    tables = [rope_bytes(graph, length) for length in lengths]
    for plan, length, table in zip(plans, lengths, tables, strict=True):
        assert plan.kv_cache_bytes == length * position_bytes + short.kept_bytes + table


def test_scores_of_blocks_take_no_more_the_longer_a_run() -> None:
    """A row takes of a longer context, by itself, a word of bits for each page."""
    graph = build_graph(model_spec(SHAPES["qwen3.8-flash-next"]))
    short, long = 128, 1 << 18
    grown = [kept_bytes(graph, tokens, long) - kept_bytes(graph, tokens, short) for tokens in (512, 2048)]
    pages = (long - short) // op.PAGE_TOKENS
    assert grown[1] - grown[0] == (2048 - 512) * pages * 4


def test_larger_chunks_do_not_crowd_the_budget_through_the_pages_of_windows() -> None:
    spec = model_of(1000, 64, (64, 64, 128), *[GatedFfn(64)] * 40, windows=(64,))
    graph = build_graph(spec)
    sizes = dataclasses.replace(SIZES, formats=weight_formats(graph, "q8", "q4"), total_experts=0, slot_bytes=0)
    floor = plan_memory(graph, sizes, BACKEND, "floor", 1 << 15, interpreter=0).floor_bytes
    for more in range(0, 3000 * MIB, 150 * MIB):
        plan = plan_memory(graph, sizes, BACKEND, floor + more, 1 << 15, interpreter=0)
        assert plan.planned_bytes <= plan.budget_bytes
    assert plan.chunk_tokens > 8


def test_no_budget_decides_between_the_factors_of_longrope() -> None:
    """A context that nobody asked for has the positions of short ones, however much memory there is."""
    factors = (1.0,) * 32
    rope = RopeSpec(
        10_000.0,
        64,
        "longrope",
        {"original_max_position_embeddings": 1024.0, "short_gain": 1.0, "long_gain": 1.0},
        short_factors=factors,
        long_factors=factors,
    )
    layers = tuple(
        LayerSpec.of(dataclasses.replace(ATTENTION, rope=rope), layer.blocks[1].body) for layer in SPEC.layers
    )
    graph = build_graph(dataclasses.replace(SPEC, layers=layers))
    assert plan_memory(graph, SIZES, BACKEND, "4GiB").context_length == 1024
    assert plan_memory(graph, SIZES, BACKEND, "4GiB", 2048).context_length == 2048
    assert plan_memory(GRAPH, SIZES, BACKEND, "4GiB").context_length == 4096
