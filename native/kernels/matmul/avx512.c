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
 * weights are unpacked once into 8 registers for up to ROWS_TOGETHER rows. Their sums lie in memory: a load and a store
 * beside eleven vector instructions cost nothing, and any number of rows is as good as any other. */
#include <immintrin.h>
#include <string.h>

#include "../kernels.h"
#include "lookahead.h"

enum {
    QUAD_BYTES = 64, /* 16 rows x 4 columns of int8 */
    QUADS = 8,       /* of a group */
    ROWS_TOGETHER = 32,
    FLOAT_ROWS_TOGETHER = 8,
    SECTION_ROW_BYTES = 2 * EM_PANEL_ROWS, /* scales or minimums of a group */
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

/* One activation row times one panel, with prefetches ahead in the stream of panels. */
INLINE void quantised_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t payload_bytes = format == EM_Q8 ? 512 : 256, panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    const uint8_t *minimums = scales + (size_t)group_count * SECTION_ROW_BYTES;
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, payload_bytes, panel_bytes, GROUPS_AHEAD);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, group_count, payload_bytes, panel_bytes, format == EM_Q4M);
        __m512i weights[QUADS];
        unpack(panel + (size_t)g * payload_bytes, format, weights);
        const __m512 weight_scale = load_halves(scales + (size_t)g * SECTION_ROW_BYTES);
        const __m512 minimum =
            format == EM_Q4M ? load_halves(minimums + (size_t)g * SECTION_ROW_BYTES) : _mm512_setzero_ps();
        const __m512i dots = dot_group(weights, values + (size_t)g * EM_GROUP_COLUMNS, groups + g, format);
        sum = add_group(sum, dots, groups + g, weight_scale, minimum, format);
    }
    _mm512_storeu_ps(out, sum);
}

/* `count` activation rows, at most ROWS_TOGETHER, times one panel. */
INLINE void quantised_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count,
                           float *out, size_t out_stride, int format) {
    const size_t payload_bytes = format == EM_Q8 ? 512 : 256, panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    const uint8_t *minimums = scales + (size_t)group_count * SECTION_ROW_BYTES;
    em_lookahead next = em_look_ahead(panel, group_count, payload_bytes, panel_bytes, GROUPS_AHEAD);
    const em_group *groups[ROWS_TOGETHER] = {0};
    const int8_t *values[ROWS_TOGETHER] = {0};
    for (int32_t i = 0; i < count; i++) {
        groups[i] = x->groups + (size_t)rows[i] * group_count;
        values[i] = x->values + (size_t)rows[i] * group_count * EM_GROUP_COLUMNS;
        _mm512_storeu_ps(out + (size_t)i * out_stride, _mm512_setzero_ps());
    }
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, group_count, payload_bytes, panel_bytes, format == EM_Q4M);
        __m512i weights[QUADS];
        unpack(panel + (size_t)g * payload_bytes, format, weights);
        const __m512 weight_scale = load_halves(scales + (size_t)g * SECTION_ROW_BYTES);
        const __m512 minimum =
            format == EM_Q4M ? load_halves(minimums + (size_t)g * SECTION_ROW_BYTES) : _mm512_setzero_ps();
        for (int32_t i = 0; i < count; i++) {
            const em_group *group = groups[i] + g;
            float *sum = out + (size_t)i * out_stride;
            const __m512i dots = dot_group(weights, values[i] + (size_t)g * EM_GROUP_COLUMNS, group, format);
            _mm512_storeu_ps(sum, add_group(_mm512_loadu_ps(sum), dots, group, weight_scale, minimum, format));
        }
    }
}

INLINE void quantised_panel(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count,
                            float *out, size_t out_stride, int format) {
    if (count == 1) {
        quantised_row(panel, x, rows[0], out, format);
        return;
    }
    for (; count > 0; count -= ROWS_TOGETHER, rows += ROWS_TOGETHER, out += ROWS_TOGETHER * out_stride) {
        quantised_rows(panel, x, rows, count < ROWS_TOGETHER ? count : ROWS_TOGETHER, out, out_stride, format);
    }
}

/* 16 rows of one column of f32 or f16 weights. */
INLINE __m512 load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return load_halves(panel + 2 * index);
    return _mm512_loadu_ps(panel + 4 * index);
}

/* `count` activation rows, at most FLOAT_ROWS_TOGETHER, times one panel. */
INLINE void float_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                       size_t out_stride, int format) {
    const float *inputs[FLOAT_ROWS_TOGETHER];
    __m512 sums[FLOAT_ROWS_TOGETHER];
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

INLINE void float_panel(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count, float *out,
                        size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    for (; count >= STEP; count -= STEP, rows += STEP, out += STEP * out_stride) {
        float_rows(panel, x, rows, STEP, out, out_stride, format);
    }
    for (; count > 0; count--, rows++, out += out_stride) float_rows(panel, x, rows, 1, out, out_stride, format);
}

#define DEFINE_PANELS(name, format, product)                                                                          \
    void name(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows, int32_t count, \
              float *out, size_t out_stride) {                                                                        \
        for (int32_t p = 0; p < panel_count; p++, out += EM_PANEL_ROWS) {                                             \
            product(panels + (size_t)p * em_panel_bytes(format, x->columns), x, rows, count, out, out_stride, format); \
        }                                                                                                             \
    }

DEFINE_PANELS(em_panels_f32_avx512, EM_F32, float_panel)
DEFINE_PANELS(em_panels_f16_avx512, EM_F16, float_panel)
DEFINE_PANELS(em_panels_q8_avx512, EM_Q8, quantised_panel)
DEFINE_PANELS(em_panels_q4_avx512, EM_Q4, quantised_panel)
DEFINE_PANELS(em_panels_q4m_avx512, EM_Q4M, quantised_panel)
