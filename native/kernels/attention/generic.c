/* Scores against keys and mixtures of values, in plain C. */
#include <math.h>

#include "element.h"

static inline void scores(const float *query, em_cached keys, int32_t count, int32_t width, float scale,
                          float *results, int format) {
    for (int32_t key = 0; key < count; key++) {
        float lanes[EM_LANES] = {0};
        for (int32_t i = 0; i < width; i++) {
            lanes[i % EM_LANES] = fmaf(query[i], em_cached_element(keys, key, width, i, format), lanes[i % EM_LANES]);
        }
        results[key] = em_fold_lanes(lanes) * scale;
    }
}

static inline void mix(const float *weights, em_cached values, int32_t count, int32_t width, float factor,
                       float *output, int format) {
    for (int32_t i = 0; i < width; i++) {
        float sum = output[i] * factor;
        for (int32_t row = 0; row < count; row++) {
            sum = fmaf(weights[row], em_cached_element(values, row, width, i, format), sum);
        }
        output[i] = sum;
    }
}

#define DEFINE_ATTENTION(type, format)                                                                         \
    void em_scores_##type##_generic(const float *query, em_cached keys, int32_t count, int32_t width,          \
                                    float scale, float *results) {                                             \
        scores(query, keys, count, width, scale, results, format);                                             \
    }                                                                                                          \
    void em_mix_##type##_generic(const float *weights, em_cached values, int32_t count, int32_t width,         \
                                 float factor, float *output) {                                                \
        mix(weights, values, count, width, factor, output, format);                                            \
    }

DEFINE_ATTENTION(f32, EM_F32)
DEFINE_ATTENTION(f16, EM_F16)
DEFINE_ATTENTION(q8, EM_Q8)
