/* What layers keep of a sequence whatever the number of its tokens: inputs of convolutions, and matrices that one token after
 * another decays and adds to, in the order of native/kernels/delta and native/src/operations/short_conv.c.
 *
 * An item has a column of the matrices of all sequences, and takes the rows of a run in their order. A column of a panel that
 * has no value takes zeros, as the native kernels do. */
#define CHAINS 4

INLINE float fold_chains(OWN const float *chains) { return (chains[0] + chains[2]) + (chains[1] + chains[3]); }

/* ---- short convolutions --------------------------------------------------------------------------------- */

/* A channel's input of a row: B * x, or the row itself. */
INLINE float conv_input(GLOBAL const float *input, i32 parts, i32 width, i32 row, i32 channel) {
    GLOBAL const float *own = input + (u64)row * (u64)(parts * width) + (u64)channel;
    return parts == 1 ? own[0] : own[0] * own[2 * width];
}

/* The row at or before `row` that has a position of a sequence, or -1: most often it lies as far back as its position. */
INLINE i32 row_of(GLOBAL const i32 *positions, GLOBAL const i32 *sequences, i32 row, i32 back) {
    const i32 sequence = sequences[row], position = positions[row] - back;
    if (back <= row && sequences[row - back] == sequence && positions[row - back] == position) return row - back;
    for (i32 other = row - 1; other >= 0; other--) {
        if (sequences[other] == sequence && positions[other] == position) return other;
    }
    return -1;
}

/* item is row * width + channel. */
INLINE void short_conv(GLOBAL const float *input, GLOBAL const float *taps, GLOBAL const float *bias,
                       GLOBAL const i32 *positions, GLOBAL const i32 *sequences, GLOBAL const float *ring,
                       GLOBAL float *output, i32 width, i32 length, i32 dilation, i32 parts, i32 ring_rows, i32 has_bias,
                       i32 item) {
    const i32 row = item / width, channel = item % width;
    float sum = has_bias ? bias[channel] : 0.0f;
    for (i32 tap = 0; tap < length; tap++) {
        const i32 back = (length - 1 - tap) * dilation, position = positions[row] - back;
        if (position < 0) continue;
        const i32 other = row_of(positions, sequences, row, back);
        const u64 kept = (u64)sequences[row] * (u64)ring_rows + (u64)(position % ring_rows);
        const float u = other >= 0 ? conv_input(input, parts, width, other, channel) : ring[kept * (u64)width + (u64)channel];
        sum = sum + taps[channel * length + tap] * u;
    }
    output[item] = parts == 1 ? sum / (1.0f + exponential(-sum))
                              : input[(u64)row * (u64)(3 * width) + (u64)(width + channel)] * sum;
}

/* Adds inputs to the ring: item is row * width + channel. Of rows that have one place there the last stays. */
INLINE void keep_inputs(GLOBAL const float *input, GLOBAL const i32 *positions, GLOBAL const i32 *sequences,
                        GLOBAL const i32 *tokens, GLOBAL float *ring, i32 width, i32 parts, i32 ring_rows, i32 item) {
    const i32 row = item / width, channel = item % width, place = positions[row] % ring_rows;
    for (i32 later = row + 1; later < tokens[0]; later++) {
        if (sequences[later] == sequences[row] && positions[later] % ring_rows == place) return;
    }
    ring[((u64)sequences[row] * (u64)ring_rows + (u64)place) * (u64)width + (u64)channel] =
        conv_input(input, parts, width, row, channel);
}

/* ---- the delta rule ------------------------------------------------------------------------------------- */

/* What a head's query or key is multiplied with: item is (row * 2 + which) * heads + head, the queries' first. */
INLINE void delta_lengths(GLOBAL const float *mixed, GLOBAL const float *keys, GLOBAL float *factors, i32 heads, i32 width,
                          i32 columns, i32 has_keys, float epsilon, i32 item) {
    const i32 row = item / (2 * heads), which = item / heads % 2, head = item % heads;
    GLOBAL const float *own = mixed + (u64)row * (u64)columns + (u64)((which * heads + head) * width);
    if (which && has_keys) own = keys + (u64)(row * heads + head) * (u64)width;
    float lanes[LANES] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    for (i32 i = 0; i < width; i++) lanes[i % LANES] = fused(own[i], own[i], lanes[i % LANES]);
    const float factor = 1.0f / root(fold_own_lanes(lanes) + epsilon);
    factors[item] = which ? factor : factor * (1.0f / root((float)width));
}

/* item is row * decays + decay, of which a head has `each`. */
INLINE void delta_decays(GLOBAL const float *input, GLOBAL const float *bias, GLOBAL const float *rate, GLOBAL float *decays,
                         i32 count, i32 each, float lower_bound, i32 item) {
    const float number = input[item] + bias[item % count], own = rate[item % count / each];
    decays[item] = lower_bound == 0.0f ? exponential(own * softplus(number))
                                       : exponential(lower_bound * (1.0f / (1.0f + exponential(own * number))));
}

/* item is head * panels * 16 + column. */
INLINE void delta_rule(GLOBAL const float *mixed, GLOBAL const float *keys, GLOBAL const float *values,
                       GLOBAL const float *factors, GLOBAL const float *decays, GLOBAL const float *strength,
                       GLOBAL const i32 *positions, GLOBAL const i32 *sequences, GLOBAL const i32 *tokens,
                       GLOBAL float *states, GLOBAL float *output, i32 heads, i32 key_heads, i32 width, i32 value_width,
                       i32 padded, i32 columns, i32 has_keys, i32 by_row, i32 in_turn, i32 item) {
    const i32 head = item / padded, column = item % padded;
    const i32 key_head = in_turn ? head % key_heads : head / (heads / key_heads);
    const u64 all = (u64)key_heads * (u64)width;
    for (i32 row = 0; row < tokens[0]; row++) {
        GLOBAL const float *query = mixed + (u64)row * (u64)columns + (u64)(key_head * width);
        GLOBAL const float *key = has_keys ? keys + (u64)row * all + (u64)(key_head * width) : query + all;
        GLOBAL const float *own_values = has_keys ? values + (u64)row * (u64)(heads * value_width)
                                                  : mixed + (u64)row * (u64)columns + 2 * all;
        GLOBAL float *state = states + (((u64)sequences[row] * (u64)heads + (u64)head) * (u64)padded + (u64)(column / PANEL_ROWS * PANEL_ROWS)) * (u64)width + (u64)(column % PANEL_ROWS);
        const float of_query = factors[row * 2 * key_heads + key_head], of_key = factors[(row * 2 + 1) * key_heads + key_head];
        const u64 at = (u64)row * (u64)heads + (u64)head;
        GLOBAL const float *own_decays = decays + (by_row ? at * (u64)width : at);
        const float value = column < value_width ? own_values[head * value_width + column] : 0.0f;
        float chains[CHAINS] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 i = 0; i < width; i++) {
            if (positions[row] == 0) state[i * PANEL_ROWS] = 0.0f;
            const float k = key[i] * of_key;
            chains[i % CHAINS] = fused(by_row ? k * own_decays[i] : k, state[i * PANEL_ROWS], chains[i % CHAINS]);
        }
        const float found = fold_chains(chains), share = 1.0f / (1.0f + exponential(-strength[at]));
        const float error = share * (by_row ? value - found : fused(-own_decays[0], found, value));
        for (i32 c = 0; c < CHAINS; c++) chains[c] = 0.0f;
        for (i32 i = 0; i < width; i++) {
            const float decayed = own_decays[by_row ? i : 0] * state[i * PANEL_ROWS];
            const float element = fused(key[i] * of_key, error, decayed);
            state[i * PANEL_ROWS] = element;
            chains[i % CHAINS] = fused(query[i] * of_query, element, chains[i % CHAINS]);
        }
        if (column < value_width) output[at * (u64)value_width + (u64)column] = fold_chains(chains);
    }
}

/* ---- scans ---------------------------------------------------------------------------------------------- */

/* item is head * panels * 16 + column. Without steps queries come first, then keys, then inputs. */
INLINE void selective_scan(GLOBAL const float *mixed, GLOBAL const float *step, GLOBAL const float *step_bias,
                           GLOBAL const float *rate, GLOBAL const float *skip, GLOBAL const i32 *positions,
                           GLOBAL const i32 *sequences, GLOBAL const i32 *tokens, GLOBAL float *states, GLOBAL float *output,
                           i32 heads, i32 groups, i32 width, i32 value_width, i32 padded, i32 columns, i32 has_step,
                           i32 has_skip, i32 item) {
    const i32 head = item / padded, column = item % padded, of_groups = groups * width, inputs = heads * value_width;
    const i32 group_at = head / (heads / groups) * width;
    for (i32 row = 0; row < tokens[0]; row++) {
        GLOBAL const float *own = mixed + (u64)row * (u64)columns;
        GLOBAL const float *key = own + (has_step ? inputs : of_groups) + group_at;
        GLOBAL const float *query = own + (has_step ? inputs + of_groups : 0) + group_at;
        GLOBAL float *state = states + (((u64)sequences[row] * (u64)heads + (u64)head) * (u64)padded + (u64)(column / PANEL_ROWS * PANEL_ROWS)) * (u64)width + (u64)(column % PANEL_ROWS);
        const u64 at = (u64)row * (u64)heads + (u64)head;
        const float dt = has_step ? softplus(step[at] + step_bias[head]) : 1.0f, decay = exponential(rate[head] * dt);
        const float value = column < value_width ? own[(has_step ? 0 : 2 * of_groups) + head * value_width + column] : 0.0f;
        const float added = dt * value;
        float chains[CHAINS] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 i = 0; i < width; i++) {
            const float before = positions[row] == 0 ? 0.0f : state[i * PANEL_ROWS];
            const float element = fused(key[i], added, decay * before);
            state[i * PANEL_ROWS] = element;
            chains[i % CHAINS] = fused(query[i], element, chains[i % CHAINS]);
        }
        const float result = fused(has_skip ? skip[head] : 0.0f, value, fold_chains(chains));
        if (column < value_width) output[at * (u64)value_width + (u64)column] = result;
    }
}

/* item is a channel, or one that fills up the last panel. */
INLINE void channel_scan(GLOBAL const float *input, GLOBAL const float *step, GLOBAL const float *keys,
                         GLOBAL const float *queries, GLOBAL const float *rate, GLOBAL const float *skip,
                         GLOBAL const i32 *positions, GLOBAL const i32 *sequences, GLOBAL const i32 *tokens,
                         GLOBAL float *states, GLOBAL float *output, i32 channels, i32 width, i32 padded, i32 item) {
    const i32 real = item < channels;
    for (i32 row = 0; row < tokens[0]; row++) {
        GLOBAL float *state = states + ((u64)sequences[row] * (u64)padded + (u64)(item / PANEL_ROWS * PANEL_ROWS)) * (u64)width + (u64)(item % PANEL_ROWS);
        const u64 at = (u64)row * (u64)channels + (u64)item, shared = (u64)row * (u64)width;
        const float dt = softplus(real ? step[at] : 0.0f), value = real ? input[at] : 0.0f, added = dt * value;
        float chains[CHAINS] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 i = 0; i < width; i++) {
            const float before = positions[row] == 0 ? 0.0f : state[i * PANEL_ROWS];
            const float decay = exponential((real ? rate[item * width + i] : 0.0f) * dt);
            const float element = fused(keys[shared + (u64)i], added, decay * before);
            state[i * PANEL_ROWS] = element;
            chains[i % CHAINS] = fused(queries[shared + (u64)i], element, chains[i % CHAINS]);
        }
        if (real) output[at] = fused(skip[item], value, fold_chains(chains));
    }
}
