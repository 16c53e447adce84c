/* Scores against keys and mixtures of values, in plain C. */
#include <math.h>

#include "element.h"

static inline void scores(const em_attending *row, em_cached keys, int32_t count, int32_t width, float scale,
                          int format) {
    for (int32_t key = 0; key < count; key++) {
        float lanes[EM_LANES] = {0};
        for (int32_t i = 0; i < width; i++) {
            const float element = em_cached_element(keys, key, i, format);
            lanes[i % EM_LANES] = fmaf(row->query[i], element, lanes[i % EM_LANES]);
        }
        row->weights[key] = em_fold_lanes(lanes) * scale;
    }
}

static inline void mix(const em_attending *row, em_cached values, int32_t count, int32_t width, int format) {
    for (int32_t i = 0; i < width; i++) {
        float sum = row->output[i] * row->factor;
        for (int32_t key = 0; key < count; key++) {
            sum = fmaf(row->weights[key], em_cached_element(values, key, i, format), sum);
        }
        row->output[i] = sum;
    }
}

#define DEFINE_ATTENTION(type, format)                                                                            \
    void em_scores_##type##_generic(const em_attending *rows, int32_t row_count, em_cached keys, int32_t count,   \
                                    int32_t width, float scale) {                                                 \
        for (int32_t row = 0; row < row_count; row++) scores(rows + row, keys, count, width, scale, format);      \
    }                                                                                                             \
    void em_mix_##type##_generic(const em_attending *rows, int32_t row_count, em_cached values, int32_t count,    \
                                 int32_t width) {                                                                 \
        for (int32_t row = 0; row < row_count; row++) mix(rows + row, values, count, width, format);              \
    }

DEFINE_ATTENTION(f32, EM_F32)
DEFINE_ATTENTION(f16, EM_F16)
DEFINE_ATTENTION(q8, EM_Q8)
