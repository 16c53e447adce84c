/* Formats with a trellis (trellis.h) with NEON: 4 rows of a panel's payload, a quarter of it, as in trellis256.h, but that
 * values stay signed. A look-up gives 0 for an index above 15, so nibbles have no other bits. */
#ifndef EDGEMOE_TRELLIS_NEON_H
#define EDGEMOE_TRELLIS_NEON_H

#include "../neon.h"
#include "trellis.h"

enum { TRELLIS_QUARTER_BYTES = EM_LINE_BYTES / 4, TRELLIS_QUADS = EM_GROUP_COLUMNS / 4 /* of a group */ };

/* Both tables of each weight of a step. */
typedef struct trellis_tables {
    int8x16_t first[EM_TRELLIS_WEIGHTS], second[EM_TRELLIS_WEIGHTS];
} trellis_tables;

INLINE trellis_tables trellis_load_tables(const uint8_t *head, int format) {
    trellis_tables tables;
    for (int v = 0; v < em_trellis_weights(format); v++) {
        tables.first[v] = vreinterpretq_s8_u8(vld1q_u8(head + v * 2 * EM_TRELLIS_TABLE));
        tables.second[v] = vreinterpretq_s8_u8(vld1q_u8(head + (v * 2 + 1) * EM_TRELLIS_TABLE));
    }
    return tables;
}

/* The planes of a payload, the last one first, and behind them the last one of the payload before. */
INLINE void trellis_planes(const uint8_t *panel, int format, size_t block, int quarter, uint8x16_t planes[EM_TRELLIS_PLANES + 1]) {
    const int bits = em_numbers(format).bits;
    const uint8_t *payload = panel + block * em_payload_bytes(format) + quarter * TRELLIS_QUARTER_BYTES;
    for (int plane = 0; plane < bits; plane++) planes[plane] = vld1q_u8(payload + (bits - 1 - plane) * EM_LINE_BYTES);
    planes[bits] = vld1q_u8(em_trellis_last_plane(panel, format, block) + quarter * TRELLIS_QUARTER_BYTES);
}

/* The nibbles after a step. */
INLINE uint8x16_t trellis_nibble(const uint8x16_t planes[EM_TRELLIS_PLANES + 1], int format, int step) {
    const int shift = em_trellis_shift(format, step), plane = shift / 8, from = shift % 8, low_bits = 8 - from;
    const uint8x16_t nibbles = vdupq_n_u8(15), moved = vshlq_u8(planes[plane], vdupq_n_s8((int8_t)-from)); /* to the right */
    if (low_bits == 4) return moved;
    if (low_bits > 4) return vandq_u8(moved, nibbles);
    return vandq_u8(vorrq_u8(moved, vshlq_u8(planes[plane + 1], vdupq_n_s8((int8_t)low_bits))), nibbles);
}

/* The weights of quad `quad` of a payload. */
INLINE int8x16_t trellis_quad(const trellis_tables *tables, const uint8x16_t planes[EM_TRELLIS_PLANES + 1], int format, int quad) {
    const int each = em_trellis_weights(format), step = quad / each, v = quad % each;
    const uint8x16_t last = trellis_nibble(planes, format, step);
    const uint8x16_t before = trellis_nibble(planes, format, step - em_numbers(format).lag);
    return vaddq_s8(vqtbl1q_s8(tables->first[v], veorq_u8(last, before)), vqtbl1q_s8(tables->second[v], before));
}

/* The scales of 4 rows for group g, times their factors. */
INLINE float32x4_t trellis_scale(const uint8_t *panel, em_sections at, int32_t g, int quarter, int format) {
    const size_t shared = (size_t)(g >> em_numbers(format).scale_shift) * em_scales_bytes(format);
    const float32x4_t scale = em_load_four_halves(panel + at.scales + shared + (size_t)quarter * 8);
    if (em_numbers(format).factor == EM_FACTOR_NONE) return scale;
    uint32_t four;
    memcpy(&four, em_trellis_factors(panel, at, format, g) + quarter * 4, sizeof four);
    const uint8x8_t nibbles = vcreate_u8((four >> em_trellis_factor_bit(g) & 0x0f0f0f0f) + 0x01010101);
    return vmulq_f32(scale, vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(nibbles)))));
}

#endif
