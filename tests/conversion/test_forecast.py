"""The store that a conversion would make: the sizes of the one that it makes, from weights, from a config alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgemoe.conversion.forecast import CONFIG_NAME, forecast_store
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine import loaded as loaded_module
from edgemoe.engine.decoder import Decoder
from edgemoe.engine.opening import model_sizes
from edgemoe.engine.traffic import token_traffic
from edgemoe.errors import EdgemoeError, SourceError, UsageError
from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import mixture_operations as mx
from edgemoe.kernels import operations as op
from edgemoe.kernels import sinkhorn_operations as sk
from edgemoe.kernels import state_operations as so
from edgemoe.kernels import tree_operations as tr
from edgemoe.model.build import build_graph
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.golden.covering import COVERING
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.every_case import every_case
from tests.support.hub_server import Repository, hub_server, use_hub
from tests.support.mxfp4_checkpoints import write_packed_checkpoint
from tests.support.pairs import default_pairs

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
FORMATS = [(None, None), ("q8", "q4"), ("f16", "f32"), ("q4m", "q8")]


def of_config(folder: Path, destination: Path) -> str:
    """A folder that has nothing but the config of a checkpoint."""
    destination.mkdir()
    shutil.copy(folder / CONFIG_NAME, destination)
    return str(destination)


def same(made: Store, *forecasts: Store) -> None:
    """All that a memory plan and a forecast take from a store."""
    spec = store_spec(made)
    graph = build_graph(spec)

    def figures(store: Store) -> list[Any]:
        weights = [(file.name, file.bytes) for file in store.manifest.files if file.name.endswith(".safetensors")]
        sizes = [model_sizes(store, spec, kv) for kv in (None, "q8")]
        return [weights, sizes, store.layouts_of_layers, token_traffic(graph, store.manifest, "f16")]

    expected = figures(made)
    for forecast in forecasts:
        assert store_spec(forecast) == spec
        assert figures(forecast) == expected
        assert all(file.name.endswith(".safetensors") for file in forecast.manifest.files)


PAIRS = [
    *default_pairs(COVERING, FORMATS, every=5),
    *(
        pytest.param(name, formats, marks=pytest.mark.slow)
        for name in FAMILIES
        if name not in COVERING
        for formats in FORMATS
    ),
]


@pytest.mark.parametrize(("family", "formats"), PAIRS, ids=str)
def test_sizes_are_those_of_the_store_that_conversion_makes_and_bytes_of_a_token_those_of_what_runs(
    tmp_path: Path, family: str, formats: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = GOLDEN / family
    made = Store.open(convert_checkpoint(str(folder), tmp_path / "store", experts=formats[0], dense=formats[1]))
    from_weights, from_config, from_file = (
        forecast_store(source, *formats)
        for source in (str(folder), of_config(folder, tmp_path / "bare"), str(folder / CONFIG_NAME))
    )
    same(made, from_weights.store, from_config.store, from_file.store)
    assert "headers" in from_weights.known_from
    assert from_config.known_from == from_file.known_from == "config.json alone"
    kv = "q8" if formats[0] == "q8" else None
    bytes_of_a_token_are_those_of_the_operations_that_run(made, kv, monkeypatch)


def bytes_of_a_token_are_those_of_the_operations_that_run(
    made: Store, kv: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[Decoder] = []

    class KeptDecoder(Decoder):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            decoders.append(self)

    monkeypatch.setattr(loaded_module, "Decoder", KeptDecoder)
    with engine_with_slots(made.path, store_spec(made).total_experts, kv=kv) as engine:
        traffic, operations = engine.traffic, decoders[-1].whole() + decoders[-1].head
    # A convolution reads one input less than it has taps from its sequence's state.
    state = sum(4 * o.dilation * (o.taps.size - o.output.shape[1]) for o in operations if isinstance(o, so.ShortConv))
    state += sum(
        o.states[0].nbytes for o in operations if isinstance(o, (so.DeltaRule, so.SelectiveScan, so.ChannelScan))
    )
    # What becomes rows of blocks reads all tokens that its next row may need, but the one that comes.
    state += sum(4 * (o.rate * o.parts - 1) * o.inputs.shape[2] for o in operations if isinstance(o, bo.Compress))
    state += sum(o.inputs[0].nbytes for o in operations if isinstance(o, bo.StoreBlockKeys))
    # Some of a router's choices may be of no expert.
    routes = [o for o in operations if isinstance(o, (ex.LevelRoute, ex.Route, ex.TableRoute))]
    experts = [o for o in operations if isinstance(o, ex.Experts)]
    spared = sum(
        -(-weight_bytes(one) * route.passing // route.logits.shape[1])
        for route, one in zip(routes, experts, strict=True)
        if isinstance(route, ex.Route)
    )
    assert sum(traffic.weight_bytes.values()) == sum(map(weight_bytes, operations)) + state - spared
    caches = [c for o in operations if isinstance(o, so.Attention) for c in (o.key_cache, o.value_cache)]
    caches += [c for o in operations if isinstance(o, bo.CompressedAttention) for c in (o.window_cache, o.compressed)]
    caches += [o.keys for o in operations if isinstance(o, bo.ChooseBlocks)]
    assert traffic.kv_bytes_per_position == sum(
        cache.nbytes // (cache.shape[0] * op.PAGE_TOKENS) for cache in caches if cache is not None
    )


def weight_bytes(operation: op.Operation) -> int:
    """The bytes of the weights that a bound operation reads for one token."""
    if isinstance(operation, op.Embed):
        return operation.matrix.data.nbytes // operation.matrix.rows
    if isinstance(operation, (op.RmsNorm, op.LayerNorm)):
        vectors = (operation.weight, operation.bias if isinstance(operation, op.LayerNorm) else None)
        return sum(vector.nbytes for vector in vectors if vector is not None)
    if isinstance(operation, op.Mix):
        vectors = (operation.keep, operation.share, operation.shift, operation.factor)
        return sum(vector.nbytes for vector in vectors if vector is not None)
    if isinstance(operation, op.Linear):
        return sum(part.matrix.data.nbytes + (0 if part.bias is None else part.bias.nbytes) for part in operation.parts)
    if isinstance(operation, op.HeadLinear):
        return operation.matrix.data.nbytes
    if isinstance(operation, ex.Route):
        vectors = (operation.choice_bias, operation.expert_scales)
        return sum(vector.nbytes for vector in vectors if vector is not None)
    if isinstance(operation, so.ShortConv):
        return operation.taps.nbytes + (0 if operation.bias is None else operation.bias.nbytes)
    if isinstance(operation, bo.StoreBlockKeys):
        return operation.norm.nbytes
    if isinstance(operation, so.DeltaRule):
        return operation.decay_bias.nbytes + operation.rate.nbytes
    if isinstance(operation, so.SelectiveScan):
        vectors = (operation.step_bias, operation.rate, operation.skip)
        return sum(vector.nbytes for vector in vectors if vector is not None)
    if isinstance(operation, so.ChannelScan):
        return operation.rate.nbytes + operation.skip.nbytes
    if isinstance(operation, bo.Compress):
        return operation.bias.nbytes + operation.norm.nbytes
    if isinstance(operation, bo.CompressedAttention):
        return operation.sinks.nbytes if operation.sinks is not None else 0
    if isinstance(operation, ex.TableRoute):
        return operation.experts.shape[1] * operation.table.itemsize
    if isinstance(operation, sk.CollapseStreams):
        return operation.base.nbytes + operation.scale.nbytes
    if isinstance(operation, sk.BalanceStreams):
        return operation.base.nbytes + operation.scales.nbytes
    if isinstance(operation, op.GatedFfn):
        return operation.gate_up.data.nbytes + operation.down.data.nbytes
    if isinstance(operation, op.PlainFfn):
        return operation.up.data.nbytes + operation.down.data.nbytes
    if isinstance(operation, tr.TreeFfn):
        return tree_bytes(operation)
    if isinstance(operation, mx.BatchNorm):
        return operation.mean.nbytes + operation.variance.nbytes
    if isinstance(operation, so.Attention):
        vectors = (operation.sinks, operation.bias.table if operation.bias else None)
        return sum(vector.nbytes for vector in vectors if vector is not None)
    if isinstance(operation, ex.Experts):
        (layout,) = operation.layouts
        return operation.experts.shape[1] * (layout.gate_up_bytes + layout.down_bytes + layout.bias_bytes)
    return 0


def tree_bytes(tree: tr.TreeFfn) -> int:
    """The bytes of a path through each tree: its share of all nodes, and one leaf, or what all its nodes add."""
    matrices = [one.data for one in (tree.leaf_in, tree.out) if one is not None]
    of_paths = [tree.nodes.data, tree.node_bias]
    of_leaves = [*matrices, *(one for one in (tree.leaf_bias, tree.output_bias) if one is not None)]
    if not tree.leaf_width:
        of_paths, of_leaves = of_paths + of_leaves, []
    nodes, walked = (2**tree.depth - 1, tree.depth) if tree.leaf_width else (2 ** (tree.depth + 1) - 1, tree.depth + 1)
    return sum(one.nbytes * walked // nodes for one in of_paths) + sum(one.nbytes >> tree.depth for one in of_leaves)


def test_an_index_without_its_shards_is_enough(tmp_path: Path) -> None:
    for stacked in (False, True):
        folder = tmp_path / f"stacked {stacked}"
        write_checkpoint(folder, SMALL_MIXTRAL, shards=3, stacked=stacked)
        made = Store.open(convert_checkpoint(str(folder), tmp_path / f"store {stacked}"))
        (folder / "model-00002-of-00003.safetensors").unlink()
        forecast = forecast_store(str(folder))
        assert forecast.known_from == "config.json and the index of its shards"
        same(made, forecast.store)


@pytest.mark.parametrize(("removed", "known_from"), [("model-2", "the index of its shards"), ("model", "alone")])
def test_mxfp4_is_known_without_the_weights(tmp_path: Path, removed: str, known_from: str) -> None:
    config = dict(SMALL_MIXTRAL, intermediate_size=96)
    write_packed_checkpoint(tmp_path / "model", config, lambda name: ".experts." in name, apart=True)
    made = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    for path in (tmp_path / "model").glob(f"{removed}*"):
        path.unlink()
    forecast = forecast_store(str(tmp_path / "model"))
    assert forecast.known_from.endswith(known_from)
    same(made, forecast.store)


def test_names_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, SMALL_MIXTRAL, shards=3)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    index = folder / "model.safetensors.index.json"
    data: dict[str, Any] = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": data["weight_map"] | {"model.vision.weight": "x.safetensors"}}))
    with pytest.raises(SourceError, match=r"model\.vision\.weight: not expected"):
        forecast_store(str(folder))
    del data["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(data))
    with pytest.raises(SourceError, match=r"model\.norm\.weight: missing"):
        forecast_store(str(folder))
    index.write_text('{"weight_map": 3}')
    with pytest.raises(SourceError, match="expected a weight_map"):
        forecast_store(str(folder))


@every_case(
    ("change", "says"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"quantization_config": {"quant_method": "quark"}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / CONFIG_NAME).write_text(json.dumps(SMALL_MIXTRAL | change))
    with pytest.raises(SourceError, match=says):
        forecast_store(str(tmp_path))


@every_case("source", ["nowhere", "{tmp}/none", "{tmp}/model.gguf", "{tmp}"])
def test_what_is_no_source_is_told(tmp_path: Path, source: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(EdgemoeError):
        forecast_store(source.replace("{tmp}", str(tmp_path)))


def test_formats_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="`experts`"):
        forecast_store("nowhere", experts="q5")
    with pytest.raises(UsageError, match="`dense`"):
        forecast_store("nowhere", dense="int8")


def test_of_a_hub_s_checkpoint_no_weights_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "checkpoint", SMALL_MIXTRAL, shards=3)
    made = Store.open(convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store"))
    with hub_server() as server:
        files = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
        server.models["maker/tiny"] = Repository(files)
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        opener = HubRepository.small_file
        fetched: list[str] = []

        def small_file(self: HubRepository, name: str) -> Path:
            fetched.append(name)
            return opener(self, name)

        monkeypatch.setattr(HubRepository, "small_file", small_file)
        monkeypatch.setattr(HubRepository, "file", None)
        forecast = forecast_store("maker/tiny")
    same(made, forecast.store)
    assert fetched == ["config.json", "model.safetensors.index.json"]
    assert forecast.source.startswith("maker/tiny@")
