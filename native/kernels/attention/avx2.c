/* Scores against keys and mixtures of values with AVX2, FMA and F16C; the same bits as generic.c.
 *
 * A score is one chain of fused multiply-adds over the width; the processor overlaps the chains of neighbouring
 * keys. A mixture keeps 4 vectors of the output in registers while it goes down the rows, so that each row's
 * cache lines are used whole. */
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

INLINE void scores(const float *query, const void *keys, int32_t count, int32_t width, float scale, float *results,
                   int half) {
    for (int32_t key = 0; key < count; key++) {
        const size_t row = (size_t)key * width;
        __m256 sums = _mm256_setzero_ps();
        int32_t i = 0;
        for (; i + EM_LANES <= width; i += EM_LANES) {
            sums = _mm256_fmadd_ps(_mm256_loadu_ps(query + i), load8(keys, row + i, half), sums);
        }
        float lanes[EM_LANES];
        _mm256_storeu_ps(lanes, sums);
        for (; i < width; i++) {
            lanes[i % EM_LANES] = __builtin_fmaf(query[i], element(keys, row + i, half), lanes[i % EM_LANES]);
        }
        results[key] = em_fold_lanes(lanes) * scale;
    }
}

/* `vectors` vectors of the output, from element `start` on. */
INLINE void mix_columns(const float *weights, const void *values, int32_t count, int32_t width, float factor,
                        float *output, int half, int32_t start, int vectors) {
    __m256 sums[4];
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
