/* Panel products with 256-bit vectors; the same bits as matmul/generic.c. An including file says before what one group's
 * integer dots are:
 *
 *   static inline void unpack(const uint8_t *payload, int format, __m256i weights[QUADS]);
 *   static inline __m256i dot_group(const __m256i weights[QUADS], const int8_t *x, const em_group *group, int format);
 *
 * A 32-byte vector of a quantised payload holds 8 rows x 4 columns, so a panel has two halves; the 4 activations of
 * those columns are broadcast to every row (vpbroadcastd from memory, a load port only).
 *
 * With one activation row the panel is read once, both halves of its 16 rows together, and prefetches run ahead of it.
 * With several, the weights of 8 rows are unpacked once for up to ROWS_TOGETHER rows, one half of each group after the
 * other, so that memory delivers the next groups all the while. The sums lie in memory then: a load and a store beside
 * some twenty vector instructions cost nothing, and any number of rows is as good as any other. */
#ifndef EDGEMOE_VECTORS256_H
#define EDGEMOE_VECTORS256_H

#include "lookahead.h"

enum {
    HALF_ROWS = 8,
    ROWS_TOGETHER = 32,
    FLOAT_ROWS_TOGETHER = 4,
    /* Prefetches go this many groups ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    FLOAT_BYTES_AHEAD = 4096,
};

INLINE __m256 load_halves(const uint8_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

/* The scales of 8 rows: float16 or, of m4, e8m0 (em_m4_scale_bits). */
INLINE __m256 load_scales(const uint8_t *at, int format) {
    if (format != EM_M4) return load_halves(at);
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i below_normal = _mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(1)), 21);
    return _mm256_castsi256_ps(_mm256_max_epi32(normal, below_normal));
}

/* `sum` and one group's share. */
INLINE __m256 add_group(__m256 sum, __m256i dots, const em_group *group, __m256 weight_scale, __m256 minimum,
                        int format) {
    const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(group->scale));
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, sum);
    if (format == EM_Q4M) sum = _mm256_fmadd_ps(minimum, _mm256_set1_ps(group->scaled_sum), sum);
    return sum;
}

/* Where a group of a panel and its numbers are. */
typedef struct group_place {
    const uint8_t *payload;
    const uint8_t *scales;
    const uint8_t *minimums;
} group_place;

INLINE group_place place_of(const uint8_t *panel, int32_t group_count, int32_t g, int half, int format) {
    const size_t payload_bytes = em_payload_bytes(format), scales_bytes = em_scales_bytes(format);
    const size_t numbers = (size_t)g * scales_bytes + (size_t)half * (scales_bytes / 2);
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    return (group_place){
        .payload = panel + (size_t)g * payload_bytes + (size_t)half * (QUAD_BYTES / 2),
        .scales = scales + numbers,
        .minimums = scales + (size_t)group_count * scales_bytes + numbers, /* of q4m: as large as scales */
    };
}

INLINE void quantised_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, format, panel_bytes, GROUPS_AHEAD);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, group_count, format, panel_bytes);
        for (int half = 0; half < 2; half++) {
            const group_place at = place_of(panel, group_count, g, half, format);
            __m256i weights[QUADS];
            unpack(at.payload, format, weights);
            const __m256i dots = dot_group(weights, values + (size_t)g * EM_GROUP_COLUMNS, groups + g, format);
            const __m256 minimum = format == EM_Q4M ? load_halves(at.minimums) : _mm256_setzero_ps();
            sums[half] = add_group(sums[half], dots, groups + g, load_scales(at.scales, format), minimum, format);
        }
    }
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + half * HALF_ROWS, sums[half]);
}

/* `count` activation rows, at most ROWS_TOGETHER, times a panel. */
INLINE void quantised_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count,
                           float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    em_lookahead next = em_look_ahead(panel, group_count, format, panel_bytes, GROUPS_AHEAD);
    const em_group *groups[ROWS_TOGETHER] = {0};
    const int8_t *values[ROWS_TOGETHER] = {0};
    for (int32_t i = 0; i < count; i++) {
        groups[i] = x->groups + (size_t)rows[i] * group_count;
        values[i] = x->values + (size_t)rows[i] * group_count * EM_GROUP_COLUMNS;
        for (int half = 0; half < 2; half++) {
            _mm256_storeu_ps(out + (size_t)i * out_stride + half * HALF_ROWS, _mm256_setzero_ps());
        }
    }
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, group_count, format, panel_bytes);
        for (int half = 0; half < 2; half++) {
            const group_place at = place_of(panel, group_count, g, half, format);
            __m256i weights[QUADS];
            unpack(at.payload, format, weights);
            const __m256 weight_scale = load_scales(at.scales, format);
            const __m256 minimum = format == EM_Q4M ? load_halves(at.minimums) : _mm256_setzero_ps();
            for (int32_t i = 0; i < count; i++) {
                const em_group *group = groups[i] + g;
                float *sum = out + (size_t)i * out_stride + half * HALF_ROWS;
                const __m256i dots = dot_group(weights, values[i] + (size_t)g * EM_GROUP_COLUMNS, group, format);
                _mm256_storeu_ps(sum, add_group(_mm256_loadu_ps(sum), dots, group, weight_scale, minimum, format));
            }
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
        const int32_t now = count < ROWS_TOGETHER ? count : ROWS_TOGETHER;
        quantised_rows(panel, x, rows, now, out, out_stride, format);
    }
}

/* 8 rows of one column of f32 or f16 weights. */
INLINE __m256 load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return load_halves(panel + 2 * index);
    return _mm256_loadu_ps((const float *)(const void *)panel + index);
}

/* `count` activation rows, at most FLOAT_ROWS_TOGETHER, times one panel. */
INLINE void float_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                       size_t out_stride, int format) {
    const float *inputs[FLOAT_ROWS_TOGETHER];
    __m256 low[FLOAT_ROWS_TOGETHER], high[FLOAT_ROWS_TOGETHER];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns;
        low[t] = high[t] = _mm256_setzero_ps();
    }
    for (int32_t column = 0; column < x->columns; column++) {
        const size_t index = (size_t)column * EM_PANEL_ROWS;
        if (count == 1) {
            _mm_prefetch((const char *)panel + index * (format == EM_F16 ? 2 : 4) + FLOAT_BYTES_AHEAD, _MM_HINT_T0);
        }
        const __m256 low_weights = load_weights(panel, index, format);
        const __m256 high_weights = load_weights(panel, index + HALF_ROWS, format);
        for (int t = 0; t < count; t++) {
            const __m256 value = _mm256_set1_ps(inputs[t][column]);
            low[t] = _mm256_fmadd_ps(low_weights, value, low[t]);
            high[t] = _mm256_fmadd_ps(high_weights, value, high[t]);
        }
    }
    for (int t = 0; t < count; t++) {
        _mm256_storeu_ps(out + t * out_stride, low[t]);
        _mm256_storeu_ps(out + t * out_stride + HALF_ROWS, high[t]);
    }
}

INLINE void float_panel(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count, float *out,
                        size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    for (; count >= STEP; count -= STEP, rows += STEP, out += STEP * out_stride) {
        float_rows(panel, x, rows, STEP, out, out_stride, format);
    }
    for (; count > 0; count--, rows++, out += out_stride) float_rows(panel, x, rows, 1, out, out_stride, format);
}

#define DEFINE_PANELS(name, format, product)                                                              \
    void name(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,      \
              const int32_t *rows, int32_t count, float *out, size_t out_stride) {                       \
        for (int32_t p = 0; p < panel_count; p++, out += EM_PANEL_ROWS) {                                \
            product(em_panel(matrix, first + p, format), x, rows, count, out, out_stride, format);       \
        }                                                                                                \
    }

#endif
