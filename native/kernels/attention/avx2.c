/* Scores against keys and mixtures of values with AVX2, FMA and F16C; the same bits as generic.c.
 *
 * A score is one chain of fused multiply-adds over the width, 4 cycles each; four keys go side by side, and their
 * lanes are folded together, transposed. A mixture keeps up to 8 vectors of the output in registers, as many chains,
 * while it goes down the rows. */
#include <immintrin.h>

#include "element.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256 load8(em_cached rows, size_t at, __m256 scale, int format) {
    if (format == EM_F32) return _mm256_loadu_ps((const float *)rows.elements + at);
    if (format == EM_F16) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)rows.elements + at)));
    }
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)((const int8_t *)rows.elements + at));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), scale);
}

/* The scale of the group that a column lies in; nothing that is used where there are none. */
INLINE __m256 load_scale(em_cached rows, size_t row, int32_t width, int32_t column, int format) {
    if (format != EM_Q8) return _mm256_setzero_ps();
    return _mm256_cvtph_ps(_mm_set1_epi16((int16_t)rows.scales[em_scale_index(row, width, column)]));
}

enum { KEYS_TOGETHER = 4, VECTORS_TOGETHER = 8, VECTORS_OF_A_GROUP = EM_GROUP_COLUMNS / EM_LANES };

/* Halves added: lanes l0 + l4, l1 + l5, l2 + l6, l3 + l7. */
INLINE __m128 fold_once(__m256 lanes) {
    return _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
}

/* em_fold_lanes of four vectors. */
INLINE __m128 fold_four(const __m256 lanes[KEYS_TOGETHER]) {
    const __m128 a = fold_once(lanes[0]), b = fold_once(lanes[1]), c = fold_once(lanes[2]), d = fold_once(lanes[3]);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)); /* a0 + a2, b0 + b2, a1 + a3, b1 + b3 */
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

/* Four keys whose width is a multiple of 8. */
INLINE void score_four(const float *query, em_cached keys, size_t first, int32_t width, float scale, float *results,
                       int format) {
    __m256 sums[KEYS_TOGETHER], scales[KEYS_TOGETHER];
    for (int k = 0; k < KEYS_TOGETHER; k++) sums[k] = scales[k] = _mm256_setzero_ps();
    for (int32_t i = 0; i < width; i += EM_LANES) {
        const __m256 q = _mm256_loadu_ps(query + i);
        for (int k = 0; k < KEYS_TOGETHER; k++) {
            if (i % EM_GROUP_COLUMNS == 0) scales[k] = load_scale(keys, first + k, width, i, format);
            sums[k] = _mm256_fmadd_ps(q, load8(keys, (first + k) * width + i, scales[k], format), sums[k]);
        }
    }
    _mm_storeu_ps(results, _mm_mul_ps(fold_four(sums), _mm_set1_ps(scale)));
}

INLINE float score_one(const float *query, em_cached keys, size_t key, int32_t width, int format) {
    __m256 scale = _mm256_setzero_ps();
    __m256 sums = _mm256_setzero_ps();
    int32_t i = 0;
    for (; i + EM_LANES <= width; i += EM_LANES) {
        if (i % EM_GROUP_COLUMNS == 0) scale = load_scale(keys, key, width, i, format);
        sums = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), load8(keys, key * width + i, scale, format), sums);
    }
    float lanes[EM_LANES];
    _mm256_storeu_ps(lanes, sums);
    for (; i < width; i++) {
        const float element = em_cached_element(keys, key, width, i, format);
        lanes[i % EM_LANES] = __builtin_fmaf(query[i], element, lanes[i % EM_LANES]);
    }
    return em_fold_lanes(lanes);
}

INLINE void scores(const float *query, em_cached keys, int32_t count, int32_t width, float scale, float *results,
                   int format) {
    int32_t key = 0;
    for (; width % EM_LANES == 0 && key + KEYS_TOGETHER <= count; key += KEYS_TOGETHER) {
        score_four(query, keys, key, width, scale, results + key, format);
    }
    for (; key < count; key++) results[key] = score_one(query, keys, key, width, format) * scale;
}

/* `vectors` vectors of the output, from element `start` on. */
INLINE void mix_columns(const float *weights, em_cached values, int32_t count, int32_t width, float factor,
                        float *output, int format, int32_t start, int vectors) {
    __m256 sums[VECTORS_TOGETHER];
    for (int v = 0; v < vectors; v++) {
        sums[v] = _mm256_mul_ps(_mm256_loadu_ps(output + start + v * EM_LANES), _mm256_set1_ps(factor));
    }
    for (int32_t row = 0; row < count; row++) {
        const __m256 weight = _mm256_set1_ps(weights[row]);
        const size_t at = (size_t)row * width + start;
        __m256 scale = _mm256_setzero_ps();
        for (int v = 0; v < vectors; v++) {
            if (v % VECTORS_OF_A_GROUP == 0) scale = load_scale(values, row, width, start + v * EM_LANES, format);
            sums[v] = _mm256_fmadd_ps(weight, load8(values, at + v * EM_LANES, scale, format), sums[v]);
        }
    }
    for (int v = 0; v < vectors; v++) _mm256_storeu_ps(output + start + v * EM_LANES, sums[v]);
}

INLINE void mix(const float *weights, em_cached values, int32_t count, int32_t width, float factor, float *output,
                int format) {
    int32_t i = 0;
    for (; i + VECTORS_TOGETHER * EM_LANES <= width; i += VECTORS_TOGETHER * EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, format, i, VECTORS_TOGETHER);
    }
    for (; i + 4 * EM_LANES <= width; i += 4 * EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, format, i, 4);
    }
    for (; i + EM_LANES <= width; i += EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, format, i, 1);
    }
    for (; i < width; i++) {
        float sum = output[i] * factor;
        for (int32_t row = 0; row < count; row++) {
            sum = __builtin_fmaf(weights[row], em_cached_element(values, row, width, i, format), sum);
        }
        output[i] = sum;
    }
}

#define DEFINE_ATTENTION(type, format)                                                                         \
    void em_scores_##type##_avx2(const float *query, em_cached keys, int32_t count, int32_t width,             \
                                 float scale, float *results) {                                                \
        scores(query, keys, count, width, scale, results, format);                                             \
    }                                                                                                          \
    void em_mix_##type##_avx2(const float *weights, em_cached values, int32_t count, int32_t width,            \
                              float factor, float *output) {                                                   \
        mix(weights, values, count, width, factor, output, format);                                            \
    }

DEFINE_ATTENTION(f32, EM_F32)
DEFINE_ATTENTION(f16, EM_F16)
DEFINE_ATTENTION(q8, EM_Q8)
