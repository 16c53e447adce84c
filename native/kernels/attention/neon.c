/* Scores against keys and mixtures of values with NEON; the same bits as generic.c.
 *
 * A score is two chains of fused multiply-adds over the width, 4 cycles each; four keys go side by side, and their
 * lanes are folded together, transposed. A mixture keeps up to 64 floats of the output in 16 registers, as many chains,
 * while it goes down the rows. No speed was measured on any processor. */
#include "../neon.h"
#include "element.h"

enum { KEYS_TOGETHER = 4, LANES_TOGETHER = 8, EIGHTS_OF_A_GROUP = EM_GROUP_COLUMNS / EM_LANES };

INLINE em_lanes load8(em_cached rows, size_t at, float scale, int format) {
    if (format == EM_F32) return em_load_lanes((const float *)rows.elements + at);
    if (format == EM_F16) return em_load_half_lanes((const uint16_t *)rows.elements + at);
    const int16x8_t values = vmovl_s8(vld1_s8((const int8_t *)rows.elements + at));
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(values)));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(values));
    return (em_lanes){vmulq_n_f32(low, scale), vmulq_n_f32(high, scale)};
}

/* The scale of the group that a column lies in; nothing that is used where there are none. */
INLINE float load_scale(em_cached rows, size_t row, int32_t width, int32_t column, int format) {
    return format == EM_Q8 ? em_half_to_float(rows.scales[em_scale_index(row, width, column)]) : 0;
}

/* Of two vectors a and b: a0 + a2, a1 + a3, b0 + b2, b1 + b3. */
INLINE float32x4_t add_halves(float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}

/* em_fold_lanes of four. */
INLINE float32x4_t fold_four(const em_lanes lanes[KEYS_TOGETHER]) {
    float32x4_t once[KEYS_TOGETHER]; /* l0 + l4, l1 + l5, l2 + l6, l3 + l7 */
    for (int k = 0; k < KEYS_TOGETHER; k++) once[k] = vaddq_f32(lanes[k].low, lanes[k].high);
    return vpaddq_f32(add_halves(once[0], once[1]), add_halves(once[2], once[3]));
}

INLINE em_lanes add_products(em_lanes sums, em_lanes query, em_lanes key) {
    return (em_lanes){vfmaq_f32(sums.low, query.low, key.low), vfmaq_f32(sums.high, query.high, key.high)};
}

/* Four keys whose width is a multiple of 8. */
INLINE void score_four(const float *query, em_cached keys, size_t first, int32_t width, float scale, float *results,
                       int format) {
    float scales[KEYS_TOGETHER] = {0};
    em_lanes sums[KEYS_TOGETHER];
    for (int k = 0; k < KEYS_TOGETHER; k++) sums[k] = (em_lanes){vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int32_t i = 0; i < width; i += EM_LANES) {
        const em_lanes q = em_load_lanes(query + i);
        for (int k = 0; k < KEYS_TOGETHER; k++) {
            if (i % EM_GROUP_COLUMNS == 0) scales[k] = load_scale(keys, first + k, width, i, format);
            sums[k] = add_products(sums[k], q, load8(keys, (first + k) * width + i, scales[k], format));
        }
    }
    vst1q_f32(results, vmulq_n_f32(fold_four(sums), scale));
}

INLINE float score_one(const float *query, em_cached keys, size_t key, int32_t width, int format) {
    float scale = 0;
    em_lanes sums = {vdupq_n_f32(0), vdupq_n_f32(0)};
    int32_t i = 0;
    for (; i + EM_LANES <= width; i += EM_LANES) {
        if (i % EM_GROUP_COLUMNS == 0) scale = load_scale(keys, key, width, i, format);
        sums = add_products(sums, em_load_lanes(query + i), load8(keys, key * width + i, scale, format));
    }
    float lanes[EM_LANES];
    em_store_lanes(lanes, sums);
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

/* `eights` times 8 columns of the output, from `start` on. */
INLINE void mix_columns(const float *weights, em_cached values, int32_t count, int32_t width, float factor,
                        float *output, int format, int32_t start, int eights) {
    em_lanes sums[LANES_TOGETHER];
    for (int v = 0; v < eights; v++) {
        const em_lanes before = em_load_lanes(output + start + v * EM_LANES);
        sums[v] = (em_lanes){vmulq_n_f32(before.low, factor), vmulq_n_f32(before.high, factor)};
    }
    for (int32_t row = 0; row < count; row++) {
        const float32x4_t weight = vdupq_n_f32(weights[row]);
        const size_t at = (size_t)row * width + start;
        float scale = 0;
        for (int v = 0; v < eights; v++) {
            if (v % EIGHTS_OF_A_GROUP == 0) scale = load_scale(values, row, width, start + v * EM_LANES, format);
            const em_lanes elements = load8(values, at + v * EM_LANES, scale, format);
            sums[v] = add_products(sums[v], (em_lanes){weight, weight}, elements);
        }
    }
    for (int v = 0; v < eights; v++) em_store_lanes(output + start + v * EM_LANES, sums[v]);
}

INLINE void mix(const float *weights, em_cached values, int32_t count, int32_t width, float factor, float *output,
                int format) {
    int32_t i = 0;
    for (; i + LANES_TOGETHER * EM_LANES <= width; i += LANES_TOGETHER * EM_LANES) {
        mix_columns(weights, values, count, width, factor, output, format, i, LANES_TOGETHER);
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
    void em_scores_##type##_neon(const float *query, em_cached keys, int32_t count, int32_t width,             \
                                 float scale, float *results) {                                                \
        scores(query, keys, count, width, scale, results, format);                                             \
    }                                                                                                          \
    void em_mix_##type##_neon(const float *weights, em_cached values, int32_t count, int32_t width,            \
                              float factor, float *output) {                                                   \
        mix(weights, values, count, width, factor, output, format);                                            \
    }

DEFINE_ATTENTION(f32, EM_F32)
DEFINE_ATTENTION(f16, EM_F16)
DEFINE_ATTENTION(q8, EM_Q8)
