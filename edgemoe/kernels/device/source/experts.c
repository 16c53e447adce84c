/* The routed experts, pair by pair of a token and one of its experts, whose record lies in a slot of the arena. A launch is
 * for the experts of one layout alone, since that says the format; an item of any other expert does nothing. */

/* The slot of a pair's expert, or -1: it is not in memory, of another layout, or none at all. */
INLINE i32 slot_of(GLOBAL const i32 *experts, GLOBAL const i32 *slots, GLOBAL const u8 *layout_of, i32 layout, i32 pair) {
    const i32 expert = experts[pair];
    if (expert < 0 || layout_of[expert] != layout) return -1;
    return slots[expert];
}

INLINE float record_float(GLOBAL const u8 *biases, i32 slot, i32 slot_bytes, i32 row) {
    return ((GLOBAL const float *)(biases + (u64)slot * (u64)slot_bytes))[row];
}

/* Rows of an expert's matrix times the pair's input: item is pair * rows + row. `sharing` pairs have one input. */
INLINE void expert_linear(GLOBAL const u8 *arena, GLOBAL const u32 *values, GLOBAL const group *groups, GLOBAL const u8 *biases,
                          GLOBAL const i32 *experts, GLOBAL const i32 *slots, GLOBAL const u8 *layout_of, GLOBAL float *output,
                          i32 rows, i32 group_count, i32 panel_bytes, i32 slot_bytes, i32 layout, i32 sharing, i32 has_bias,
                          format f, i32 item) {
    const i32 row = item % rows, pair = item / rows, slot = slot_of(experts, slots, layout_of, layout, pair);
    if (slot < 0) return;
    GLOBAL const u8 *panel = arena + (u64)slot * (u64)slot_bytes + (u64)(row / PANEL_ROWS) * (u64)panel_bytes;
    const float sum = product(panel, values + (u64)(pair / sharing) * (u64)(group_count * QUADS),
                              groups + (u64)(pair / sharing) * (u64)group_count, group_count, row % PANEL_ROWS, f);
    output[item] = has_bias ? sum + record_float(biases, slot, slot_bytes, row) : sum;
}

INLINE void expert_float_linear(GLOBAL const u8 *arena, GLOBAL const float *input, GLOBAL const u8 *biases,
                                GLOBAL const i32 *experts, GLOBAL const i32 *slots, GLOBAL const u8 *layout_of,
                                GLOBAL float *output, i32 rows, i32 columns, i32 panel_bytes, i32 slot_bytes, i32 layout,
                                i32 sharing, i32 has_bias, i32 element, i32 item) {
    const i32 row = item % rows, pair = item / rows, slot = slot_of(experts, slots, layout_of, layout, pair);
    if (slot < 0) return;
    GLOBAL const u8 *panel = arena + (u64)slot * (u64)slot_bytes + (u64)(row / PANEL_ROWS) * (u64)panel_bytes;
    const float sum =
        float_product(panel, input + (u64)(pair / sharing) * (u64)columns, columns, row % PANEL_ROWS, element);
    output[item] = has_bias ? sum + record_float(biases, slot, slot_bytes, row) : sum;
}

INLINE void expert_e4m3_linear(GLOBAL const u8 *arena, GLOBAL const float *input, GLOBAL const u8 *biases,
                               GLOBAL const i32 *experts, GLOBAL const i32 *slots, GLOBAL const u8 *layout_of,
                               GLOBAL float *output, i32 rows, i32 columns, i32 panel_bytes, i32 slot_bytes, i32 layout,
                               i32 sharing, i32 has_bias, i32 scale_kind, i32 scale_shift, float unit, i32 item) {
    const i32 row = item % rows, pair = item / rows, slot = slot_of(experts, slots, layout_of, layout, pair);
    if (slot < 0) return;
    GLOBAL const u8 *panel = arena + (u64)slot * (u64)slot_bytes + (u64)(row / PANEL_ROWS) * (u64)panel_bytes;
    const float sum = e4m3_product(panel, input + (u64)(pair / sharing) * (u64)columns, columns, row % PANEL_ROWS, scale_kind,
                                   scale_shift, unit);
    output[item] = has_bias ? sum + record_float(biases, slot, slot_bytes, row) : sum;
}

/* One hidden column of a pair, as `activate` makes it, with the biases of the pair's expert. */
INLINE void expert_activate(GLOBAL const float *gate, GLOBAL const float *up, GLOBAL const u8 *gate_bias,
                            GLOBAL const u8 *up_bias, GLOBAL const i32 *experts, GLOBAL const i32 *slots,
                            GLOBAL const u8 *layout_of, GLOBAL float *hidden, i32 columns, i32 stride, i32 step,
                            i32 slot_bytes, i32 layout, i32 has_gate, i32 has_bias, i32 function, float alpha, float limit,
                            float offset, i32 item) {
    const i32 pair = item / columns, column = item % columns, slot = slot_of(experts, slots, layout_of, layout, pair);
    const u64 at = (u64)pair * (u64)stride + (u64)(column / PANEL_ROWS * step + column % PANEL_ROWS);
    if (slot < 0) {
        hidden[item] = 0.0f;
        return;
    }
    float u = up[at];
    if (has_bias) u = u + record_float(up_bias, slot, slot_bytes, column);
    float g = has_gate ? gate[at] : u;
    if (has_gate && has_bias) g = g + record_float(gate_bias, slot, slot_bytes, column);
    hidden[item] = activated(g, has_gate ? u : 1.0f, function, alpha, limit, offset);
}

/* A choice of no expert passes on the input: item is pair * width + channel. */
INLINE void pass_on(GLOBAL const float *input, GLOBAL const i32 *experts, GLOBAL float *output, i32 top_k, i32 width,
                    i32 item) {
    const i32 pair = item / width;
    if (experts[pair] < 0) output[item] = input[(u64)(pair / top_k) * (u64)width + (u64)(item % width)];
}
