/* Formats with a grid (grid.h) with NEON: 4 rows of a panel's group, a quarter of it.
 *
 * Entries are loaded one by one; unzipping two vectors of them gives the two quads of 8 columns. A table lookup gives each
 * byte of a quad its row's byte of signs, a test the bit of its column. */
#ifndef EDGEMOE_GRID_NEON_H
#define EDGEMOE_GRID_NEON_H

#include "../neon.h"
#include "grid.h"

enum { GRID_QUARTER_ROWS = 4, GRID_QUARTER_BYTES = 16, GRID_BLOCKS = 4 /* of 8 columns */ };

/* IQ1's nibbles of a quarter: byte r * 4 + n. */
INLINE uint8x16_t grid_nibbles(const uint8_t *payload, int quarter, int format) {
    const uint8x16_t both = vld1q_u8(em_grid_after(payload, format) + quarter / 2 * 16);
    return vandq_u8(vshlq_u8(both, vdupq_n_s8((int8_t)(quarter % 2 * -4))), vdupq_n_u8(15));
}

/* Byte r * 4 + n of a quarter: the signs of code n's block or, of IQ1, what its weights are beside the grid's bytes. */
INLINE uint8x16_t grid_marks(const uint8_t *payload, int quarter, int format) {
    if (em_grid_is_iq1(format)) {
        uint8x16_t nibbles = grid_nibbles(payload, quarter, format);
        if (format == EM_IQ1S) { /* the last nibble's for all */
            static const uint8_t last[16] = {3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15, 15, 15, 15};
            nibbles = vqtbl1q_u8(nibbles, vld1q_u8(last));
        }
        const uint8x16_t less = vtstq_u8(nibbles, vdupq_n_u8(8));
        return vreinterpretq_u8_s8(vbslq_s8(less, vdupq_n_s8(-EM_GRID_ZERO - 1), vdupq_n_s8(-EM_GRID_ZERO + 1)));
    }
    const uint8x16_t signs = vld1q_u8(em_grid_signs(payload, format) + quarter * GRID_QUARTER_BYTES);
    if (!em_grid_has_parity(format)) return signs;
    const uint8x16_t own = vandq_u8(signs, vdupq_n_u8(127));
    return vorrq_u8(own, vshlq_n_u8(vcntq_u8(own), 7));
}

/* The grid's bytes for the two quads of a block. */
INLINE void grid_entries(const uint8_t *payload, int quarter, int block, int format, uint8x16_t quads[2]) {
    const int first = quarter * GRID_QUARTER_ROWS;
    uint32_t entries[2][GRID_QUARTER_ROWS];
    if (em_grid_is_iq3(format)) {
        for (int row = 0; row < GRID_QUARTER_ROWS; row++) {
            for (int quad = 0; quad < 2; quad++) {
                const unsigned code = em_grid_code(payload, format, first + row, 2 * block + quad);
                entries[quad][row] = (uint32_t)em_grid_of_four(format)[code];
            }
        }
        for (int quad = 0; quad < 2; quad++) quads[quad] = vreinterpretq_u8_u32(vld1q_u32(entries[quad]));
        return;
    }
    uint64x1_t rows[GRID_QUARTER_ROWS];
    for (int row = 0; row < GRID_QUARTER_ROWS; row++) {
        rows[row] = vld1_u64(em_grid_of_eight(format) + em_grid_code(payload, format, first + row, block));
    }
    const uint32x4_t low = vreinterpretq_u32_u64(vcombine_u64(rows[0], rows[1]));
    const uint32x4_t high = vreinterpretq_u32_u64(vcombine_u64(rows[2], rows[3]));
    quads[0] = vreinterpretq_u8_u32(vuzp1q_u32(low, high));
    quads[1] = vreinterpretq_u8_u32(vuzp2q_u32(low, high));
}

/* The weights of 4 rows x 32 columns, one vector for each quad of columns. */
INLINE void grid_unpack(const uint8_t *payload, int quarter, int format, int8x16_t weights[2 * GRID_BLOCKS]) {
    static const uint8_t places[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    static const uint8_t bits[2][16] = {{1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8},
                                        {16, 32, 64, 128, 16, 32, 64, 128, 16, 32, 64, 128, 16, 32, 64, 128}};
    const uint8x16_t marks = grid_marks(payload, quarter, format);
    for (int block = 0; block < GRID_BLOCKS; block++) {
        uint8x16_t quads[2];
        grid_entries(payload, quarter, block, format, quads);
        const uint8x16_t own = vqtbl1q_u8(marks, vaddq_u8(vld1q_u8(places), vdupq_n_u8((uint8_t)block)));
        for (int quad = 0; quad < 2; quad++) {
            const int8x16_t size = vreinterpretq_s8_u8(quads[quad]);
            const uint8x16_t negative = vtstq_u8(own, vld1q_u8(bits[quad]));
            weights[2 * block + quad] = em_grid_is_iq1(format) ? vaddq_s8(size, vreinterpretq_s8_u8(own))
                                                               : vbslq_s8(negative, vnegq_s8(size), size);
        }
    }
}

/* Words of iq1m for 4 rows. */
INLINE uint16x4_t grid_scale_words(const uint8_t *scales, int32_t g, int word, int quarter) {
    const uint8_t *at = scales + (size_t)(g / EM_SUPER_GROUPS) * 128 + (size_t)word * 32 + (size_t)quarter * 8;
    return vreinterpret_u16_u8(vld1_u8(at));
}

/* The scale of 4 rows for group g, times the format's unit. */
INLINE float32x4_t grid_scale(const uint8_t *panel, em_sections at, int32_t g, int quarter, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *scales = panel + at.scales;
    const float unit = 1.0f / (float)(1 << numbers.unit_shift);
    if (numbers.scale != EM_SCALE_WORDS) {
        return vmulq_n_f32(em_load_four_halves(scales + (size_t)(g >> numbers.scale_shift) * 32 + (size_t)quarter * 8), unit);
    }
    uint16x4_t bits = vdup_n_u16(0);
    for (int w = 0; w < 4; w++) {
        const uint16x4_t top = vand_u16(grid_scale_words(scales, g, w, quarter), vdup_n_u16(0xf000));
        bits = vorr_u16(bits, vshl_u16(top, vdup_n_s16((int16_t)(4 * w - 12))));
    }
    return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(bits)), unit);
}

/* Bytes 0 or 1 as bits of a number for each row, the first lowest. */
INLINE uint32x4_t grid_row_bits(uint8x16_t bytes) {
    static const uint8_t values[16] = {1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8};
    return vpaddlq_u16(vpaddlq_u8(vmulq_u8(bytes, vld1q_u8(values))));
}

/* The factors of 4 rows, in half `half` of group g: 2k + 1. */
INLINE int32x4_t grid_factors(const uint8_t *panel, em_sections at, int32_t g, int half, int quarter, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *payload = panel + (size_t)g * em_payload_bytes(format);
    const int32_t own = g * numbers.halves + half;
    uint32x4_t k;
    if (numbers.scale == EM_SCALE_WORDS) {
        const uint16x4_t words = grid_scale_words(panel + at.scales, g, own % (2 * EM_SUPER_GROUPS) / 4, quarter);
        k = vmovl_u16(vand_u16(vshl_u16(words, vdup_n_s16((int16_t)(-3 * (own % 4)))), vdup_n_u16(7)));
    } else if (numbers.factor == EM_FACTOR_PAIRS) {
        uint32_t pairs;
        memcpy(&pairs, panel + at.factors + (size_t)(own / 2) * EM_PANEL_ROWS + (size_t)quarter * 4, sizeof pairs);
        const uint32x4_t bytes = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(pairs))));
        k = vandq_u32(vshlq_u32(bytes, vdupq_n_s32(own % 2 * -4)), vdupq_n_u32(15));
    } else if (format == EM_IQ1S) {
        static const uint8_t three[16] = {1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0};
        k = grid_row_bits(vandq_u8(vshrq_n_u8(grid_nibbles(payload, quarter, format), 3), vld1q_u8(three)));
    } else {
        k = grid_row_bits(vshrq_n_u8(vld1q_u8(em_grid_signs(payload, format) + quarter * GRID_QUARTER_BYTES), 7));
    }
    return vreinterpretq_s32_u32(vorrq_u32(vaddq_u32(k, k), vdupq_n_u32(1)));
}

#endif
