/* Activations, keys and values to groups of 32 int8 with NEON: eight vectors of 4 floats are one group. No speed was
 * measured on any processor. */
#include <string.h>

#include "../half.h"
#include "../neon.h"
#include "cache_scale.h"

enum { VECTOR = 4, VECTORS = EM_GROUP_COLUMNS / VECTOR };

/* A NaN becomes -127: fmaxnm takes the number then. */
INLINE int32x4_t scaled(float32x4_t input, float factor) {
    const float32x4_t value = vmaxnmq_f32(vmulq_n_f32(input, factor), vdupq_n_f32(-127));
    return vcvtnq_s32_f32(vminnmq_f32(value, vdupq_n_f32(127)));
}

INLINE int16x8_t eight_scaled(const float32x4_t input[2], float factor) {
    return vmovn_high_s32(vmovn_s32(scaled(input[0], factor)), scaled(input[1], factor));
}

/* A group, and its largest magnitude; a NaN where there is one. */
INLINE float load_group(const float *input, float32x4_t in[VECTORS]) {
    uint32x4_t most = vdupq_n_u32(0);
    for (int i = 0; i < VECTORS; i++) {
        in[i] = vld1q_f32(input + VECTOR * i);
        /* Without their sign the bits of floats are in the order of the numbers, a NaN above all. */
        most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(in[i])));
    }
    return em_from_bits(vmaxvq_u32(most));
}

/* 16 of a group. */
INLINE int8x16_t rounded(const float32x4_t in[4], float factor) {
    return vmovn_high_s16(vmovn_s16(eight_scaled(in, factor)), eight_scaled(in + 2, factor));
}

static void quantise_group(const float *input, int8_t *values, em_group *group) {
    float32x4_t in[VECTORS];
    const float found = load_group(input, in);
    const float largest = found < EM_SMALLEST_ACTIVATION ? 0.0f : found;
    const float factor = largest > 0 ? 127.0f / largest : 0.0f;
    int32_t sums[2];
    for (int i = 0; i < VECTORS; i += 4) {
        const int8x16_t bytes = rounded(in + i, factor);
        vst1q_s8(values + VECTOR * i, bytes);
        sums[i / 4] = vaddlvq_s8(bytes);
    }
    const float scale = largest / 127.0f;
    const int32_t sum = sums[0] + sums[1];
    *group = (em_group){
        .scale = scale, .scaled_sum = scale * (float)sum, .q4_start = -8 * sum, .half_sums = {(int16_t)sums[0], (int16_t)sums[1]},
    };
}

void em_quantise_neon(const float *input, int32_t columns, int8_t *values, em_group *groups) {
    int32_t start = 0;
    for (; start + EM_GROUP_COLUMNS <= columns; start += EM_GROUP_COLUMNS) {
        quantise_group(input + start, values + start, groups++);
    }
    if (start < columns) {
        float last[EM_GROUP_COLUMNS] = {0};
        memcpy(last, input + start, (size_t)(columns - start) * sizeof *last);
        quantise_group(last, values + start, groups);
    }
}

/* A group of a cache; returns its scale. */
INLINE uint16_t store_group(const float *input, int8_t *values) {
    float32x4_t in[VECTORS];
    const em_cache_scale scale = em_scale_for(load_group(input, in));
    for (int i = 0; i < VECTORS; i += 4) {
        vst1q_s8(values + VECTOR * i, em_is_finite_half(scale.half) ? rounded(in + i, scale.factor) : vdupq_n_s8(0));
    }
    return scale.half;
}

void em_to_q8_neon(const float *input, int8_t *values, uint16_t *scales, int32_t count) {
    int32_t start = 0;
    for (; start + EM_GROUP_COLUMNS <= count; start += EM_GROUP_COLUMNS) {
        *scales++ = store_group(input + start, values + start);
    }
    if (start < count) {
        float last[EM_GROUP_COLUMNS] = {0};
        int8_t bytes[EM_GROUP_COLUMNS];
        memcpy(last, input + start, (size_t)(count - start) * sizeof *last);
        *scales = store_group(last, bytes);
        memcpy(values + start, bytes, (size_t)(count - start));
    }
}
