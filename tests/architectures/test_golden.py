"""The reference kernels against the logits that transformers gave for small random checkpoints (tests/golden)."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.architectures import FAMILIES, model_spec
from edgemoe.model.build import build_graph
from edgemoe.model.rope import rope_tables
from tests.architectures.harness import Reference, load_checkpoint, load_reference, relative_error
from tests.golden.cases import CASES, ENCODER_CASES, ROPE_CASES, ROPE_POSITIONS, YARN
from tests.golden.covering import COVERING, GOLDEN, covering, covering_models, forms
from tests.support.every_case import every_case

TOLERANCE = 1e-4


def test_the_golden_data_covers_every_family_and_more_experts_than_a_machine_word_has_bits():
    assert {case.model_type for case in [*CASES.values(), *ENCODER_CASES.values()]} == FAMILIES.keys()
    specs = [load_reference(GOLDEN / name).spec for name in ("qwen3_moe", "mixtral")]
    assert max(spec.most_experts for spec in specs) > 64


def test_the_models_that_all_is_tried_on_have_every_form_of_every_operation():
    graphs = {name: build_graph(model_spec(load_checkpoint(GOLDEN / name)[0])) for name in CASES}
    every = set().union(*map(forms, graphs.values()))
    covered = set().union(*(forms(graphs[name]) for name in COVERING))
    assert every == covered, f"let COVERING be {' '.join(covering(graphs))}"
    attention = [dict(form[1:]) for form in every if form[0] == "Attention"]
    assert len({(form["window"], form["sinks"]) for form in attention}) == 4  # without or with each of them


@pytest.mark.slow
@pytest.mark.parametrize("name", covering_models())
def test_logits_agree_with_the_golden_ones(name):
    golden = np.load(GOLDEN / name / "golden.npz")
    model = load_reference(GOLDEN / name)
    assert relative_error(model.logits(golden["ids"], golden["positions"]), golden["logits"]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", covering_models())
def test_how_a_prompt_is_cut_never_changes_a_bit(name):
    ids = np.load(GOLDEN / name / "golden.npz")["ids"][:40]
    model = load_reference(GOLDEN / name)
    np.testing.assert_array_equal(model.logits(ids, chunk_tokens=13), model.logits(ids))  # the last is alone


def test_a_wrong_weight_shows():
    """The golden comparison is not blind: one altered expert is seen."""
    golden = np.load(GOLDEN / "mixtral" / "golden.npz")
    config, tensors = load_checkpoint(GOLDEN / "mixtral")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    model = Reference(config, tensors | {name: tensors[name] * 1.05})
    assert relative_error(model.logits(golden["ids"], golden["positions"]), golden["logits"]) > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"n_group": 1, "topk_group": 1},
        {"topk_group": 3},
        {"routed_scaling_factor": 1.0},
        {"norm_topk_prob": False},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
        {},
    ],
    ids=str,
)
def test_each_number_of_a_router_shows(change):
    """Nor is it blind to the numbers of a config; without a change, to the bias for the choice."""
    golden = np.load(GOLDEN / "glm4_moe" / "golden.npz")
    config, tensors = load_checkpoint(GOLDEN / "glm4_moe")
    if not change:
        tensors = {n: v * 0 if n.endswith("e_score_correction_bias") else v for n, v in tensors.items()}
    model = Reference(config | change, tensors)
    assert relative_error(model.logits(golden["ids"], golden["positions"]), golden["logits"]) > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 36},
        {"sliding_window": 38},
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        {"swiglu_limit": 0.7},
        {"swiglu_alpha": 1.4},
        {"rope_parameters": YARN | {"rope_theta": 150_000.0}},
        "self_attn.sinks",
        "mlp.router.bias",
        "mlp.experts.gate_up_proj_bias",
        "mlp.experts.down_proj_bias",
        "self_attn.o_proj.bias",
    ],
    ids=str,
)
def test_each_part_of_gpt_oss_shows(change):
    """Every number of its config, and every vector, which a name stands for, changes the logits."""
    golden = np.load(GOLDEN / "gpt_oss" / "golden.npz")
    config, tensors = load_checkpoint(GOLDEN / "gpt_oss")
    if isinstance(change, str):
        tensors = {name: values * 0.5 if name.endswith(change) else values for name, values in tensors.items()}
    else:
        config = config | change
    model = Reference(config, tensors)
    assert relative_error(model.logits(golden["ids"], golden["positions"]), golden["logits"]) > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama4", {"attention_chunk_size": 36}),
        ("llama4", {"attn_scale": 0.2}),
        ("llama4", {"floor_scale": 17}),
        ("llama4", {"use_qk_norm": False}),
        ("llama4", {"no_rope_layers": [1, 1, 1, 1]}),
        ("llama4", {"layer_types": ["full_attention"] * 4}),
        ("dbrx", {"attn_config": {"clip_qkv": 0.8, "kv_n_heads": 2, "rope_theta": 5e5}}),
        ("dbrx_plain", {"ffn_config": {"ffn_hidden_size": 33, "moe_num_experts": 5, "moe_top_k": 2}}),
        ("phimoe", {"router_jitter_noise": 0.2}),
        ("phimoe", {"original_max_position_embeddings": 511}),
        ("phimoe", "norm.bias"),
        ("phimoe", "lm_head.bias"),
        ("phimoe_long", {"original_max_position_embeddings": 512}),
        ("phimoe_long", {"router_jitter_noise": 0.5}),
        ("grok_2", {"attn_logit_softcapping": 3.0}),
        ("grok_2", {"attn_temperature_len": 24}),
        ("grok_2", {"attn_temperature_len": -1}),
        ("grok_2", {"final_logit_softcapping": 2.1}),
        ("grok_2", {"router_logit_softcapping": 3.0}),
        ("grok_2", "mlp.down_proj.weight"),
    ],
    ids=str,
)
def test_each_part_of_the_seeds_families_shows(name, change):
    golden = np.load(GOLDEN / name / "golden.npz")
    config, tensors = load_checkpoint(GOLDEN / name)
    if isinstance(change, str):
        tensors = {name: values * 0.5 if name.endswith(change) else values for name, values in tensors.items()}
    elif "original_max_position_embeddings" in change:
        form = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        config = config | change | {form: config[form] | change}
    elif "text_config" in config:
        config = config | {"text_config": config["text_config"] | change}
    else:
        config = config | change
    model = Reference(config, tensors)
    assert relative_error(model.logits(golden["ids"], golden["positions"]), golden["logits"]) > 10 * TOLERANCE


@every_case("name", ROPE_CASES)
def test_rotary_tables_agree_with_the_golden_ones(name):
    from tests.architectures.published import LLAMA_31_8B

    head_dim, parameters = ROPE_CASES[name]
    config = LLAMA_31_8B | {"rope_scaling": None, "rope_theta": None, "max_position_embeddings": 8192}
    spec = model_spec(config | {"rope_parameters": parameters, "head_dim": head_dim}).layers[0].blocks[0].body.rope
    cosine, sine = rope_tables(spec, ROPE_POSITIONS[-1] + 1)
    golden_cosine, golden_sine = np.load(GOLDEN / "rope.npz")[name]
    # A frequency may differ by its last bit, which grows with the position.
    allowed = 1e-6 + 2e-7 * np.array(ROPE_POSITIONS)[:, None]
    assert (np.abs(cosine[list(ROPE_POSITIONS)] - golden_cosine) < allowed).all()
    assert (np.abs(sine[list(ROPE_POSITIONS)] - golden_sine) < allowed).all()
