"""Random weights: reproducible row by row, of zero mean, and such that a model of them behaves like one."""

from __future__ import annotations

import errno
import itertools
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemoe
from edgemoe.architectures import model_spec
from edgemoe.conversion.encoding import encode
from edgemoe.conversion.formats import FormatChoice
from edgemoe.conversion.records import join_record
from edgemoe.conversion.shapes import SHAPES
from edgemoe.conversion.synthetic import SyntheticSource, synthesise
from edgemoe.errors import StoreError, UsageError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import FORMATS, SUB1
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from edgemoe.store.records import ROW_BYTES
from edgemoe.store.verification import verify_store
from tests.architectures import published
from tests.support.checkpoints import folder_bytes
from tests.support.every_case import every_case
from tests.support.letters_tokenizer import write_letters_tokenizer
from tests.support.pairs import some
from tests.support.stores import store_weights

EMBEDDING = "model.embed_tokens.weight"
EXPERT = "model.layers.1.mlp.experts.5.down_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"


def numbers(rows: Rows) -> np.ndarray[Any, Any]:
    return dequantise(rows) if isinstance(rows, Blocks) else rows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise("tiny", tmp_path_factory.mktemp("synth") / "tiny")


@every_case(
    ("shape", "config"),
    [
        ("olmoe-1b-7b", published.OLMOE_1B_7B),
        ("qwen3-30b-a3b", published.QWEN3_30B_A3B),
        ("qwen3.8-flash-next", published.QWEN38_FLASH_NEXT),
        ("deepseek-v2-lite", published.DEEPSEEK_V2_LITE),
        ("glm-4.5-air", published.GLM_45_AIR),
        ("glm-4.7-flash", published.GLM_47_FLASH),
        ("lfm2-8b-a1b", published.LFM2_8B_A1B),
        ("nemotron-3-nano", published.NEMOTRON_3_NANO),
        ("gpt-oss-20b", published.GPT_OSS_20B),
        ("gpt-oss-120b", published.GPT_OSS_120B),
        ("mixtral-8x7b", published.MIXTRAL_8X7B),
        ("granite-3b-a800m", published.GRANITE_3B_A800M),
        ("switch-base-8", published.SWITCH_BASE_8),
        ("carrier-fff", published.CARRIER_FFF),
    ],
)
def test_shapes_are_those_of_the_published_models(shape: str, config: dict[str, Any]) -> None:
    assert model_spec(SHAPES[shape]) == model_spec(config)


@pytest.mark.parametrize(
    ("tensor", "experts"),
    [
        (EMBEDDING, "n3"),
        (ROUTER, "n3"),
        *(pytest.param(EXPERT, *each.values, marks=each.marks) for each in some(FORMATS)),
    ],
)
def test_rows_are_the_same_in_any_order_and_other_with_another_seed(tensor: str, experts: str) -> None:
    source = SyntheticSource("tiny", 3, FormatChoice(experts, "q4m"))
    rows = source.tensors()[tensor].shape[0]
    whole = numbers(source.read_rows(tensor, None, 0, rows))
    cuts = [*range(0, rows, 7), rows]
    pieces = [numbers(source.read_rows(tensor, None, *cut)) for cut in reversed([*itertools.pairwise(cuts)])]
    np.testing.assert_array_equal(np.concatenate(pieces[::-1]), whole)
    for other in (
        SyntheticSource("tiny", 4, FormatChoice(experts, "q4m")),
        SyntheticSource("tiny", -3, FormatChoice(experts, "q4m")),
    ):
        assert not np.array_equal(numbers(other.read_rows(tensor, None, 0, rows)), whole)


@pytest.mark.parametrize("experts", some(FORMATS))
def test_weights_have_no_mean_and_keep_the_size_of_what_they_are_given(experts: str) -> None:
    source = SyntheticSource("olmoe-1b-7b", 0, FormatChoice(experts, "q8"))
    weights = numbers(source.read_rows("model.layers.3.mlp.experts.9.gate_proj.weight", None, 0, 128))
    columns = weights.shape[1]
    assert abs(weights.mean(dtype=np.float64)) < 4 / np.sqrt(columns * weights.size)
    assert np.all(np.abs(weights.mean(axis=1, dtype=np.float64)) < 6 / columns)
    assert weights.std() == pytest.approx(columns**-0.5, rel=0.05)
    assert np.abs(np.corrcoef(weights[:64]) - np.eye(64)).max() < 0.15


def test_an_affine_groups_middle_is_zero_to_the_bit() -> None:
    blocks = SyntheticSource("tiny", 0, FormatChoice("q4m", "q8")).read_rows(EXPERT, None, 0, 64)
    assert isinstance(blocks, Blocks)
    assert blocks.scales is not None
    assert blocks.minimums is not None
    np.testing.assert_array_equal(blocks.minimums.astype(np.float64), blocks.scales.astype(np.float64) * -7.5)


@pytest.mark.slow
def test_rows_of_a_large_tensor_are_had_without_the_rest() -> None:
    source = SyntheticSource("qwen3-30b-a3b", 0, FormatChoice("q4", "q8"))
    assert source.tensors()[EMBEDDING].shape == (151936, 2048)
    tracemalloc.start()
    rows = numbers(source.read_rows(EMBEDDING, None, 151_000, 151_016))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * rows.nbytes


@pytest.mark.parametrize(
    ("experts", "dense"),
    [
        (None, None),
        ("f16", "q4m"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("q4m", "q4"), ("f16", "f16"), ("f32", "q4m"))),
    ],
)
def test_a_store_holds_just_what_was_drawn(tmp_path: Path, experts: str | None, dense: str | None) -> None:
    store = Store.open(synthesise("tiny", tmp_path / "store", experts=experts, dense=dense))
    assert verify_store(store) == []
    assert store.dense_format == (dense or "q8")
    assert store.manifest.quantisation["experts"]["formats"] == [experts or "q4"]
    source = SyntheticSource("tiny", 0, FormatChoice(experts or "q4", dense or "q8"))
    found = store_weights(store)
    drawn = numbers(source.read_rows(EXPERT, None, 0, 256))
    exact = drawn.astype(np.float16).astype(np.float32) if experts == "f16" else drawn
    np.testing.assert_array_equal(found["layers.1.experts.5.down"], exact)
    np.testing.assert_array_equal(found["layers.0.router"], numbers(source.read_rows(ROUTER, None, 0, 16)))
    assert np.all(found["layers.2.query_norm"] == 1)


def evenness(uses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return for each layer the entropy of its routing relative to uniform routing; `uses` is `(L, E)`."""
    shares = uses / uses.sum(axis=1, keepdims=True)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    relative: np.ndarray[Any, Any] = -(shares * logarithms).sum(axis=1) / np.log(uses.shape[1])
    return relative


def test_tokens_are_routed_to_all_experts_about_evenly(tiny: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 512, 600).tolist()
    with edgemoe.load(tiny, threads=1) as model:
        logits = model.logits(ids)
        uses = model.engine.expert_uses
    assert uses.shape == (4, 16)
    assert np.all(uses.sum(axis=1) == 600 * 4)
    assert np.all(uses > 0)
    assert np.all(evenness(uses) > 0.98)
    assert logits.std() == pytest.approx(1, abs=0.1)
    assert abs(logits.mean()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        "qwen3-30b-a3b",  # the deepest of them
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in (
                "olmoe-1b-7b",
                "qwen3.8-flash-next",
                "deepseek-v2-lite",
                "glm-4.5-air",
                "glm-4.7-flash",
                "lfm2-8b-a1b",
                "nemotron-3-nano",
                "gpt-oss-20b",
                "mixtral-8x7b",
                "granite-3b-a800m",
                "switch-base-8",
            )
        ),
    ],
)
def test_routing_spreads_in_the_deepest_layer_too(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow models of the real depth, for each has its own attention, and depth is what makes tokens alike."""
    narrow = {"hidden_size": 128, "vocab_size": 1024, "num_attention_heads": 4, "num_experts_per_tok": 2}
    narrow |= {"num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 32, "moe_intermediate_size": 32}
    narrow |= {"d_model": 128, "d_ff": 32, "d_kv": 32, "num_heads": 4}
    narrow |= {"mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 2, "moe_shared_expert_intermediate_size": 32}
    narrow |= {"hc_lowrank": 16, "ngram_vocab_size_base": 500, "ple_embed_dim": 128, "eos_token_id": 7}
    narrow |= {"linear_num_value_heads": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    keys = SHAPES[shape].keys()
    narrow |= {key: 8 for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in keys}
    config = {**SHAPES[shape], **{key: value for key, value in narrow.items() if key in keys}}
    monkeypatch.setattr("edgemoe.conversion.synthetic.SHAPES", {"deep": config})
    ids = np.random.default_rng(0).integers(0, 1024, 256).tolist()
    with edgemoe.load(synthesise("deep", tmp_path / "deep"), threads=1) as model:
        assert np.isfinite(model.logits(ids, ids if model.spec.encoder else None)).all()
        uses = model.engine.expert_uses
    layers = ("num_hidden_layers", "num_layers", "num_decoder_layers")
    assert len(uses) == sum(SHAPES[shape].get(name, 0) for name in layers)
    # Chance makes some of 46 layers less even than most; where half of the experts have no token it is at most 2/3.
    assert np.all(evenness(uses[list(model_spec(config).routed)]) > 0.94)


def test_token_ids_in_token_ids_out_without_a_tokenizer(tiny: Path) -> None:
    with edgemoe.load(tiny, threads=1, ram="floor") as model:
        result = model.generate([5, 6, 7], max_tokens=9)
        assert len(result.token_ids) == 9
        assert result.finish_reason == "length"
        assert result.text == ""
        for ask in (lambda: model.encode("Hi"), lambda: model.encode_chat("Hi"), lambda: model.decode([1]), model.chat):
            with pytest.raises(StoreError, match="this model has no tokenizer"):
                ask()


def test_a_tokenizer_of_another_model_makes_it_another_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a model with a tokenizer\.json"):
        SyntheticSource("tiny", 0, FormatChoice(), tokenizer=tmp_path)
    write_letters_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # of other weights
    source = SyntheticSource("tiny", 0, FormatChoice(), tokenizer=tmp_path)
    assert source.side_files() == {
        name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")
    }
    assert source.fingerprint != SyntheticSource("tiny", 0, FormatChoice()).fingerprint


def test_layers_of_two_stacks_are_not_cut() -> None:
    with pytest.raises(
        UsageError, match=r"`layers=3`: expected 2 to 12, a multiple of 2, of each side of switch-base-8"
    ):
        SyntheticSource("switch-base-8", 0, FormatChoice("q4", "q8"), 3)
    config = SyntheticSource("switch-c-2048", 0, FormatChoice("sub1", "q8"), 1).config
    experts = [layer.routed for layer in model_spec(config).layers]
    assert [(own.num_experts, own.intermediate_size) for own in experts if own] == [(2048, 6144)] * 2


@pytest.mark.slow
def test_records_of_switch_c_2048_are_22_times_smaller_than_bfloat16() -> None:
    """An expert of one layer, drawn when it is read, with all that a record and its row in the table have."""
    source = SyntheticSource("switch-c-2048", 0, FormatChoice("sub1", "q8"), 1)
    panels: dict[str, list[bytes]] = {"up": [], "down": []}
    for part, name in (("up", "wi"), ("down", "wo")):
        tensor = f"encoder.block.0.layer.1.mlp.experts.expert_5.{name}.weight"
        rows = source.tensors()[tensor].shape[0]
        for first in range(0, rows, 512):
            drawn = source.read_rows(tensor, None, first, min(first + 512, rows))
            panels[part] += encode(drawn, SUB1, tensor).panels
    record = len(join_record(panels, 2080, 6144)) + ROW_BYTES
    times = 2 * 2 * 2080 * 6144 / record
    print(f"an expert of switch-c-2048: {8 * record / (2 * 2080 * 6144):.4f} bits for a weight, {times:.2f} x")
    assert times > 22


def test_the_first_layers_are_those_of_the_whole_shape(tiny: Path, tmp_path: Path) -> None:
    part = store_spec(Store.open(synthesise("tiny", tmp_path / "part", layers=2)))
    assert part.layers == store_spec(Store.open(tiny)).layers[:2]
    assert (
        model_spec(SyntheticSource("lfm2-8b-a1b", 0, FormatChoice("q4", "q8"), 7).config).layers
        == (model_spec(SHAPES["lfm2-8b-a1b"]).layers[:7])
    )
    for layers in (0, 5):
        with pytest.raises(UsageError, match=rf"`layers={layers}`: expected 1 to 4, the layers of tiny"):
            SyntheticSource("tiny", 0, FormatChoice("q4", "q8"), layers)


def test_unknown_shapes_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'olmo': unknown shape; expected one of tiny, olmoe-1b-7b, "):
        synthesise("olmo", tmp_path / "store")
    with pytest.raises(UsageError, match="`dense`: expected one of"):
        synthesise("tiny", tmp_path / "store", dense="q7")
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_seed_in_the_way_is_refused(tiny: Path) -> None:
    before = folder_bytes(tiny)
    assert synthesise("tiny", tiny) == tiny
    with pytest.raises(UsageError, match=r"source random weights of tiny, seed 0, not random weights of tiny, seed 1"):
        synthesise("tiny", tiny, seed=1)
    assert folder_bytes(tiny) == before


def test_a_full_disk_leaves_nothing_under_the_name_and_the_rest_is_made_later(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, []

    def fail(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        synthesise("tiny", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    assert folder_bytes(synthesise("tiny", tmp_path / "store")) == folder_bytes(tiny)
