"""Switch Transformers: T5 with experts, of which each token takes one (Fedus et al. 2021, arXiv 2101.03961).

An encoder reads the whole input, in which an expert takes a bounded number of tokens; a decoder writes. Relative
positions are numbers that are added to scores, from one table for all layers of a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgemoe.architectures import config as limits
from edgemoe.architectures.config import DAMAGED, ConfigReader
from edgemoe.architectures.table import Row, Side, rows
from edgemoe.errors import SourceError
from edgemoe.kernels.operations import RELU
from edgemoe.model.blocks import Attention, Body, CrossAttention, Moe, PlainFfn, RouterSpec
from edgemoe.model.relative import RelativeBias
from edgemoe.model.spec import EncoderSpec, LayerSpec, ModelSpec

TRAINED_POSITIONS = 512
"""The length of texts in training, where a config does not say it: relative positions have no end of their own."""


SIDES: tuple[Side, ...] = ("encoder", "decoder")


def _stack(side: Side, *lines: tuple[str, str, tuple[str, ...]]) -> Iterator[Row]:
    """Rows of the layers of one side."""
    for row in rows(*lines, internal="layers.{layer}.", source=f"{side}.block."):
        yield replace(row, side=side, as_vector=row.internal[0].endswith("relative_bias"))


def ffn_rows(side: Side, *lines: tuple[str, str, tuple[str, ...]], transposed: bool = False) -> Iterator[Row]:
    """Rows of the FFNs of one side: each the last sublayer of its layer."""
    last = 1 if side == "encoder" else 2
    for row in _stack(side, *((name, f"{{layer}}.layer.{last}.{end}", shape) for name, end, shape in lines)):
        yield replace(row, transposed=transposed)


def _layers(side: Side) -> Iterator[Row]:
    """The rows of attention, and of the norm before the FFN, of one side."""
    attention = "{layer}.layer.0."
    yield from _stack(
        side,
        ("attention_norm", f"{attention}layer_norm.weight", ("model",)),
        *(
            (name, f"{attention}SelfAttention.{name[0]}.weight", shape)
            for name, shape in (
                ("query", ("query", "model")),
                ("key", ("key_value", "model")),
                ("value", ("value", "model")),
                ("output", ("model", "attended")),
            )
        ),
        ("relative_bias", "0.layer.0.SelfAttention.relative_attention_bias.weight", ("buckets", "heads")),
    )
    yield from ffn_rows(side, ("ffn_norm", "layer_norm.weight", ("model",)))


DENSE_FFN = (
    ("ffn.up", "mlp.wi.weight", ("ffn_width", "model")),
    ("ffn.down", "mlp.wo.weight", ("model", "ffn_width")),
)
EXPERTS = (
    ("experts.{expert}.up", "mlp.experts.expert_{expert}.wi.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "mlp.experts.expert_{expert}.wo.weight", ("model", "expert_width")),
)
ROUTER = (
    ("router", "mlp.router.classifier.weight", ("experts", "model")),
    ("router_bias", "mlp.router.classifier.bias", ("experts",)),
)

BODY = (
    *rows(
        ("embedding", "shared.weight", ("vocabulary", "model")),
        ("encoder_norm", "encoder.final_layer_norm.weight", ("model",)),
        ("final_norm", "decoder.final_layer_norm.weight", ("model",)),
        ("head", "lm_head.weight", ("vocabulary", "model")),
    ),
    *_layers("encoder"),
    *_layers("decoder"),
    *_stack(
        "decoder",
        ("cross_attention_norm", "{layer}.layer.1.layer_norm.weight", ("model",)),
        *((f"cross_{name}", f"{{layer}}.layer.1.EncDecAttention.{name[0]}.weight", ("cross", "model"))
          for name in ("query", "key", "value")),
        ("cross_output", "{layer}.layer.1.EncDecAttention.o.weight", ("model", "cross")),
    ),
)  # fmt: skip
"""The rows of all but the FFNs, which other models on the body of T5 have too."""

TENSORS = (
    *BODY,
    *(row for side in SIDES for row in ffn_rows(side, *DENSE_FFN, *ROUTER, *EXPERTS)),
)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    reader.require("is_encoder_decoder", True, default=True)
    for name in ("dense_act_fn", "feed_forward_proj"):
        reader.require(name, "relu", default="relu")
    reader.require("is_gated_act", False, default=False)
    reader.require("router_dtype", "float32", default="float32")
    reader.require("router_type", "tokens_masked", default="tokens_masked")
    # The steps follow from the numbers of sparse layers; nothing is padded, so padding is never routed.
    reader.skip(
        "encoder_sparse_step", "decoder_sparse_step", "add_router_probs", "router_ignore_padding_tokens",
        "dropout_rate", "initializer_factor", "output_past", "batch_prioritized_routing",
    )  # fmt: skip
    width = reader.integer("d_ff", maximum=limits.LARGEST_WIDTH)
    router = RouterSpec(normalise=False, logit_bias=reader.flag("router_bias", False))
    experts = reader.integer("num_experts", maximum=limits.LARGEST_EXPERTS)
    moe = Moe(num_experts=experts, top_k=1, intermediate_size=width, router=router, activation=RELU)
    capacity = reader.integer("expert_capacity", maximum=limits.LARGEST_POSITIONS, default=64)
    dense = PlainFfn(width, RELU)
    encoder_count, decoder_count = read_counts(reader)
    sparse = _sparse_layers(reader, "num_sparse_encoder_layers", encoder_count)
    encoder = [replace(moe, capacity=capacity) if one else dense for one in sparse]
    sparse = _sparse_layers(reader, "num_sparse_decoder_layers", decoder_count)
    return read_body(reader, "switch_transformers", encoder, [moe if one else dense for one in sparse])


def read_counts(reader: ConfigReader) -> tuple[int, int]:
    """The numbers of the encoder's and the decoder's layers."""
    encoder = reader.integer("num_layers", "num_hidden_layers", maximum=limits.LARGEST_LAYERS)
    return encoder, reader.integer("num_decoder_layers", maximum=limits.LARGEST_LAYERS, default=encoder)


def read_body(
    reader: ConfigReader, family: str, encoder_ffns: Sequence[Body], decoder_ffns: Sequence[Body]
) -> ModelSpec:
    """A model on the body of T5 with these FFNs, one for each layer of a side. Raises SourceError."""
    hidden_size = reader.integer("d_model", "hidden_size", maximum=limits.LARGEST_WIDTH)
    heads = reader.integer("num_heads", "num_attention_heads", maximum=limits.LARGEST_WIDTH)
    head_dim = reader.integer("d_kv", maximum=limits.LARGEST_WIDTH)
    if head_dim % 2 or heads * head_dim > limits.LARGEST_WIDTH:
        raise SourceError(
            f"config.json: {heads} heads of width {head_dim}; expected an even width, and {limits.LARGEST_WIDTH} values"
            " at most.",
            DAMAGED,
        )
    relative = _read_relative_bias(reader)
    attention = Attention(heads, heads, head_dim, scale=1.0, rope=None, relative_bias=relative)
    cross = CrossAttention(heads, head_dim, scale=1.0)
    encoder, decoder = (
        _layers_of(encoder_ffns, replace(attention, causal=False)),
        _layers_of(decoder_ffns, attention, cross),
    )
    experts = max((ffn.routed.num_experts for ffn in (*encoder_ffns, *decoder_ffns) if ffn.routed), default=0)
    if (len(encoder) + len(decoder)) * experts > limits.LARGEST_TOTAL_EXPERTS:
        raise SourceError(
            f"config.json: {len(encoder) + len(decoder)} layers of {experts} experts; expected at most"
            f" {limits.LARGEST_TOTAL_EXPERTS} experts in all.",
            DAMAGED,
        )
    tied = reader.flag("tie_word_embeddings", True)
    vocab_size = reader.integer("vocab_size", maximum=limits.LARGEST_VOCABULARY)
    padding = reader.integer("pad_token_id", minimum=0, maximum=vocab_size - 1, default=0)
    start = reader.integer("decoder_start_token_id", minimum=0, maximum=vocab_size - 1, default=padding)
    return ModelSpec(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        layers=(*encoder, *decoder),
        norm_epsilon=reader.number("layer_norm_epsilon", 1e-6, maximum=1.0),
        max_positions=reader.integer("n_positions", maximum=limits.LARGEST_POSITIONS, default=TRAINED_POSITIONS),
        tied_embeddings=tied,
        logit_scale=hidden_size**-0.5 if tied else 1.0,
        encoder=EncoderSpec(len(encoder), start),
    )


def _read_relative_bias(reader: ConfigReader) -> RelativeBias:
    bias = RelativeBias(
        reader.integer("relative_attention_num_buckets", maximum=limits.LARGEST_WIDTH, default=32),
        reader.integer("relative_attention_max_distance", maximum=limits.LARGEST_WIDTH, default=128),
    )
    try:
        bias.check(causal=True)  # in an encoder half of the buckets are for later keys, so that it holds there too
    except ValueError as problem:
        raise SourceError(
            f"config.json: {problem}; expected a multiple of 4, and a distance above half of it.", DAMAGED
        ) from None
    return bias


def _sparse_layers(reader: ConfigReader, key: str, count: int) -> list[bool]:
    """Whether each layer of a stack has experts: every `step`-th, from the second on, or all.

    Where a config asks for none, `step` is the number of layers, so that the second one has experts; where it asks for
    more than there are layers, none has. So it is in transformers.
    """
    sparse = reader.integer(key, minimum=0, maximum=limits.LARGEST_LAYERS, default=3)
    step = count // sparse if sparse else count
    return [step == 1 or (step > 1 and number % step == 1) for number in range(count)]


def _layers_of(ffns: Sequence[Body], *mixers: Body) -> list[LayerSpec]:
    """Layers of the same mixers; equal layers are one object."""
    made = {ffn: LayerSpec.of(*mixers, ffn) for ffn in ffns}
    return [made[ffn] for ffn in ffns]
