"""Operations on a fixed state of each sequence as launches: short convolutions, the delta rule and scans.

Rows of a run change the state of a sequence one after the other, so an item takes all rows: these launches have so many
items whatever the number of tokens, and read that from memory.
"""

from __future__ import annotations

from edgemoe.kernels import state_operations as st
from edgemoe.kernels.device.places import Memory, float32, optional
from edgemoe.kernels.device.runtime import Launch
from edgemoe.kernels.formats import PANEL_ROWS, panel_count


def short_conv(o: st.ShortConv, memory: Memory) -> list[Launch]:
    """Return the launch of a convolution, and the one that keeps its inputs."""
    width, ring_rows = o.output.shape[1], o.inputs.shape[1]
    rows = memory.place(o.positions), memory.place(o.sequences)
    given, ring, bias = memory.place(o.input), memory.place(o.inputs), optional(o.bias, memory)
    places = (given, memory.place(o.taps), bias, *rows, ring, memory.place(o.output))
    numbers = (width, o.taps.shape[0] // width, o.dilation, o.parts, ring_rows, int(bias is not None))
    kept = (given, *rows, memory.place(memory.count), ring, width, o.parts, ring_rows)
    return [Launch("short_conv", (*places, *numbers), width), Launch("keep_inputs", kept, width)]


def delta_rule(o: st.DeltaRule, memory: Memory) -> list[Launch]:
    """Return launches of the factors of queries and keys, of decays, and of the rule."""
    heads, padded, width = o.states.shape[1:]
    key_heads, columns, decays = o.key_heads, o.mixed.shape[1], o.decay_input.shape[1]
    factors, own_decays = memory.scratch(8 * key_heads), memory.scratch(4 * decays)
    mixed, keys, values = memory.place(o.mixed), optional(o.keys, memory), optional(o.values, memory)
    of_lengths = (mixed, keys, factors, key_heads, width, columns, int(keys is not None), float32(o.epsilon))
    of_decays = (*(memory.place(one) for one in (o.decay_input, o.decay_bias, o.rate)), own_decays)
    rows = (memory.place(one) for one in (o.positions, o.sequences, memory.count, o.states, o.output))
    places = (mixed, keys, values, factors, own_decays, memory.place(o.strength), *rows)
    numbers = (heads, key_heads, width, o.output.shape[1] // heads, padded, columns, int(keys is not None))
    flags = (int(decays > heads), int(o.in_turn))
    return [
        Launch("delta_lengths", of_lengths, 2 * key_heads),
        Launch("delta_decays", (*of_decays, decays, decays // heads, float32(o.lower_bound)), decays),
        Launch("delta_rule", (*places, *numbers, *flags), heads * padded, once=True),
    ]


def selective_scan(o: st.SelectiveScan, memory: Memory) -> list[Launch]:
    """Return the launch of a scan by heads."""
    heads, padded, width = o.states.shape[1:]
    steps = (optional(o.step, memory), optional(o.step_bias, memory), memory.place(o.rate), optional(o.skip, memory))
    rows = (memory.place(one) for one in (o.positions, o.sequences, memory.count, o.states, o.output))
    numbers = (heads, o.groups, width, o.output.shape[1] // heads, padded, o.mixed.shape[1])
    flags = (int(o.step is not None), int(o.skip is not None))
    arguments = (memory.place(o.mixed), *steps, *rows, *numbers, *flags)
    return [Launch("selective_scan", arguments, heads * padded, once=True)]


def channel_scan(o: st.ChannelScan, memory: Memory) -> list[Launch]:
    """Return the launch of a scan by channels."""
    given = (o.input, o.step, o.keys, o.queries, o.rate, o.skip, o.positions, o.sequences, memory.count)
    channels, width = o.input.shape[1], o.states.shape[2]
    padded = PANEL_ROWS * panel_count(channels)
    places = (memory.place(one) for one in (*given, o.states, o.output))
    return [Launch("channel_scan", (*places, channels, width, padded), padded, once=True)]
