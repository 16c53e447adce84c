"""Builds the symbolic program of a model from its specification: embedding, layers, head."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from edgemoe.kernels import operations as op
from edgemoe.model.builder import Builder
from edgemoe.model.graph import GUESSED_ROWS, PLAIN, STAGES, BuildOptions, Section, Stage, Value
from edgemoe.model.spec import Block, LayerSpec, ModelSpec, Residual

HEAD_ROWS = 8
"""Positions whose logits are computed in one run."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The symbolic program of a model."""

    spec: ModelSpec
    ids: Value  # (T,)
    positions: Value  # (T,)
    sequences: Value  # (T,)
    pages: Value  # (S, P)
    residual: Value  # (T, D)
    head_input: Value  # (HEAD_ROWS, D)
    logits: Value  # (HEAD_ROWS, V)
    embed: Section
    """Writes the embedding of a run's tokens to the residual stream."""
    layers: tuple[Section, ...]
    head: Section
    """Computes `logits` from `head_input`."""
    lasting: tuple[Value, ...]
    """Every value that is not in memory which the values of a layer share."""

    @property
    def state(self) -> list[Value]:
        """The values that sequences keep of their tokens in pages, in all layers."""
        return [value for value in self.lasting if value.home == "state" and value.undo is None]

    @property
    def longest_contexts(self) -> list[int]:
        """The most tokens that the model takes, and the longest context of the positions that each rule has in it.

        Positions of some rules change in longer contexts (`model.rope`): a budget must not decide which they are.
        """
        limits = (value.rope.longest_short for value in self.lasting if value.rope is not None)
        return [self.spec.max_positions, *(limit for limit in limits if limit is not None)]

    @property
    def tables(self) -> list[Value]:
        """The tables of pages: that of layers which see the whole context, and one for each window."""
        return [value for value in self.lasting if value.shape == ("S", "P")]

    @property
    def fixed_state(self) -> list[Value]:
        """The values that sequences keep whatever the number of their tokens, in all layers."""
        return [value for value in self.lasting if value.home == "state" and value.undo is not None]

    def kinds(self) -> Iterator[tuple[Section, Hashable]]:
        """All sections in the order in which a run goes through them; equal kinds have values of equal sizes."""
        following: tuple[LayerSpec | None, ...] = (*self.spec.layers[1:], None)
        yield self.embed, "embed"
        yield from zip(self.layers, zip(self.spec.layers, following, strict=True), strict=True)
        yield self.head, "head"

    def sections(self) -> Iterator[Section]:
        """All sections in the order in which a run goes through them."""
        return (section for section, _ in self.kinds())

    def distinct_sections(self) -> list[Section]:
        """Sections in which all sizes occur: one of each kind of layer and of the layer that follows it.

        The last layer, which guesses at no other, is among them only if no layer before it is of its kind.
        """
        distinct = {kind: section for section, kind in self.kinds()}
        last = self.spec.layers[-1] if self.spec.layers else None
        if any(layer == last for layer in self.spec.layers[:-1]):
            del distinct[last, None]
        return list(distinct.values())


def build_graph(spec: ModelSpec, options: BuildOptions = PLAIN) -> Graph:
    """The symbolic program of a model."""
    V, D = spec.vocab_size, spec.hidden_size
    ids = Value("ids", ("T",), "i32", "kept")
    positions = Value("positions", ("T",), "i32", "kept")
    sequences = Value("sequences", ("T",), "i32", "kept")
    pages = Value("pages", ("S", "P"), "i32", "kept")
    residual = Value("residual", ("T", D), "f32", "kept")
    head_input = Value("head_input", (HEAD_ROWS, D), "f32", "kept")
    logits = Value("logits", (HEAD_ROWS, V), "f32", "kept")

    inputs = ids, positions, sequences, pages
    shared: dict[Hashable, Value] = {value.name: value for value in (*inputs, residual, head_input, logits)}

    def builder() -> Builder:
        return Builder(-1, D, spec.norm_epsilon, cast(Any, residual), options, spec.norm, spec.norm_bias, shared)

    embed = builder()
    with embed.doing("embedding"):
        matrix = embed.matrix("embedding", V, D)
        embed.add(op.Embed(cast(Any, ids), matrix, spec.embedding_scale, cast(Any, residual)))
    guesses = not options.forced_routing or options.forced_guesses
    layers = []
    for number, layer in enumerate(spec.layers):
        build = builder()
        following = spec.layers[number + 1] if number + 1 < len(spec.layers) else None
        if guesses and following is not None and following.routed:
            build.guess_next = functools.partial(_guess, number + 1, following)
        *before, last = layer.groups()
        early = _early_sources(build, number, layer)
        for group in (*before, last):
            build.staged = group is last
            _add_group(build, number, group, spec.residual_scale, early)
        layers.append(build.section())
    head = builder()
    with head.doing("head"):
        normed = head.stream_norm(cast(Any, head_input), "final_norm", head.fixed_rows("head_normed", HEAD_ROWS, D))
        matrix = head.matrix("embedding" if spec.tied_embeddings else "head", V, D)
        bias = head.vector("head_bias", V) if spec.head_bias else None
        head.add(op.Linear(normed, (op.LinearPart(matrix, bias, cast(Any, logits)),), scale=spec.logit_scale))
        if spec.logit_cap:
            head.add(op.SoftCap(cast(Any, logits), spec.logit_cap))
    sections = embed.section(), tuple(layers), head.section()
    return Graph(spec, *inputs, residual, head_input, logits, *sections, lasting=tuple(shared.values()))


def _early_sources(build: Builder, number: int, layer: LayerSpec) -> dict[str, op.Floats]:
    """What blocks read of the stream as the layer begins, by the names of their norms."""
    sources = {}
    for block in layer.blocks:
        if block.early:
            with build.at(number, block.prefix), build.doing(block.body.norm_part, "attend"):
                rows = build.rows("early", build.hidden_size)
                sources[block.prefix + block.name("input_norm")] = _normed(build, block, build.residual, rows)
    return sources


def _add_group(
    build: Builder, layer: int, blocks: Sequence[Block], scale: float, early: Mapping[str, op.Floats]
) -> None:
    """Add a block and those that are parallel to it: all read the stream before any result joins it."""
    sources: list[op.Floats] = []
    for block in blocks:
        with build.at(layer, block.prefix), build.doing(block.body.norm_part, "attend"):
            if block.early:
                sources.append(early[block.prefix + block.name("input_norm")])
            elif block.input_norm:
                sources.append(_normed(build, block, build.residual, build.rows("normed", build.hidden_size)))
            else:
                sources.append(sources[-1] if block.parallel else build.residual)
    summed = blocks[-1].sum_norm
    waiting: list[op.Floats] = []
    latest: Stage = "attend"
    for block, source in zip(blocks, sources, strict=True):
        with build.at(layer, block.prefix), build.doing(block.body.norm_part, "attend"):
            # A body adds its result to the stream itself, unless something happens to the result before: then the body
            # writes it to rows of its own, and `_join` brings it into the stream.
            joins = block.post_norm or block.residual is not None or summed
            build.result = build.rows("result", build.hidden_size) if joins else None
            build.result_scale = 1.0 if joins else scale
            block.body.emit(build, source)
            stage = build.steps[-1].stage
            latest = max(latest, stage, key=STAGES.index)
            if joins and block.post_norm:
                with build.doing(block.body.norm_part, stage):
                    result = cast("op.Floats", build.result)
                    build.stream_norm(result, block.name("post_norm"), result)
            if summed and block is not blocks[-1]:
                waiting.append(cast("op.Floats", build.result))
            elif joins:
                with build.doing(block.body.norm_part, latest if summed else stage):
                    _join(build, block, source, scale, waiting)


def _join(build: Builder, block: Block, source: op.Floats, scale: float, others: Sequence[op.Floats]) -> None:
    """Let the result of a body join the stream, after those of other blocks have been added to it if it is a sum."""
    size, result = build.hidden_size, cast("op.Floats", build.result)
    for other in others:
        build.add(op.Mix(result, other, 1.0, None, None, None, result))
    if block.sum_norm:
        build.stream_norm(result, block.name("sum_norm"), result)
    form = block.residual or Residual()
    vectors = form.vectors(size)
    keep, share, shift, factor = (
        build.vector(block.name(name), *vectors[name]) if name in vectors else None
        for name in ("keep", "share", "shift", "factor")
    )
    base = source if form.base == "normed" else build.residual
    build.add(op.Mix(base, result, scale, keep, share, shift, build.residual, factor))


def _normed(build: Builder, block: Block, source: op.Floats, output: op.Floats) -> op.Floats:
    """The input norm of a block."""
    return build.stream_norm(source, block.name("input_norm"), output)


def _guess(number: int, layer: LayerSpec, build: Builder) -> None:
    """Guess the routing of layer `number` from the residual stream as it stands one layer earlier."""
    *_, group = layer.groups()
    routed = next(place for place, block in enumerate(group) if block.body.routed)
    # The router reads the rows of the latest block up to its own that has an input norm, or of the group's first block.
    reads = next(block for block in reversed(group[: routed + 1]) if block.input_norm or not block.parallel)
    source = build.residual
    with build.doing("prefetch", "guess"):
        if reads.input_norm:
            with build.at(number, reads.prefix):
                guessed = build.fixed_rows("guessed_input", GUESSED_ROWS, build.hidden_size)
                source = _normed(build, reads, source, guessed)
        with build.at(number, group[routed].prefix):
            group[routed].body.emit_guess(build, source)
