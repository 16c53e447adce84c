"""Builds the symbolic program of a model from its specification: embedding, layers, head; an encoder, if it has one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from edgemoe.kernels import operations as op
from edgemoe.model.builder import Builder
from edgemoe.model.graph import GUESSED_ROWS, PLAIN, STAGES, BuildOptions, Section, Stage, Value
from edgemoe.model.spec import Block, LayerSpec, ModelSpec, Residual
from edgemoe.model.streams import Streams

HEAD_ROWS = 8
"""Positions whose logits are computed in one run."""


@dataclass(frozen=True, eq=False)
class EncoderGraph:
    """The part of the program that runs once for each input: from its embedding to what decoder layers keep of it.

    A run has the whole input of one sequence, a row for each token.
    """

    ids: Value  # (C,)
    positions: Value  # (C,)
    sequences: Value  # (C,)
    residual: Value  # (C, D)
    lengths: Value  # (S,): the number of tokens of each sequence's input; 0 where it has none
    pages: Value  # (S, P): the pages of what is written once
    own_pages: Value  # (S, P): those of the encoder's own keys and values
    embed: Section
    end: Section
    """The norm, and the keys and values of every layer that attends to the result."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The symbolic program of a model."""

    spec: ModelSpec
    ids: Value  # (T,)
    positions: Value  # (T,)
    sequences: Value  # (T,)
    pages: Value  # (S, P)
    residual: Value  # (T, D), or (T, streams * D)
    head_input: Value  # (HEAD_ROWS, as many columns)
    logits: Value  # (HEAD_ROWS, V)
    embed: Section
    """Writes the embedding of a run's tokens to the residual stream."""
    layers: tuple[Section, ...]
    """All layers, those of an encoder first."""
    head: Section
    """Computes `logits` from `head_input`."""
    lasting: tuple[Value, ...]
    """Every value that is not in memory which the values of a layer share."""
    encoder: EncoderGraph | None = None
    hidden: Value | None = None  # (T, D): of an MTP head, the hidden state of the token before each

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
        of_inputs = (self.encoder.pages, self.encoder.own_pages) if self.encoder else ()
        return [value for value in self.lasting if value.shape == ("S", "P") and value not in of_inputs]

    @property
    def written_once(self) -> list[Value]:
        """The values that sequences keep of their inputs, in all layers."""
        return [value for value in self.lasting if value.home == "written_once"]

    @property
    def row_tables(self) -> list[Value]:
        """The values that hold rows of tables on disk, which are read before a run."""
        return [value for value in self.lasting if value.table is not None]

    @property
    def has_rows_on_disk(self) -> bool:
        """Whether it reads rows of tables that stay on disk, or may."""
        return bool(self.row_tables) or self.spec.neurons_at_once > 0

    @property
    def fixed_state(self) -> list[Value]:
        """The values that sequences keep whatever the number of their tokens, in all layers."""
        return [value for value in self.lasting if value.home == "state" and value.undo is not None]

    def kinds(self) -> Iterator[tuple[Section, Hashable]]:
        """All sections in the order in which a run goes through them; equal kinds have values of equal sizes.

        Those of an encoder, which has runs of its own, are not among them (`encoder_kinds`).
        """
        layers = self.spec.layers[self.spec.encoder_layers :]
        following: tuple[LayerSpec | None, ...] = (*layers[1:], None)
        yield self.embed, "embed"
        yield from zip(self.decoder_layers, zip(layers, following, strict=True), strict=True)
        yield self.head, "head"

    @property
    def decoder_layers(self) -> tuple[Section, ...]:
        """The layers of a run of tokens: all but an encoder's."""
        return self.layers[self.spec.encoder_layers :]

    def encoder_kinds(self) -> Iterator[tuple[Section, Hashable]]:
        """The sections of an encoder in the order in which its run goes through them, as `kinds`; none without one."""
        if self.encoder is not None:
            count = self.spec.encoder_layers
            yield self.encoder.embed, "encoder_embed"
            yield from zip(self.layers[:count], self.spec.layers[:count], strict=True)
            yield self.encoder.end, "encoder_end"

    def sections(self) -> Iterator[Section]:
        """All sections in the order in which a run goes through them."""
        return (section for section, _ in self.kinds())

    def distinct_sections(self) -> list[Section]:
        """Sections in which all sizes occur: one of each kind of layer and of the layer that follows it.

        The last layer, which guesses at no other, is among them only if no layer before it is of its kind.
        """
        distinct = {kind: section for section, kind in self.kinds()}
        *before, last = self.spec.layers[self.spec.encoder_layers :] or (None,)
        if any(layer == last for layer in before):
            del distinct[last, None]
        return list(distinct.values())


def build_graph(spec: ModelSpec, options: BuildOptions = PLAIN) -> Graph:
    """The symbolic program of a model. Raises ValueError for blocks that do not belong where they are."""
    V, D = spec.vocab_size, spec.hidden_size
    ids = Value("ids", ("T",), "i32", "kept")
    positions = Value("positions", ("T",), "i32", "kept")
    sequences = Value("sequences", ("T",), "i32", "kept")
    pages = Value("pages", ("S", "P"), "i32", "kept")
    width = spec.stream_count * D
    residual = Value("residual", ("T", width), "f32", "kept")
    head_input = Value("head_input", (HEAD_ROWS, width), "f32", "kept")
    logits = Value("logits", (HEAD_ROWS, V), "f32", "kept")

    inputs = ids, positions, sequences, pages
    shared: dict[Hashable, Value] = {value.name: value for value in (*inputs, residual, head_input, logits)}

    def builder(stream: Value = residual, letter: Literal["T", "C"] = "T", ending: Builder | None = None) -> Builder:
        own = options if letter == "T" else replace(options, cache_aware_routing=0.0)  # as a prompt has none
        of_model = spec.norm_epsilon, cast(Any, stream), own, spec.norm, spec.norm_bias, shared
        return Builder(-1, D, *of_model, letter=letter, ending=ending)

    ending, encoder_layers, finish = _encoder(spec, shared, builder) if spec.encoder else (None, [], None)
    embed = builder()
    with embed.doing("embedding"):
        matrix = embed.matrix("embedding", V, D)
        embed.add(op.Embed(cast(Any, ids), matrix, spec.embedding_scale, cast(Any, residual), spec.stream_count))
        hidden = _add_mtp_input(embed, D) if spec.mtp else None
    guesses = not options.forced_routing or options.forced_guesses
    layers = encoder_layers
    for number, layer in enumerate(spec.layers[spec.encoder_layers :], spec.encoder_layers):
        build = builder(ending=ending)
        following = spec.layers[number + 1] if number + 1 < len(spec.layers) else None
        if guesses and following is not None and following.routed:
            build.guess_next = functools.partial(_guess, number + 1, following, spec.streams)
        layers.append(_add_layer(build, number, layer, spec))
    head = builder()
    with head.doing("head"):
        normed = head.fixed_rows("head_normed", HEAD_ROWS, D)
        if spec.streams is None:
            head.stream_norm(cast(Any, head_input), "final_norm", normed)
        else:
            spec.streams.read(head, "final_", cast(Any, head_input), normed, writes=False)
        matrix = head.matrix("embedding" if spec.tied_embeddings else "head", V, D)
        bias = head.vector("head_bias", V) if spec.head_bias else None
        head.add(op.Linear(normed, (op.LinearPart(matrix, bias, cast(Any, logits)),), scale=spec.logit_scale))
        if spec.logit_cap:
            head.add(op.SoftCap(cast(Any, logits), spec.logit_cap))
    sections = embed.section(), tuple(layers), head.section()
    encoder = finish() if finish else None
    return Graph(spec, *inputs, residual, head_input, logits, *sections, tuple(shared.values()), encoder, hidden)


def _add_mtp_input(build: Builder, size: int) -> Value:
    """Let the stream of an MTP head begin with both of its inputs, after the embedding; returns the hidden states.

    The paper's one matrix on both, side by side, is the sum of a matrix on each.
    """
    hidden = build.kept("hidden", "T", size)
    normed = build.rms_norm(build.residual, "token_norm", size, build.rows("normed_token", size))
    build.linear(normed, "token_in", build.residual)
    normed = build.rms_norm(hidden, "hidden_norm", size, build.rows("normed_hidden", size))
    part = op.LinearPart(build.matrix("hidden_in", size, size), None, build.residual)
    build.add(op.Linear(normed, (part,), accumulate=True))
    return cast(Value, hidden)


def _encoder(
    spec: ModelSpec, shared: dict[Hashable, Value], builder: Callable[[Value, Literal["C"]], Builder]
) -> tuple[Builder, list[Section], Callable[[], EncoderGraph]]:
    """The builder of its end, to which decoder layers add; its layers; and what then makes the whole."""
    V, D = spec.vocab_size, spec.hidden_size
    ids, positions, sequences = (Value(f"input_{name}", ("C",), "i32", "kept") for name in _OF_ROWS)
    residual = Value("input_residual", ("C", D), "f32", "kept")
    lengths = Value("input_lengths", ("S",), "i32", "kept")
    pages, own_pages = (Value(name, ("S", "P"), "i32", "kept") for name in ("input_pages", "encoder_pages"))
    values = ids, positions, sequences, residual, lengths, pages, own_pages
    shared |= {value.name: value for value in values}
    embed = builder(residual, "C")
    with embed.doing("embedding"):
        matrix = embed.matrix("embedding", V, D)
        embed.add(op.Embed(cast(Any, ids), matrix, spec.embedding_scale, cast(Any, residual)))
    layers = [
        _add_layer(builder(residual, "C"), number, layer, spec)
        for number, layer in enumerate(spec.layers[: spec.encoder_layers])
    ]
    ending = builder(residual, "C")
    ending.stream_norm(ending.residual, "encoder_norm", ending.residual)
    return ending, layers, lambda: EncoderGraph(*values, embed.section(), ending.section())


_OF_ROWS = ("ids", "positions", "sequences")
"""The values by which the engine says what each row of a run is."""


def _add_layer(build: Builder, number: int, layer: LayerSpec, spec: ModelSpec) -> Section:
    """Add the blocks of a layer; returns the section."""
    *before, last = layer.groups()
    early = _early_sources(build, number, layer)
    # Where the stream as it is now chooses the experts, they are read while all blocks before them are computed.
    start: Stage = "beside" if layer.routed and layer.routed.early else "attend"
    late = False
    for group in (*before, last):
        # What stands after experts that are late, or beside them, is computed while their records are read.
        late = late or any(block.late for block in group)
        build.only_stage = "beside" if late else None if group is last else start
        if group is last and layer.routed is None and build.guess_next is not None:
            # Nothing else of such a layer is staged: what it reads ahead for the next one arrives meanwhile.
            build.guess_next_routing()
            start = "beside"
        if spec.streams is None:
            _add_group(build, number, group, spec.residual_scale, early, start)
        else:
            _add_block_of_streams(build, number, group[0], spec.streams, start)
    return build.section()


def _early_sources(build: Builder, number: int, layer: LayerSpec) -> dict[str, op.Floats]:
    """The rows that blocks read of the stream as the layer begins, by the names of their norms."""
    sources = {}
    for block in layer.blocks:
        if block.early:
            with build.at(number, block.prefix), build.doing(block.body.norm_part, "attend"):
                rows = build.rows("early", build.hidden_size)
                sources[block.prefix + block.name("input_norm")] = _normed(build, block, build.residual, rows)
    return sources


def _add_group(
    build: Builder, layer: int, blocks: Sequence[Block], scale: float, early: Mapping[str, op.Floats], start: Stage
) -> None:
    """Add a block and those that are parallel to it: all read the stream before any result joins it.

    `start` is the stage of what bodies do not put into a stage themselves.
    """
    sources: list[op.Floats] = []
    stage_of_others = build.only_stage
    if any(block.late for block in blocks):
        build.only_stage = None  # its rows are what routers read
    for block in blocks:
        with build.at(layer, block.prefix), build.doing(block.body.norm_part, start):
            if block.early:
                sources.append(early[block.prefix + block.name("input_norm")])
            elif block.input_norm:
                sources.append(_normed(build, block, build.residual, build.rows("normed", build.hidden_size)))
            else:
                sources.append(sources[-1] if block.parallel else build.residual)
    summed = blocks[-1].sum_norm
    waiting: list[op.Floats] = []
    latest = start
    for block, source in zip(blocks, sources, strict=True):
        build.only_stage = None if block.late else stage_of_others
        with build.at(layer, block.prefix), build.doing(block.body.norm_part, start):
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


def _add_block_of_streams(build: Builder, layer: int, block: Block, streams: Streams, start: Stage) -> None:
    """Add a block that reads a mix of several streams and joins them all, or one that reads and joins them itself."""
    with build.at(layer, block.prefix), build.doing(block.body.norm_part, start):
        build.result, build.result_scale = None, 1.0
        if not block.input_norm:
            block.body.emit(build, build.residual)
            return
        source = build.rows("mixed", build.hidden_size)
        kept = streams.read(build, block.name(""), build.residual, source, writes=True)
        build.result = build.rows("result", build.hidden_size)
        block.body.emit(build, source)
        with build.doing(block.body.norm_part, build.steps[-1].stage):
            streams.write(build, kept, build.result)


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
    if form.base_scale != 1:
        keep = build.numbers(*[form.base_scale] * size)
    base = source if form.base == "normed" else build.residual
    build.add(op.Mix(base, result, scale * form.result_scale, keep, share, shift, build.residual, factor))


def _normed(build: Builder, block: Block, source: op.Floats, output: op.Floats) -> op.Floats:
    """The input norm of a block."""
    return build.stream_norm(source, block.name("input_norm"), output)


def _guess(number: int, layer: LayerSpec, streams: Streams | None, build: Builder) -> None:
    """Guess the routing of layer `number` from the residual stream as it stands one layer earlier.

    Where a table names the experts of each token, the guess is what will be.
    """
    group = next(group for group in layer.groups() if any(block.body.routed for block in group))
    routed = next(place for place, block in enumerate(group) if block.body.routed)
    # The router reads the rows of the latest block up to its own that has an input norm, or of the group's first block,
    # or the stream itself.
    reads = next(block for block in reversed(group[: routed + 1]) if block.input_norm or not block.parallel)
    of_stream = layer.routed is not None and layer.routed.early
    source = build.residual
    known = layer.routed is not None and layer.routed.by_token
    with build.doing("prefetch", "guess"):
        if reads.input_norm and not (of_stream or known):
            with build.at(number, reads.prefix):
                guessed = build.fixed_rows("guessed_input", GUESSED_ROWS, build.hidden_size)
                if streams is None:
                    source = _normed(build, reads, source, guessed)
                else:
                    streams.read(build, reads.name(""), source, guessed, writes=False)
                    source = guessed
        with build.at(number, group[routed].prefix):
            group[routed].body.emit_guess(build, source)
