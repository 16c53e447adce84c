/* Scores against keys and mixtures of values with AVX2, FMA and F16C; the same bits as generic.c.
 *
 * A score is one chain of fused multiply-adds over the width, 4 cycles each; four keys go side by side, and their
 * lanes are folded together, transposed. A mixture keeps up to 8 vectors of the output in registers, as many chains,
 * while it goes down the rows. */
#include <immintrin.h>

#include "../half.h"
#include "../kernels.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256 load8(const void *array, size_t index, int half) {
    if (half) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)array + index)));
    return _mm256_loadu_ps((const float *)array + index);
}

INLINE float element(const void *array, size_t index, int half) {
    return half ? em_half_to_float(((const uint16_t *)array)[index]) : ((const float *)array)[index];
}

enum { KEYS_TOGETHER = 4, VECTORS_TOGETHER = 8 };

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
INLINE void score_four(const float *query, const void *keys, size_t at, int32_t width, float scale, float *results,
                       int half) {
    __m256 sums[KEYS_TOGETHER];
    for (int k = 0; k < KEYS_TOGETHER; k++) sums[k] = _mm256_setzero_ps();
    for (int32_t i = 0; i < width; i += EM_LANES) {
        const __m256 q = _mm256_loadu_ps(query + i);
        for (int k = 0; k < KEYS_TOGETHER; k++) {
            sums[k] = _mm256_fmadd_ps(q, load8(keys, at + (size_t)k * width + i, half), sums[k]);
        }
    }
    _mm_storeu_ps(results, _mm_mul_ps(fold_four(sums), _mm_set1_ps(scale)));
}

INLINE float score_one(const float *query, const void *keys, size_t at, int32_t width, int half) {
    __m256 sums = _mm256_setzero_ps();
    int32_t i = 0;
    for (; i + EM_LANES <= width; i += EM_LANES) {
        sums = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), load8(keys, at + i, half), sums);
    }
    float lanes[EM_LANES];
    _mm256_storeu_ps(lanes, sums);
    for (; i < width; i++) {
        lanes[i % EM_LANES] = __builtin_fmaf(query[i], element(keys, at + i, half), lanes[i % EM_LANES]);
    }
    return em_fold_lanes(lanes);
}

INLINE void scores(const float *query, const void *keys, int32_t count, int32_t width, float scale, float *results,
                   int half) {
    int32_t key = 0;
    for (; width % EM_LANES == 0 && key + KEYS_TOGETHER <= count; key += KEYS_TOGETHER) {
        score_four(query, keys, (size_t)key * width, width, scale, results + key, half);
    }
    for (; key < count; key++) {
        results[key] = score_one(query, keys, (size_t)key * width, width, half) * scale;
    }
}

/* `vectors` vectors of the output, from element `start` on. */
INLINE void mix_columns(const float *weights, const void *values, int32_t count, int32_t width, float factor,
                        float *output, int half, int32_t start, int vectors) {
    __m256 sums[VECTORS_TOGETHER];
    for (int v = 0; v < vectors; v++) {
        sums[v] = _mm256_mul_ps(_mm256_loadu_ps(output + start + v * EM_LANES), _mm256_set1_ps(factor));
    }
    for (int32_t row = 0; row < count; row++) {
        const __m256 weight = _mm256_set1_ps(weights[row]);
        const size_t at = (size_t)row * width + start;
        for (int v = 0; v < vectors; v++) {
            sums[v] = _mm256_fmadd_ps(weight, load8(values, at + v * EM_LANES, half), sums[v]);
        }
    }
    for (int v = 0; v < vectors; v++) _mm256_storeu_ps(output + start + v * EM_LANES, sums[v]);
}

INLINE void mix(const float *weights, const void *values, int32_t count, int32_t width, float factor, float *output,
                int half) {
    int32_t i = 0;
    for (; i + VECTORS_TOGETHER * EM_LANES <= width; i += VECTORS_TOGETHER * EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, half, i, VECTORS_TOGETHER);
    }
    for (; i + 4 * EM_LANES <= width; i += 4 * EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, half, i, 4);
    }
    for (; i + EM_LANES <= width; i += EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, half, i, 1);
    }
    for (; i < width; i++) {
        float sum = output[i] * factor;
        for (int32_t row = 0; row < count; row++) {
            sum = __builtin_fmaf(weights[row], element(values, (size_t)row * width + i, half), sum);
        }
        output[i] = sum;
    }
}

#define DEFINE_ATTENTION(type, half)                                                                           \
    void em_scores_##type##_avx2(const float *query, const void *keys, int32_t count, int32_t width,           \
                                 float scale, float *results) {                                                \
        scores(query, keys, count, width, scale, results, half);                                               \
    }                                                                                                          \
    void em_mix_##type##_avx2(const float *weights, const void *values, int32_t count, int32_t width,          \
                              float factor, float *output) {                                                   \
        mix(weights, values, count, width, factor, output, half);                                              \
    }

DEFINE_ATTENTION(f32, 0)
DEFINE_ATTENTION(f16, 1)
