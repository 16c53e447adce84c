/* Panel products with AVX2, FMA and F16C; the same bits as matmul/generic.c.
 *
 * A 32-byte vector of a quantised payload holds 8 rows x 4 columns; the 4 activations of those columns are
 * broadcast to every row (vpbroadcastd from memory, a load port only).
 *
 *   q4, q4m  vpmaddubsw(nibbles, x): two products of at most 15 * 127 in an int16; the 8 quads of a group add up to
 *            at most 8 * 2 * 15 * 127 = 30480 < 32767 there, so one vpmaddwd with ones widens the whole group.
 *   q8       vpmaddubsw takes one unsigned side: |w| and x * sign(w). |-128| is 128 as unsigned, and
 *            2 * 128 * 127 = 32512 still fits; two of those do not, so each quad is widened by itself.
 *
 * Per group of 16 rows x 32 columns q4 takes 16 vpmaddubsw and about 50 other vector instructions for 288 bytes:
 * on cores with three vector ports some 12 bytes a cycle, well above what one core gets from memory.
 *
 * With one activation row the panel is read once, both halves of its 16 rows together. With several, the weights
 * of 8 rows are unpacked once for TILE activation rows; the panel then comes from the first-level cache. */
#include <immintrin.h>
#include <string.h>

#include "../kernels.h"
#include "lookahead.h"

enum {
    HALF_ROWS = 8,
    QUAD_BYTES = 64, /* 16 rows x 4 columns of int8 */
    QUADS = 8,       /* of a group */
    TILE = 4,
    /* Prefetches go this many groups ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    FLOAT_BYTES_AHEAD = 4096,
};

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load(const uint8_t *at) { return _mm256_loadu_si256((const __m256i *)at); }

INLINE __m256i broadcast_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm256_set1_epi32(quad);
}

INLINE __m256 load_halves(const uint8_t *at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }

INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

/* The weights of 8 rows x 32 columns, one vector per quad of columns. */
INLINE void unpack(const uint8_t *payload, int format, __m256i weights[QUADS]) {
    if (format == EM_Q8) {
        for (int quad = 0; quad < QUADS; quad++) weights[quad] = load(payload + quad * QUAD_BYTES);
        return;
    }
    const __m256i low_nibbles = _mm256_set1_epi8(15);
    for (int quad = 0; quad < QUADS / 2; quad++) {
        const __m256i bytes = load(payload + quad * QUAD_BYTES);
        weights[quad] = _mm256_and_si256(bytes, low_nibbles);
        weights[quad + QUADS / 2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low_nibbles);
    }
}

/* The integer dots of 8 rows with the 32 activations at `x`. */
INLINE __m256i dot_group(const __m256i weights[QUADS], const int8_t *x, int format) {
    if (format == EM_Q8) {
        __m256i sum = _mm256_setzero_si256();
        for (int quad = 0; quad < QUADS; quad++) {
            const __m256i w = weights[quad];
            const __m256i signed_x = _mm256_sign_epi8(broadcast_quad(x + 4 * quad), w);
            sum = _mm256_add_epi32(sum, widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), signed_x)));
        }
        return sum;
    }
    __m256i pairs = _mm256_maddubs_epi16(weights[0], broadcast_quad(x));
    for (int quad = 1; quad < QUADS; quad++) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[quad], broadcast_quad(x + 4 * quad)));
    }
    return widen(pairs);
}

/* `count` activation rows times `halves` halves of the panel, from half `first` on. */
INLINE void quantised_tile(const uint8_t *panel, const em_activations *x, const int32_t *rows, float *out,
                           size_t out_stride, int format, int count, int first, int halves) {
    const size_t payload_bytes = format == EM_Q8 ? 512 : 256;
    const int32_t group_count = x->group_count;
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    const uint8_t *minimums = scales + (size_t)group_count * 2 * EM_PANEL_ROWS;
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    em_lookahead next = em_look_ahead(panel, group_count, payload_bytes, panel_bytes, GROUPS_AHEAD);
    const em_group *groups[TILE];
    const int8_t *values[TILE];
    __m256 sums[TILE][2];
    for (int t = 0; t < count; t++) {
        groups[t] = x->groups + (size_t)rows[t] * group_count;
        values[t] = x->values + (size_t)rows[t] * group_count * EM_GROUP_COLUMNS;
        for (int h = 0; h < halves; h++) sums[t][h] = _mm256_setzero_ps();
    }
    for (int32_t g = 0; g < group_count; g++) {
        if (count == 1) em_prefetch_group(&next, group_count, payload_bytes, panel_bytes, format == EM_Q4M);
        for (int h = 0; h < halves; h++) {
            const size_t half_offset = (size_t)(first + h) * (QUAD_BYTES / 2);
            const size_t per_row_offset = ((size_t)g * EM_PANEL_ROWS + (size_t)(first + h) * HALF_ROWS) * 2;
            __m256i weights[QUADS];
            unpack(panel + (size_t)g * payload_bytes + half_offset, format, weights);
            const __m256 weight_scale = load_halves(scales + per_row_offset);
            for (int t = 0; t < count; t++) {
                const em_group *group = groups[t] + g;
                __m256i dots = dot_group(weights, values[t] + (size_t)g * EM_GROUP_COLUMNS, format);
                if (format == EM_Q4) dots = _mm256_sub_epi32(dots, _mm256_set1_epi32(group->sum_times_8));
                const __m256 scale = _mm256_mul_ps(weight_scale, _mm256_set1_ps(group->scale));
                sums[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, sums[t][h]);
                if (format == EM_Q4M) {
                    const __m256 minimum = load_halves(minimums + per_row_offset);
                    sums[t][h] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(group->scaled_sum), sums[t][h]);
                }
            }
        }
    }
    for (int t = 0; t < count; t++) {
        for (int h = 0; h < halves; h++) _mm256_storeu_ps(out + t * out_stride + (first + h) * HALF_ROWS, sums[t][h]);
    }
}

INLINE void quantised_panel(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count,
                            float *out, size_t out_stride, int format) {
    for (; count >= TILE; count -= TILE, rows += TILE, out += TILE * out_stride) {
        quantised_tile(panel, x, rows, out, out_stride, format, TILE, 0, 1);
        quantised_tile(panel, x, rows, out, out_stride, format, TILE, 1, 1);
    }
    for (; count > 0; count--, rows++, out += out_stride) {
        quantised_tile(panel, x, rows, out, out_stride, format, 1, 0, 2);
    }
}

/* 8 rows of one column of f32 or f16 weights. */
INLINE __m256 load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return load_halves(panel + 2 * index);
    return _mm256_loadu_ps((const float *)(const void *)panel + index);
}

INLINE void float_tile(const uint8_t *panel, const em_activations *x, const int32_t *rows, float *out,
                       size_t out_stride, int format, int count) {
    const float *inputs[TILE];
    __m256 low[TILE], high[TILE];
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
    for (; count >= TILE; count -= TILE, rows += TILE, out += TILE * out_stride) {
        float_tile(panel, x, rows, out, out_stride, format, TILE);
    }
    for (; count > 0; count--, rows++, out += out_stride) float_tile(panel, x, rows, out, out_stride, format, 1);
}

#define DEFINE_PANELS(name, format, product)                                                                          \
    void name(const uint8_t *panels, int32_t panel_count, const em_activations *x, const int32_t *rows, int32_t count, \
              float *out, size_t out_stride) {                                                                        \
        for (int32_t p = 0; p < panel_count; p++, out += EM_PANEL_ROWS) {                                             \
            product(panels + (size_t)p * em_panel_bytes(format, x->columns), x, rows, count, out, out_stride, format); \
        }                                                                                                             \
    }

DEFINE_PANELS(em_panels_f32_avx2, EM_F32, float_panel)
DEFINE_PANELS(em_panels_f16_avx2, EM_F16, float_panel)
DEFINE_PANELS(em_panels_q8_avx2, EM_Q8, quantised_panel)
DEFINE_PANELS(em_panels_q4_avx2, EM_Q4, quantised_panel)
DEFINE_PANELS(em_panels_q4m_avx2, EM_Q4M, quantised_panel)
