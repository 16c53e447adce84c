/* One activation row times a panel of a format with a grid, with 256-bit vectors.
 *
 * Signs go to the activations here, as sizes are unsigned bytes by themselves, and two quads of them fit in an int16 (at
 * most 2 * 2 * 62 * 127 = 31496). IQ1's weights, whose bytes take one addition, are unsigned, and four quads of them fit.
 * Codes of a few groups are put together before any is used: what is read back from memory has long been written then. */
#ifndef EDGEMOE_GRID_ROW256_H
#define EDGEMOE_GRID_ROW256_H

#include "grid256.h"
#include "lookahead.h"
#include "quads256.h"

enum {
    GRID_GROUPS_TOGETHER = EM_SUPER_GROUPS,
    GRID_GROUPS_AHEAD = 16, /* of prefetches */
};

/* A block's products, pairs of them added in int16. */
INLINE __m256i grid_pairs(const grid_side *prepared, const uint8_t *payload, int side, int block, int format,
                          const int8_t *x) {
    __m256i bytes[2], inputs[2] = {broadcast_quad(x, 2 * block), broadcast_quad(x, 2 * block + 1)};
    grid_entries(prepared, payload, side, block, format, bytes);
    const __m256i marks = grid_marks(prepared, block), ones = _mm256_set1_epi8(1);
    for (int quad = 0; quad < 2; quad++) {
        if (em_grid_is_iq1(format)) bytes[quad] = _mm256_add_epi8(bytes[quad], marks);
        else inputs[quad] = _mm256_sign_epi8(inputs[quad], _mm256_or_si256(grid_negative(marks, quad), ones));
    }
    return _mm256_add_epi16(_mm256_maddubs_epi16(bytes[0], inputs[0]), _mm256_maddubs_epi16(bytes[1], inputs[1]));
}

/* The integer dots of half a group, times `ones` or the half's factors, which each row has twice. */
INLINE __m256i grid_half(const grid_side *prepared, const uint8_t *payload, int side, int half, int format, const int8_t *x,
                         __m256i ones) {
    const __m256i first = grid_pairs(prepared, payload, side, 2 * half, format, x);
    const __m256i second = grid_pairs(prepared, payload, side, 2 * half + 1, format, x);
    if (em_unsigned_most(format) <= 31) return _mm256_madd_epi16(_mm256_add_epi16(first, second), ones);
    return _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones));
}

/* Adds the share of one group to the sums of 8 rows, whose scale is `scale`. */
INLINE __m256 grid_group(__m256 sum, const grid_side *prepared, const uint8_t *panel, em_sections at, int32_t g, int side,
                         int format, const int8_t *x, const em_group *group, __m256 scale) {
    const uint8_t *payload = panel + (size_t)g * em_payload_bytes(format);
    const int has_halves = em_has_half_factors(format), zero = em_grid_is_iq1(format) ? em_unsigned_zero(format) : 0;
    __m256i ones[2] = {_mm256_set1_epi16(1), _mm256_set1_epi16(1)}, start = _mm256_set1_epi32(em_start(group, zero));
    if (has_halves) {
        const __m256i factors = grid_half_factors(panel, at, g, side, format);
        int32_t half_sums;
        memcpy(&half_sums, group->half_sums, sizeof half_sums);
        const __m256i zeros = _mm256_mullo_epi16(factors, _mm256_set1_epi16((int16_t)-zero));
        start = _mm256_madd_epi16(zeros, _mm256_set1_epi32(half_sums));
        for (int half = 0; half < 2; half++) ones[half] = half_factors(factors, half);
    } else {
        scale = grid_times_factors(scale, panel, at, g, side, format);
    }
    /* Written out, so that compilers know the halves. */
    const __m256i first = grid_half(prepared, payload, side, 0, format, x, ones[0]);
    const __m256i second = grid_half(prepared, payload, side, 1, format, x, ones[1]);
    __m256i dots = _mm256_add_epi32(first, second);
    if (zero) dots = _mm256_add_epi32(dots, start);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(scale, _mm256_set1_ps(group->scale)), sum);
}

INLINE void grid_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const em_sections at = em_sections_of(format, group_count);
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GRID_GROUPS_AHEAD);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t first = 0; first < group_count; first += GRID_GROUPS_TOGETHER) { /* which share a scale */
        grid_side prepared[GRID_GROUPS_TOGETHER][2];
        const int32_t left = group_count - first, count = left < GRID_GROUPS_TOGETHER ? left : GRID_GROUPS_TOGETHER;
        const __m256 scales[2] = {grid_scale(panel, at, first, 0, format), grid_scale(panel, at, first, 1, format)};
        for (int32_t i = 0; i < count; i++) {
            const uint8_t *payload = panel + (size_t)(first + i) * payload_bytes;
            em_prefetch_group(&next, format);
            for (int side = 0; side < 2; side++) grid_prepare(&prepared[i][side], payload, side, format);
        }
        for (int32_t i = 0; i < count; i++) {
            const int32_t g = first + i;
            const int8_t *input = values + (size_t)g * EM_GROUP_COLUMNS;
            for (int side = 0; side < 2; side++) {
                sums[side] = grid_group(sums[side], &prepared[i][side], panel, at, g, side, format, input, groups + g,
                                        scales[side]);
            }
        }
    }
    for (int side = 0; side < 2; side++) _mm256_storeu_ps(out + side * GRID_SIDE_ROWS, sums[side]);
}

#endif
