/* Activations to groups of 32 int8, in plain C. */
#include "../half.h"
#include "../kernels.h"

/* Adding 1.5 * 2^23 leaves no bits for a fraction: the sum rounds half to even. */
static inline float round_to_even(float value) { return (value + 12582912.0f) - 12582912.0f; }

void em_quantise_generic(const float *input, int32_t columns, int8_t *values, em_group *groups) {
    for (int32_t start = 0; start < columns; start += EM_GROUP_COLUMNS, values += EM_GROUP_COLUMNS, groups++) {
        const int32_t count = columns - start < EM_GROUP_COLUMNS ? columns - start : EM_GROUP_COLUMNS;
        /* Without their sign the bits of floats are in the order of the numbers, a NaN above all. */
        uint32_t largest_bits = 0;
        for (int32_t i = 0; i < count; i++) {
            const uint32_t bits = em_to_bits(input[start + i]) & 0x7fffffff;
            largest_bits = bits > largest_bits ? bits : largest_bits;
        }
        const float found = em_from_bits(largest_bits);
        const float largest = found < EM_SMALLEST_ACTIVATION ? 0.0f : found;
        const float factor = largest > 0 ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int32_t i = 0; i < EM_GROUP_COLUMNS; i++) {
            float value = i < count ? input[start + i] * factor : 0.0f;
            /* In this form a NaN becomes -127. */
            value = value < 127.0f ? value : value >= 127.0f ? 127.0f : -127.0f;
            value = value > -127.0f ? value : -127.0f;
            values[i] = (int8_t)round_to_even(value);
            sum += values[i];
        }
        const float scale = largest / 127.0f;
        *groups = (em_group){.scale = scale, .scaled_sum = scale * (float)sum, .sum_times_8 = 8 * sum};
    }
}
