/* Panel products with AVX-512 and its VNNI; the same bits as matmul/generic.c.
 *
 * A 64-byte vector of a quantised payload holds 16 rows x 4 columns, a whole panel wide. vpdpbusd multiplies its 64
 * unsigned bytes with the 4 activations of those columns, which it broadcasts from memory by itself, and adds the four
 * products of each row to that row's 32-bit sum. So a group of 32 columns is eight of them:
 *
 *   q4    nibbles are unsigned already; the sums start at -8 * sum(x), which is what the nibbles' zero point takes off
 *   q4m   the same from 0; the minimum has its own share of the group's sum
 *   q8    w ^ 0x80 is w + 128 as unsigned; the sums start at -128 * sum(x)
 *
 * With one activation row the panels are one stream of bytes, and prefetches run ahead of it. With several, a group's
 * weights are unpacked once for up to TILE activation rows, all of whose sums stay in registers: 8 vectors of weights,
 * TILE of sums, the rest for the products under way; the panel then comes from the second-level cache at the latest. */
#include <immintrin.h>
#include <string.h>

#include "../kernels.h"
#include "lookahead.h"

enum {
    QUAD_BYTES = 64, /* 16 rows x 4 columns of int8 */
    QUADS = 8,       /* of a group */
    TILE = 16,
    /* Prefetches go this far ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    FLOAT_BYTES_AHEAD = 4096,
    LINE_BYTES = 64,
};

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i load(const uint8_t *at) { return _mm512_loadu_si512(at); }

INLINE __m512i broadcast_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

INLINE __m512 load_halves(const uint8_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

/* The weights of 16 rows x 32 columns as unsigned bytes, one vector per quad of columns. */
INLINE void unpack(const uint8_t *payload, int format, __m512i weights[QUADS]) {
    if (format == EM_Q8) {
        const __m512i sign = _mm512_set1_epi8((char)0x80);
        for (int quad = 0; quad < QUADS; quad++) {
            weights[quad] = _mm512_xor_si512(load(payload + quad * QUAD_BYTES), sign);
        }
        return;
    }
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    for (int quad = 0; quad < QUADS / 2; quad++) {
        const __m512i bytes = load(payload + quad * QUAD_BYTES);
        weights[quad] = _mm512_and_si512(bytes, low_nibbles);
        weights[quad + QUADS / 2] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_nibbles);
    }
}

/* Where the integer sums of a group begin, so that they end as the dots with the signed weights. */
INLINE __m512i first_sums(const em_group *group, int format) {
    if (format == EM_Q4M) return _mm512_setzero_si512();
    return _mm512_set1_epi32(format == EM_Q8 ? -16 * group->sum_times_8 : -group->sum_times_8);
}

/* The integer dots of 16 rows with the 32 activations at `x`. */
INLINE __m512i dot_group(const __m512i weights[QUADS], const int8_t *x, const em_group *group, int format) {
    __m512i sums = first_sums(group, format);
    for (int quad = 0; quad < QUADS; quad++) {
        sums = _mm512_dpbusd_epi32(sums, weights[quad], broadcast_quad(x + 4 * quad));
    }
    return sums;
}

/* `sum` and one group's share. */
INLINE __m512 add_group(__m512 sum, __m512i dots, const em_group *group, __m512 weight_scale, __m512 minimum,
                        int format) {
    const __m512 scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(group->scale));
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, sum);
    if (format == EM_Q4M) sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(group->scaled_sum), sum);
    return sum;
}

/* `count` activation rows times one panel; with one row, prefetches run ahead in the stream of panels. */
INLINE void quantised_tile(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                           size_t out_stride, int format) {
    const size_t payload_bytes = format == EM_Q8 ? 512 : 256;
    const int32_t group_count = x->group_count;
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    const uint8_t *minimums = scales + (size_t)group_count * 32;
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    em_lookahead next = em_look_ahead(panel, group_count, payload_bytes, panel_bytes, GROUPS_AHEAD);
    const em_group *groups[TILE];
    const int8_t *values[TILE];
    __m512 sums[TILE];
    for (int t = 0; t < count; t++) {
        groups[t] = x->groups + (size_t)rows[t] * group_count;
        values[t] = x->values + (size_t)rows[t] * group_count * EM_GROUP_COLUMNS;
        sums[t] = _mm512_setzero_ps();
    }
    for (int32_t g = 0; g < group_count; g++) {
        if (count == 1) em_prefetch_group(&next, group_count, payload_bytes, panel_bytes, format == EM_Q4M);
        __m512i weights[QUADS];
        unpack(panel + (size_t)g * payload_bytes, format, weights);
        const __m512 weight_scale = load_halves(scales + (size_t)g * 32);
        const __m512 minimum = format == EM_Q4M ? load_halves(minimums + (size_t)g * 32) : _mm512_setzero_ps();
        for (int t = 0; t < count; t++) {
            const em_group *group = groups[t] + g;
            const __m512i dots = dot_group(weights, values[t] + (size_t)g * EM_GROUP_COLUMNS, group, format);
            sums[t] = add_group(sums[t], dots, group, weight_scale, minimum, format);
        }
    }
    for (int t = 0; t < count; t++) _mm512_storeu_ps(out + t * out_stride, sums[t]);
}

INLINE void quantised_panels(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows,
                             int32_t count, float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    for (int32_t p = 0; p < panel_count; p++, panels += panel_bytes, out += EM_PANEL_ROWS) {
        int32_t i = 0;
        for (; i + TILE <= count; i += TILE) {
            quantised_tile(panels, x, rows + i, TILE, out + i * out_stride, out_stride, format);
        }
        for (; i + TILE / 4 <= count; i += TILE / 4) {
            quantised_tile(panels, x, rows + i, TILE / 4, out + i * out_stride, out_stride, format);
        }
        for (; i < count; i++) quantised_tile(panels, x, rows + i, 1, out + i * out_stride, out_stride, format);
    }
}

/* 16 rows of one column of f32 or f16 weights. */
INLINE __m512 load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return load_halves(panel + 2 * index);
    return _mm512_loadu_ps(panel + 4 * index);
}

INLINE void float_tile(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                       size_t out_stride, int format) {
    const float *inputs[TILE];
    __m512 sums[TILE];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns;
        sums[t] = _mm512_setzero_ps();
    }
    for (int32_t column = 0; column < x->columns; column++) {
        if (count == 1) {
            const size_t column_bytes = format == EM_F16 ? 32 : 64;
            _mm_prefetch((const char *)panel + (size_t)column * column_bytes + FLOAT_BYTES_AHEAD, _MM_HINT_T0);
        }
        const __m512 weights = load_weights(panel, (size_t)column * EM_PANEL_ROWS, format);
        for (int t = 0; t < count; t++) sums[t] = _mm512_fmadd_ps(weights, _mm512_set1_ps(inputs[t][column]), sums[t]);
    }
    for (int t = 0; t < count; t++) _mm512_storeu_ps(out + t * out_stride, sums[t]);
}

INLINE void float_panels(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows,
                         int32_t count, float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    for (int32_t p = 0; p < panel_count; p++, panels += panel_bytes, out += EM_PANEL_ROWS) {
        int32_t i = 0;
        for (; i + TILE <= count; i += TILE) {
            float_tile(panels, x, rows + i, TILE, out + i * out_stride, out_stride, format);
        }
        for (; i + TILE / 4 <= count; i += TILE / 4) {
            float_tile(panels, x, rows + i, TILE / 4, out + i * out_stride, out_stride, format);
        }
        for (; i < count; i++) float_tile(panels, x, rows + i, 1, out + i * out_stride, out_stride, format);
    }
}

#define DEFINE_PANELS(name, format, products)                                                                         \
    void name(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows, int32_t count, \
              float *out, size_t out_stride) {                                                                        \
        products(panels, panel_count, x, rows, count, out, out_stride, format);                                       \
    }

DEFINE_PANELS(em_panels_f32_avx512, EM_F32, float_panels)
DEFINE_PANELS(em_panels_f16_avx512, EM_F16, float_panels)
DEFINE_PANELS(em_panels_q8_avx512, EM_Q8, quantised_panels)
DEFINE_PANELS(em_panels_q4_avx512, EM_Q4, quantised_panels)
DEFINE_PANELS(em_panels_q4m_avx512, EM_Q4M, quantised_panels)
