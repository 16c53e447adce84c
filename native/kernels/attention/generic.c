/* Scores against keys and mixtures of values, in plain C. */
#include <math.h>

#include "../half.h"
#include "../kernels.h"

static inline float element(const void *array, size_t index, int half) {
    return half ? em_half_to_float(((const uint16_t *)array)[index]) : ((const float *)array)[index];
}

static inline void scores(const float *query, const void *keys, int32_t count, int32_t width, float scale,
                          float *results, int half) {
    for (int32_t key = 0; key < count; key++) {
        float lanes[EM_LANES] = {0};
        for (int32_t i = 0; i < width; i++) {
            const float value = element(keys, (size_t)key * width + i, half);
            lanes[i % EM_LANES] = fmaf(query[i], value, lanes[i % EM_LANES]);
        }
        results[key] = em_fold_lanes(lanes) * scale;
    }
}

static inline void mix(const float *weights, const void *values, int32_t count, int32_t width, float factor,
                       float *output, int half) {
    for (int32_t i = 0; i < width; i++) {
        float sum = output[i] * factor;
        for (int32_t row = 0; row < count; row++) {
            sum = fmaf(weights[row], element(values, (size_t)row * width + i, half), sum);
        }
        output[i] = sum;
    }
}

#define DEFINE_ATTENTION(type, half)                                                                           \
    void em_scores_##type##_generic(const float *query, const void *keys, int32_t count, int32_t width,        \
                                    float scale, float *results) {                                             \
        scores(query, keys, count, width, scale, results, half);                                               \
    }                                                                                                          \
    void em_mix_##type##_generic(const float *weights, const void *values, int32_t count, int32_t width,       \
                                 float factor, float *output) {                                                \
        mix(weights, values, count, width, factor, output, half);                                              \
    }

DEFINE_ATTENTION(f32, 0)
DEFINE_ATTENTION(f16, 1)
