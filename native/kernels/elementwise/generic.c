/* Sums, exponentials and conversions along a vector, in plain C. */
#include <math.h>

#include "activation.h"

float em_sum_squares_generic(const float *input, int32_t count) {
    float lanes[EM_LANES] = {0};
    for (int32_t i = 0; i < count; i++) lanes[i % EM_LANES] = fmaf(input[i], input[i], lanes[i % EM_LANES]);
    return em_fold_lanes(lanes);
}

float em_exponentials_generic(float *values, int32_t count, float shift) {
    float lanes[EM_LANES] = {0};
    for (int32_t i = 0; i < count; i++) {
        values[i] = em_exp(values[i] - shift);
        lanes[i % EM_LANES] += values[i];
    }
    return em_fold_lanes(lanes);
}

void em_silu_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    (void)a;
    for (int32_t i = 0; i < count; i++) output[i] = em_silu(gate[i], up[i]);
}

void em_clamped_silu_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    for (int32_t i = 0; i < count; i++) output[i] = em_clamped_silu(a, gate[i], up[i]);
}

void em_gelu_tanh_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    (void)a;
    for (int32_t i = 0; i < count; i++) output[i] = em_gelu_tanh(gate[i], up[i]);
}

void em_gelu_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    (void)a;
    for (int32_t i = 0; i < count; i++) output[i] = em_gelu(gate[i], up[i]);
}

void em_relu_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    (void)a;
    for (int32_t i = 0; i < count; i++) output[i] = em_relu(gate[i], up[i]);
}

void em_relu2_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    (void)a;
    for (int32_t i = 0; i < count; i++) output[i] = em_relu2(gate[i], up[i]);
}

void em_capped_silu_generic(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    for (int32_t i = 0; i < count; i++) output[i] = em_capped_silu(a, gate[i], up[i]);
}

void em_to_half_generic(const float *input, uint16_t *output, int32_t count) {
    for (int32_t i = 0; i < count; i++) output[i] = em_float_to_half(input[i]);
}
