/* Panel products with AVX-512 and its VNNI; the same bits as matmul/generic.c.
 *
 * A 64-byte vector of a quantised payload holds 16 rows x 4 columns, a whole panel wide. vpdpbusd multiplies its 64
 * unsigned bytes with the 4 activations of those columns, which it broadcasts from memory by itself, and adds the four
 * products of each row to that row's 32-bit sum. So a group of 32 columns is eight of them:
 *
 *   q4    nibbles are unsigned already; the sums start at -8 * sum(x), which is what the nibbles' zero point takes off
 *   q4m   the same from 0; the minimum has its own share of the group's sum
 *   m4    one shuffle looks up 64 values + 12, which are unsigned; the sums start at -12 * sum(x)
 *   q8    w ^ 0x80 is w + 128 as unsigned; the sums start at -128 * sum(x)
 *
 * With one activation row the panels are one stream of bytes, and prefetches run ahead of it. With several, a group's
 * weights of two panels are unpacked once into 16 registers for up to ROWS_TOGETHER rows: two, so that a quad of
 * activations is loaded once for both, and the two load ports keep up with the two of the products. The sums lie in
 * memory: a load and a store beside eleven vector instructions cost nothing, and any number of rows is as good as any
 * other. */
#include <immintrin.h>
#include <string.h>

#include "../kernels.h"
#include "lookahead.h"

enum {
    QUAD_BYTES = 64, /* 16 rows x 4 columns of int8 */
    QUADS = 8,       /* of a group */
    ROWS_TOGETHER = 32,
    PANELS_TOGETHER = 2,
    FLOAT_ROWS_TOGETHER = 8,
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

/* The scales of 16 rows: float16 or, of m4, e8m0 (em_m4_scale_bits). */
INLINE __m512 load_scales(const uint8_t *at, int format) {
    if (format != EM_M4) return load_halves(at);
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __m512i below_normal = _mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(1)), 21);
    return _mm512_castsi512_ps(_mm512_max_epi32(normal, below_normal));
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
    if (format != EM_M4) return;
    const __m512i values = _mm512_broadcast_i32x4(_mm_setr_epi8(EM_M4_UNSIGNED));
    for (int quad = 0; quad < QUADS; quad++) weights[quad] = _mm512_shuffle_epi8(values, weights[quad]);
}

/* Where the integer sums of a group begin, so that they end as the dots with the signed weights. */
INLINE __m512i first_sums(const em_group *group, int format) {
    if (format == EM_Q8) return _mm512_set1_epi32(group->q8_start);
    if (format == EM_Q4) return _mm512_set1_epi32(group->q4_start);
    if (format == EM_M4) return _mm512_set1_epi32(em_m4_start(group));
    return _mm512_setzero_si512();
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
    const size_t payload_bytes = em_payload_bytes(format), scales_bytes = em_scales_bytes(format);
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    const uint8_t *minimums = scales + (size_t)group_count * scales_bytes;
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, group_count, group_count, format, panel_bytes);
        __m512i weights[QUADS];
        unpack(panel + (size_t)g * payload_bytes, format, weights);
        const __m512 weight_scale = load_scales(scales + (size_t)g * scales_bytes, format);
        const __m512 minimum = format == EM_Q4M ? load_halves(minimums + (size_t)g * scales_bytes) : _mm512_setzero_ps();
        __m512i dots = first_sums(groups + g, format);
        for (int quad = 0; quad < QUADS; quad++) {
            const int8_t *x_quad = values + (size_t)g * EM_GROUP_COLUMNS + 4 * quad;
            dots = _mm512_dpbusd_epi32(dots, weights[quad], broadcast_quad(x_quad));
        }
        sum = add_group(sum, dots, groups + g, weight_scale, minimum, format);
    }
    _mm512_storeu_ps(out, sum);
}

/* `count` activation rows, at most ROWS_TOGETHER, times `panel_count` panels, one or two. */
INLINE void quantised_rows(const uint8_t *panels, int panel_count, const em_activations *x, const int32_t *rows,
                           int32_t count, float *out, size_t out_stride, int format) {
    const size_t payload_bytes = em_payload_bytes(format), scales_bytes = em_scales_bytes(format);
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const size_t scales_at = (size_t)group_count * payload_bytes;
    const size_t minimums_at = scales_at + (size_t)group_count * scales_bytes;
    const em_group *groups[ROWS_TOGETHER] = {0};
    const int8_t *values[ROWS_TOGETHER] = {0};
    em_lookahead next[PANELS_TOGETHER];
    for (int p = 0; p < panel_count; p++) {
        const uint8_t *panel = panels + (size_t)p * panel_bytes;
        next[p] = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    }
    for (int32_t i = 0; i < count; i++) {
        groups[i] = x->groups + (size_t)rows[i] * group_count;
        values[i] = x->values + (size_t)rows[i] * group_count * EM_GROUP_COLUMNS;
        for (int p = 0; p < panel_count; p++) {
            _mm512_storeu_ps(out + (size_t)i * out_stride + p * EM_PANEL_ROWS, _mm512_setzero_ps());
        }
    }
    for (int32_t g = 0; g < group_count; g++) {
        __m512i weights[PANELS_TOGETHER][QUADS];
        __m512 weight_scales[PANELS_TOGETHER], minimums[PANELS_TOGETHER];
        for (int p = 0; p < panel_count; p++) {
            const uint8_t *panel = panels + (size_t)p * panel_bytes;
            const size_t numbers = (size_t)g * scales_bytes;
            em_prefetch_group(&next[p], group_count, group_count, format, panel_bytes);
            unpack(panel + (size_t)g * payload_bytes, format, weights[p]);
            weight_scales[p] = load_scales(panel + scales_at + numbers, format);
            minimums[p] = format == EM_Q4M ? load_halves(panel + minimums_at + numbers) : _mm512_setzero_ps();
        }
        for (int32_t i = 0; i < count; i++) {
            const em_group *group = groups[i] + g;
            const int8_t *x_group = values[i] + (size_t)g * EM_GROUP_COLUMNS;
            __m512i dots[PANELS_TOGETHER];
            for (int p = 0; p < panel_count; p++) dots[p] = first_sums(group, format);
            for (int quad = 0; quad < QUADS; quad++) {
                const __m512i x_quad = broadcast_quad(x_group + 4 * quad);
                for (int p = 0; p < panel_count; p++) {
                    dots[p] = _mm512_dpbusd_epi32(dots[p], weights[p][quad], x_quad);
                }
            }
            for (int p = 0; p < panel_count; p++) {
                float *sum = out + (size_t)i * out_stride + p * EM_PANEL_ROWS;
                const __m512 with_group =
                    add_group(_mm512_loadu_ps(sum), dots[p], group, weight_scales[p], minimums[p], format);
                _mm512_storeu_ps(sum, with_group);
            }
        }
    }
}

/* Any number of activation rows times `panel_count` panels, one or two. */
INLINE void all_quantised_rows(const uint8_t *panels, int panel_count, const em_activations *x, const int32_t *rows,
                               int32_t count, float *out, size_t out_stride, int format) {
    for (; count > 0; count -= ROWS_TOGETHER, rows += ROWS_TOGETHER, out += ROWS_TOGETHER * out_stride) {
        const int32_t now = count < ROWS_TOGETHER ? count : ROWS_TOGETHER;
        quantised_rows(panels, panel_count, x, rows, now, out, out_stride, format);
    }
}

INLINE void quantised_panels(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows,
                             int32_t count, float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    int32_t p = 0;
    if (count == 1) {
        for (; p < panel_count; p++) {
            quantised_row(panels + (size_t)p * panel_bytes, x, rows[0], out + (size_t)p * EM_PANEL_ROWS, format);
        }
        return;
    }
    for (; p + PANELS_TOGETHER <= panel_count; p += PANELS_TOGETHER) {
        all_quantised_rows(panels + (size_t)p * panel_bytes, PANELS_TOGETHER, x, rows, count,
                           out + (size_t)p * EM_PANEL_ROWS, out_stride, format);
    }
    if (p < panel_count) {
        all_quantised_rows(panels + (size_t)p * panel_bytes, 1, x, rows, count, out + (size_t)p * EM_PANEL_ROWS,
                           out_stride, format);
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

INLINE void float_panels(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows,
                         int32_t count, float *out, size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    for (int32_t p = 0; p < panel_count; p++) {
        const uint8_t *panel = panels + (size_t)p * em_panel_bytes(format, x->columns);
        float *panel_out = out + (size_t)p * EM_PANEL_ROWS;
        int32_t i = 0;
        for (; i + STEP <= count; i += STEP) {
            float_rows(panel, x, rows + i, STEP, panel_out + (size_t)i * out_stride, out_stride, format);
        }
        for (; i < count; i++) float_rows(panel, x, rows + i, 1, panel_out + (size_t)i * out_stride, out_stride, format);
    }
}

#define DEFINE_PANELS(name, format, products)                                                                       \
    void name(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,               \
              const int32_t *rows, int32_t count, float *out, size_t out_stride) {                                \
        products(em_panel(matrix, first, format), panel_count, x, rows, count, out, out_stride, format);          \
    }

DEFINE_PANELS(em_panels_f32_avx512, EM_F32, float_panels)
DEFINE_PANELS(em_panels_f16_avx512, EM_F16, float_panels)
DEFINE_PANELS(em_panels_q8_avx512, EM_Q8, quantised_panels)
DEFINE_PANELS(em_panels_q4_avx512, EM_Q4, quantised_panels)
DEFINE_PANELS(em_panels_q4m_avx512, EM_Q4M, quantised_panels)
DEFINE_PANELS(em_panels_m4_avx512, EM_M4, quantised_panels)
