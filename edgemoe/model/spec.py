"""The specification of a model as data: everything that the engine needs, independent of the checkpoint's format.

A family (`edgemoe/architectures`) makes a `ModelSpec` from a checkpoint's config; the store carries it as JSON; and
`build.py` makes the symbolic program from it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgemoe.model.blocks import BODIES, Body, RoutedExperts
from edgemoe.model.plain import ZERO_ALLOWED, from_plain, to_plain
from edgemoe.model.streams import STREAMS, Streams


@dataclass(frozen=True)
class Residual:
    """How the result of a block joins the stream, where it is not just added (`kernels.operations.Mix`).

    Each flag says whether the layer has a vector of that name, with an element for each channel or as it says.
    """

    base: Literal["stream", "normed"] = "stream"
    """The rows that the result is added to: the stream, or the normalised stream that the block reads (MiniMax-01)."""
    keep: bool = False
    """Factors of the base."""
    share: bool = False
    """Factors of the result."""
    shift: bool = False
    """Numbers that are added."""
    factor: bool = False
    """One number by which the whole stream is multiplied, once the result is part of it (Gemma 4)."""
    base_scale: float = 1.0
    """A factor of the base that is no tensor's."""
    result_scale: float = 1.0
    """The same, of the result."""

    def vectors(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The names of its vectors, with their shapes."""
        shapes = dict.fromkeys(("keep", "share", "shift"), (hidden_size,)) | {"factor": (1,)}
        return {name: shape for name, shape in shapes.items() if getattr(self, name)}


@dataclass(frozen=True)
class Block:
    """One step of the residual stream: the stream is normalised, goes through the body, and the result is added to it.

    `ModelSpec.norm` says how it is normalised. Where a model has several streams (`ModelSpec.streams`), their mix takes
    the place of the normalised stream; a block without an input norm then reads all of them, and adds to them itself.
    """

    body: Body
    prefix: str = ""
    """Precedes the names of its tensors within the layer, where a layer has two blocks of one kind."""
    input_norm: bool = True
    post_norm: bool = False
    """Whether the result is normalised before it joins the stream: with an input norm a sandwich (Ding et al. 2021)."""
    parallel: bool = False
    """Whether it reads the stream as the block before it does; without an input norm of its own, that block's rows."""
    early: bool = False
    """Whether it reads the stream as the layer begins, before any other block of the layer has changed it (Arctic)."""
    late: bool = False
    """Whether its result joins the stream at the layer's end, after those of the blocks behind it, beside which it is
    computed (LongCat-Flash). Only experts are late, parallel to another block."""
    residual: Residual | None = None
    """How the result joins the stream; None: it is added, times the model's `residual_scale`."""
    sum_norm: bool = False
    """Whether the results of all blocks that read the same stream are summed, and the sum is normalised before it joins
    the stream (Gemma 4). The last of them says so, and how the sum joins it."""

    def name(self, what: str) -> str:
        """The name of a norm or vector of the block, within the layer and without the prefix."""
        stem = self.body.norm_name
        return {"input_norm": stem, "post_norm": f"post_{stem}"}.get(what, f"{stem.removesuffix('norm')}{what}")

    def dense_tensors(
        self, hidden_size: int, norm_bias: bool = False, streams: Streams | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Its dense tensors within the layer: the input norm, those of the body, the norms after it, the residual's."""
        before = _norm(self.name("input_norm"), hidden_size, norm_bias) if self.input_norm else {}
        if streams is not None and self.input_norm:
            before = {self.name(end): shape for end, shape in streams.tensors(hidden_size, writes=True).items()}
        after: dict[str, tuple[int, ...]] = {}
        for what in ("post_norm", "sum_norm"):
            after |= _norm(what, hidden_size, norm_bias) if getattr(self, what) else {}
        after |= self.residual.vectors(hidden_size) if self.residual else {}
        shapes = (
            before | dict(self.body.tensors(hidden_size)) | {self.name(what): shape for what, shape in after.items()}
        )
        return {self.prefix + name: shape for name, shape in shapes.items()}

    def expert_tensors(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The tensors of its routed experts within the layer; none without routed experts."""
        routed = self.body.routed
        shapes = routed.tensors(hidden_size) if routed else {}
        return {self.prefix + name: shape for name, shape in shapes.items()}


def _norm(name: str, hidden_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """The vectors of a norm of the stream."""
    return dict.fromkeys((name, f"{name}_bias") if bias else (name,), (hidden_size,))


@dataclass(frozen=True)
class LayerSpec:
    """A layer is a tuple of blocks, which run one after another, except those that are parallel."""

    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, *bodies: Body) -> LayerSpec:
        """A layer of one block for each body."""
        return cls(tuple(map(Block, bodies)))

    @property
    def routed(self) -> RoutedExperts | None:
        """The layer's routed experts; None for a layer without any."""
        return next((block.body.routed for block in self.blocks if block.body.routed is not None), None)

    def groups(self) -> Iterator[tuple[Block, ...]]:
        """The blocks in groups that read the same stream: a block, and those after it that are parallel to it."""
        starts = [number for number, block in enumerate(self.blocks) if not block.parallel]
        for start, end in zip(starts, [*starts[1:], len(self.blocks)], strict=True):
            yield self.blocks[start:end]

    def with_top_k(self, top_k: int) -> LayerSpec:
        """The same layer with another number of experts for each token, if it has routed experts."""
        return LayerSpec(tuple(replace(block, body=block.body.with_top_k(top_k)) for block in self.blocks))

    @functools.cached_property
    def sizes(self) -> Mapping[str, int]:
        """The values of the symbols of checkpoints' tables, of all its blocks."""
        return {name: size for block in self.blocks for name, size in block.body.sizes().items()}

    def check(self) -> None:
        """Raise ValueError for sizes or numbers that contradict one another."""
        for block in self.blocks:
            block.body.check()
        if not self.blocks:
            raise ValueError("no blocks")
        if sum(block.body.routed is not None for block in self.blocks) > 1:
            raise ValueError("two blocks with routed experts")
        names = [name for block in self.blocks for name in block.dense_tensors(1)]
        if len(set(names)) < len(names):
            raise ValueError("two blocks whose tensors have the same names")
        if self.blocks[0].parallel:
            raise ValueError("the first block is parallel to none")
        *before, last = self.groups()
        for group in (*before, last):
            _check_group(group)
        if any(block.body.routed and not block.late for group in before for block in group):
            raise ValueError("a block after the one with routed experts that is not parallel to it")
        for block in self.blocks:
            if block.early and not block.input_norm:
                raise ValueError("a block that reads the stream early without an input norm")
            if block.residual and block.residual.base == "normed" and not (block.input_norm or block.parallel):
                raise ValueError("a residual of normalised rows without an input norm")
            if block.residual and block.residual.keep and block.residual.base_scale != 1:
                raise ValueError("a residual with two factors of its base")


def _check_group(group: tuple[Block, ...]) -> None:
    """Raise ValueError for blocks that read the same stream and contradict one another."""
    *others, last = group
    if last.sum_norm and not others:
        raise ValueError("a sum of the results of one block")
    if any(block.sum_norm for block in others):
        raise ValueError("a sum of results before the last of the blocks that it is made of")
    if last.sum_norm and any(block.residual for block in others):
        raise ValueError("a residual of a block whose result joins a sum")
    for block in group:
        plain = block.parallel and not (block.early or block.residual or block.post_norm or last.sum_norm)
        if block.late and not (block.body.routed and plain):
            raise ValueError("a late block but of experts that are parallel to another one and plainly added")
    # A block that reads the stream itself may do so late: until then no other may change it.
    summed = last.sum_norm and all(block.input_norm for block in group[1:])
    if others and not group[0].input_norm and not summed:
        raise ValueError("blocks that are parallel to one without an input norm")


@dataclass(frozen=True)
class EncoderSpec:
    """The encoder of an encoder-decoder model, which reads a whole input before the decoder's first token.

    It has the model's embedding and a norm at its end. Decoder layers attend to what it gives.
    """

    layers: int
    """How many of the model's layers are the encoder's: the first ones."""
    start_token: int = field(default=0, metadata=ZERO_ALLOWED)
    """The id of the token with which the decoder's text begins."""


@dataclass(frozen=True)
class ModelSpec:
    """A language model: layers between an embedding and a head, before which stands a norm."""

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm_epsilon: float
    max_positions: int
    tied_embeddings: bool
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    """Factor on the logits (Granite divides by `logits_scaling`: this is its inverse)."""
    logit_cap: float = field(default=0.0, metadata=ZERO_ALLOWED)
    """The limit within which logits are brought (`op.SoftCap`), after the factor; 0: they stay as they are."""
    norm: Literal["rms", "layer"] = "rms"
    """Norms of the stream, of blocks' results and before the head: RMSNorm, or LayerNorm (Cohere)."""
    norm_bias: bool = False
    """Whether these norms have biases, as only LayerNorm may (Phi-3.5-MoE)."""
    head_bias: bool = False
    """Whether the head adds a bias to the logits."""
    positions_limit: Literal["none", "indexer"] = "none"
    """The bound of `max_positions` beside the config: beyond them an indexer would choose tokens, as no block can."""
    encoder: EncoderSpec | None = None
    """The encoder; None in a model that has a decoder alone."""
    streams: Streams | None = None
    """The rule of several residual streams; None: there is one."""
    mtp: bool = False
    """Whether it is an MTP head: its stream begins with a token's embedding and the hidden state of the token before,
    in another model, whose embedding and head it shares."""

    @property
    def stream_count(self) -> int:
        """The number of residual streams."""
        return self.streams.count if self.streams else 1

    @property
    def encoder_layers(self) -> int:
        """How many of the layers, from the first on, are the encoder's."""
        return self.encoder.layers if self.encoder else 0

    @property
    def routed(self) -> dict[int, RoutedExperts]:
        """The routed experts of each layer that has some, by the layer's number."""
        by_layer = ((number, layer.routed) for number, layer in enumerate(self.layers))
        return {number: routed for number, routed in by_layer if routed is not None}

    @property
    def routed_of_tokens(self) -> dict[int, RoutedExperts]:
        """The same of the layers that a written token goes through: of all but an encoder's."""
        return {number: routed for number, routed in self.routed.items() if number >= self.encoder_layers}

    @property
    def total_experts(self) -> int:
        """The number of routed experts in all layers."""
        return sum(routed.num_experts for routed in self.routed.values())

    @property
    def most_experts(self) -> int:
        """The number of routed experts in the layer that has most; 0 without any."""
        return max((routed.num_experts for routed in self.routed.values()), default=0)

    @property
    def most_top_k(self) -> int:
        """The largest number of routed experts that a token uses in one layer; 0 without any."""
        return max((routed.top_k for routed in self.routed.values()), default=0)

    @property
    def neurons_at_once(self) -> int:
        """The most experts of a single neuron that a token uses in one layer; 0 without such experts."""
        return max((layer.sizes.get("retrieved", 0) for layer in self.layers), default=0)

    def with_top_k(self, top_k: int, *, only_less: bool = False) -> ModelSpec:
        """The model with `top_k` experts for each token in every MoE layer; with `only_less`, where that is fewer."""
        layers = (
            layer.with_top_k(min(top_k, layer.routed.top_k) if only_less else top_k) if layer.routed else layer
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name; each body has a field that names its kind."""
        plain: dict[str, Any] = to_plain(self)
        if not self.mtp:
            del plain["mtp"]  # which few models say
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_json`, for data of any origin. Raises ValueError for invalid data, naming the field."""
        layers: list[LayerSpec] = []
        plain_layers = data.get("layers")
        if not isinstance(plain_layers, list):
            raise ValueError(f"model.layers is {str(plain_layers)[:80]!r}")
        for number, plain in enumerate(plain_layers):
            if number and plain == plain_layers[number - 1]:  # most layers repeat the one before
                layers.append(layers[-1])
                continue
            where = f"model.layers[{number}]"
            layer = from_plain(LayerSpec, plain, where, BODIES)
            try:
                layer.check()
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            layers.append(layer)
        spec = replace(from_plain(cls, {**data, "layers": []}, "model", STREAMS), layers=tuple(layers))
        if spec.encoder and not (spec.encoder_layers < len(layers) and spec.encoder.start_token < spec.vocab_size):
            raise ValueError(f"model.encoder is {str(data['encoder'])[:80]!r}")
        if spec.norm_bias and spec.norm != "layer":
            raise ValueError("model.norm_bias: biases of norms that are not LayerNorm")
        if spec.routed and spec.neurons_at_once:
            raise ValueError("model.layers: routed experts beside experts of a single neuron")
        spec.check_streams()
        if spec.mtp and (spec.streams or spec.encoder or spec.norm != "rms" or spec.head_bias):
            raise ValueError("model.mtp: an MTP head of a model that has several streams, an encoder or biases")
        return spec

    def check_streams(self) -> None:
        """Raise ValueError for several streams that contradict themselves or the rest of the model."""
        if self.streams is None:
            return
        self.streams.check()
        if self.encoder or self.norm != "rms" or self.residual_scale != 1:
            raise ValueError("several residual streams with an encoder, another norm or a scale of results")
        for block in (block for layer in self.layers for block in layer.blocks):
            if block.post_norm or block.sum_norm or block.parallel or block.early or block.residual:
                raise ValueError("several residual streams, and a block that joins one in a way of its own")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, by its internal name, with its shape.

        Matrices are `(rows, columns)` = (output, input). Names with `.experts.N.` belong to a routed expert.
        """
        shapes = self.dense_tensors()
        for number, layer in enumerate(self.layers):
            for block in layer.blocks:
                named = block.expert_tensors(self.hidden_size).items()
                shapes |= {f"layers.{number}.{name}": shape for name, shape in named}
        return shapes

    def dense_tensors(self) -> dict[str, tuple[int, ...]]:
        """The tensors that are not of a routed expert: their number does not grow with that of the experts."""
        D = self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        if self.mtp:
            shapes |= {"token_norm": (D,), "hidden_norm": (D,), "token_in": (D, D), "hidden_in": (D, D)}
        else:
            shapes["embedding"] = (self.vocab_size, D)
        if self.streams is None:
            shapes |= _norm("final_norm", D, self.norm_bias)
        else:
            shapes |= {f"final_{end}": shape for end, shape in self.streams.tensors(D, writes=False).items()}
        if self.encoder:
            shapes |= _norm("encoder_norm", D, self.norm_bias)
        if not (self.tied_embeddings or self.mtp):
            shapes["head"] = (self.vocab_size, D)
        if self.head_bias:
            shapes["head_bias"] = (self.vocab_size,)
        for number, layer in enumerate(self.layers):
            for block in layer.blocks:
                named = block.dense_tensors(D, self.norm_bias, self.streams).items()
                shapes |= {f"layers.{number}.{name}": shape for name, shape in named}
        return shapes
