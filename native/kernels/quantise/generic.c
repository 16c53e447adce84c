/* Activations, keys and values to groups of 32 int8, in plain C. */
#include <string.h>

#include "../half.h"
#include "../kernels.h"
#include "cache_scale.h"

/* Adding 1.5 * 2^23 leaves no bits for a fraction: the sum rounds half to even. */
static inline float round_to_even(float value) { return (value + 12582912.0f) - 12582912.0f; }

static inline int32_t group_end(int32_t start, int32_t columns) {
    return columns - start < EM_GROUP_COLUMNS ? columns : start + EM_GROUP_COLUMNS;
}

/* The largest magnitude; a NaN where there is one. */
static inline float largest_of(const float *input, int32_t count) {
    /* Without their sign the bits of floats are in the order of the numbers, a NaN above all. */
    uint32_t largest_bits = 0;
    for (int32_t i = 0; i < count; i++) {
        const uint32_t bits = em_to_bits(input[i]) & 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    return em_from_bits(largest_bits);
}

static inline int8_t rounded(float value) {
    /* In this form a NaN becomes -127. */
    value = value < 127.0f ? value : value >= 127.0f ? 127.0f : -127.0f;
    value = value > -127.0f ? value : -127.0f;
    return (int8_t)round_to_even(value);
}

void em_quantise_generic(const float *input, int32_t columns, int8_t *values, em_group *groups) {
    for (int32_t start = 0; start < columns; start += EM_GROUP_COLUMNS, values += EM_GROUP_COLUMNS, groups++) {
        const int32_t count = group_end(start, columns) - start;
        const float found = largest_of(input + start, count);
        const float largest = found < EM_SMALLEST_ACTIVATION ? 0.0f : found;
        const float factor = largest > 0 ? 127.0f / largest : 0.0f;
        int32_t sums[2] = {0};
        for (int32_t i = 0; i < EM_GROUP_COLUMNS; i++) {
            values[i] = rounded(i < count ? input[start + i] * factor : 0.0f);
            sums[i / EM_HALF_COLUMNS] += values[i];
        }
        const float scale = largest / 127.0f;
        const int32_t sum = sums[0] + sums[1];
        *groups = (em_group){
            .scale = scale, .scaled_sum = scale * (float)sum, .q4_start = -8 * sum, .half_sums = {(int16_t)sums[0], (int16_t)sums[1]},
        };
    }
}

void em_to_q8_generic(const float *input, int8_t *values, uint16_t *scales, int32_t count) {
    for (int32_t start = 0; start < count; start += EM_GROUP_COLUMNS, scales++) {
        const int32_t end = group_end(start, count);
        const em_cache_scale scale = em_scale_for(largest_of(input + start, end - start));
        *scales = scale.half;
        for (int32_t i = start; i < end; i++) values[i] = rounded(input[i] * scale.factor);
        if (!em_is_finite_half(scale.half)) memset(values + start, 0, (size_t)(end - start));
    }
}
