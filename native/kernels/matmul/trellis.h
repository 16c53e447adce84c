/* Formats with a trellis: what edgemoe/kernels/trellis.py says, one weight at a time.
 *
 * A chain is a row's every fourth column, byte r * 4 + c of a payload's planes. After each step its nibble is the last 4 bits
 * of its stream; a step's weights depend on that one and on the one `lag` steps before. A payload has EM_TRELLIS_STEPS
 * steps, and nibbles need no more of the payload before than its last plane, so that any payload can be entered. */
#ifndef EDGEMOE_TRELLIS_H
#define EDGEMOE_TRELLIS_H

#include <string.h>

#include "../half.h"
#include "../kernels.h"
/* Steps and weights are known when this is compiled only where loops over them are unrolled, which compilers may not do by
 * themselves: with shifts and tables by number, products come to a fourth of their speed. */
#include "../unrolled.h"

enum {
    EM_TRELLIS_STEPS = 8,
    EM_TRELLIS_LAGS = 4,    /* the longest lag */
    EM_TRELLIS_PLANES = 4,  /* the most of a payload */
    EM_TRELLIS_WEIGHTS = 4, /* the most of a step */
    EM_TRELLIS_TABLE = 16,
    EM_TRELLIS_SHARE = 8, /* groups that share a scale, if they have factors */
};

/* The weights of a step. */
static inline int em_trellis_weights(int32_t format) { return 1 << em_numbers(format).block_shift; }

/* The bits of a stream behind those of the nibble after step `step`, which is negative in the payload before. */
static inline int em_trellis_shift(int32_t format, int step) {
    return em_numbers(format).bits * (EM_TRELLIS_STEPS - 1 - step);
}

/* What is before the first payload of a panel. */
static const uint8_t em_trellis_zeros[EM_LINE_BYTES] = {0};

/* The last plane of the payload before payload `block`. */
static inline const uint8_t *em_trellis_last_plane(const uint8_t *panel, int32_t format, size_t block) {
    return block == 0 ? em_trellis_zeros : panel + block * em_payload_bytes(format) - EM_LINE_BYTES;
}

/* The nibble of a chain after a step of a payload. */
static inline unsigned em_trellis_nibble(const uint8_t *panel, int32_t format, size_t block, int step, int chain) {
    const uint8_t *payload = panel + block * em_payload_bytes(format);
    uint64_t stream = em_trellis_last_plane(panel, format, block)[chain];
    for (int plane = 0; plane < em_numbers(format).bits; plane++) stream = stream << 8 | payload[plane * EM_LINE_BYTES + chain];
    return stream >> em_trellis_shift(format, step) & 15;
}

/* The value of a row's column; `head` are the tables. */
static inline int em_trellis_value(const uint8_t *head, const uint8_t *panel, int32_t format, int row, int32_t column) {
    const int weights = em_trellis_weights(format), quad = column / 4 % (EM_TRELLIS_STEPS * weights);
    const size_t block = (size_t)(column / EM_GROUP_COLUMNS / weights);
    const int step = quad / weights, chain = row * 4 + column % 4;
    const unsigned last = em_trellis_nibble(panel, format, block, step, chain);
    const unsigned before = em_trellis_nibble(panel, format, block, step - em_numbers(format).lag, chain);
    const uint8_t *tables = head + (size_t)(quad % weights) * 2 * EM_TRELLIS_TABLE;
    return (int8_t)(tables[last ^ before] + tables[EM_TRELLIS_TABLE + before]);
}

/* The values of a group, in quads: column c of row r is number c / 4 * 64 + r * 4 + c % 4. */
static inline void em_trellis_unpack(const uint8_t *head, const uint8_t *panel, int32_t format, int32_t g, int8_t *values) {
    for (int row = 0; row < EM_PANEL_ROWS; row++) {
        for (int c = 0; c < EM_GROUP_COLUMNS; c++) {
            const int value = em_trellis_value(head, panel, format, row, g * EM_GROUP_COLUMNS + c);
            values[c / 4 * EM_LINE_BYTES + row * 4 + c % 4] = (int8_t)value;
        }
    }
}

/* Where the nibbles of the factors of group g lie, the first row's first, and the lowest of their bits. */
static inline const uint8_t *em_trellis_factors(const uint8_t *panel, em_sections at, int32_t format, int32_t g) {
    const uint8_t *shared = panel + at.scales + (size_t)(g / EM_TRELLIS_SHARE) * em_scales_bytes(format);
    return shared + 2 * EM_PANEL_ROWS + (size_t)(g % EM_TRELLIS_SHARE / 2) * EM_PANEL_ROWS;
}

static inline int em_trellis_factor_bit(int32_t g) { return g % 2 * 4; }

/* The scale of a row for group g, times its factor. */
static inline float em_trellis_scale(const uint8_t *panel, em_sections at, int32_t format, int32_t g, int row) {
    uint16_t half;
    memcpy(&half, panel + at.scales + (size_t)(g >> em_numbers(format).scale_shift) * em_scales_bytes(format) + 2 * (size_t)row,
           sizeof half);
    const float scale = em_half_to_float(half);
    if (em_numbers(format).factor == EM_FACTOR_NONE) return scale;
    return scale * (float)((em_trellis_factors(panel, at, format, g)[row] >> em_trellis_factor_bit(g) & 15) + 1);
}

#endif
