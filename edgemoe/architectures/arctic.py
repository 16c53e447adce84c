"""Snowflake Arctic: a dense FFN as wide as the model and experts side by side.

The experts read the layer's input, before attention, under a norm of their own. The matrices are called w1 (gate), w3
(up) and w2 (down).
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.config import LARGEST_LAYERS, LARGEST_WIDTH, ConfigReader
from edgemoe.architectures.frame import read_attention, read_experts, read_frame, read_layer_count
from edgemoe.architectures.mixtral import TENSORS as _MIXTRAL
from edgemoe.architectures.table import layer_rows
from edgemoe.model.blocks import GatedFfn, RouterSpec
from edgemoe.model.spec import Block, LayerSpec, ModelSpec

_DENSE = "dense."
TENSORS = _MIXTRAL + layer_rows(
    ("dense.ffn_norm", "residual_layernorm.weight", ("model",)),
    ("dense.ffn.gate", "residual_mlp.w1.weight", ("ffn_width", "model")),
    ("dense.ffn.up", "residual_mlp.w3.weight", ("ffn_width", "model")),
    ("dense.ffn.down", "residual_mlp.w2.weight", ("model", "ffn_width")),
    ("ffn.gate", "block_sparse_moe.mlp.w1.weight", ("ffn_width", "model")),
    ("ffn.up", "block_sparse_moe.mlp.w3.weight", ("ffn_width", "model")),
    ("ffn.down", "block_sparse_moe.mlp.w2.weight", ("model", "ffn_width")),
)
_OF_TRAINING = (
    "enable_expert_tensor_parallelism",
    "moe_eval_capacity_factor",
    "moe_min_capacity",
    "moe_token_dropping",
    "moe_train_capacity_factor",
    "use_residual",
)
"""Keys of training, and of DeepSpeed's experts, which the checkpoint's own code does not read."""


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    frame = read_frame(reader, "arctic", own_code="ArcticForCausalLM")
    reader.skip(*_OF_TRAINING)
    attention = read_attention(reader, frame, default_theta=1_000_000.0)
    router = RouterSpec(normalise=True)
    moe = read_experts(reader, width_key="intermediate_size", count_key="num_local_experts", router=router)
    count = read_layer_count(reader, moe)
    every = reader.integer("moe_layer_frequency", maximum=LARGEST_LAYERS, default=2)
    sparse = LayerSpec.of(attention, moe)
    if reader.flag("parallel_attn_mlp_res", False):
        beside = Block(GatedFfn(frame.hidden_size), _DENSE)
        sparse = LayerSpec((Block(attention), beside, Block(moe, parallel=True, early=True)))
    dense = LayerSpec.of(attention, GatedFfn(reader.integer("intermediate_size", maximum=LARGEST_WIDTH)))
    return replace(frame, layers=tuple(sparse if (number + 1) % every == 0 else dense for number in range(count)))
