/* Sums, exponentials and conversions along a vector with NEON; the same bits as generic.c. No speed was measured on any
 * processor. */
#include "../neon.h"
#include "activation.h"

/* em_exp, four at a time. */
INLINE float32x4_t exponential(float32x4_t x) {
    const float32x4_t rounder = vdupq_n_f32(EM_EXP_ROUNDER);
    x = vminq_f32(vdupq_n_f32(EM_EXP_HIGHEST), x); /* a NaN stays one in both */
    x = vmaxq_f32(vdupq_n_f32(EM_EXP_LOWEST), x);
    const float32x4_t rounded = vfmaq_f32(rounder, x, vdupq_n_f32(EM_EXP_PER_LN2));
    const float32x4_t n = vsubq_f32(rounded, rounder);
    const int32x4_t whole = vsubq_s32(vreinterpretq_s32_f32(rounded), vdupq_n_s32((int32_t)EM_EXP_ROUNDER_BITS));
    float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-EM_EXP_LN2_HIGH));
    r = vfmaq_f32(r, n, vdupq_n_f32(-EM_EXP_LN2_LOW));
    float32x4_t sum = vfmaq_f32(vdupq_n_f32(EM_EXP_C6), vdupq_n_f32(EM_EXP_C7), r);
    sum = vfmaq_f32(vdupq_n_f32(EM_EXP_C5), sum, r);
    sum = vfmaq_f32(vdupq_n_f32(EM_EXP_C4), sum, r);
    sum = vfmaq_f32(vdupq_n_f32(EM_EXP_C3), sum, r);
    sum = vfmaq_f32(vdupq_n_f32(EM_EXP_C2), sum, r);
    sum = vfmaq_f32(vdupq_n_f32(1), sum, r);
    sum = vfmaq_f32(vdupq_n_f32(1), sum, r);
    const int32x4_t bias = vdupq_n_s32(127);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return vmulq_f32(vmulq_f32(sum, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
}

float em_sum_squares_neon(const float *input, int32_t count) {
    em_lanes sums = {vdupq_n_f32(0), vdupq_n_f32(0)};
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const em_lanes values = em_load_lanes(input + i);
        sums = (em_lanes){vfmaq_f32(sums.low, values.low, values.low), vfmaq_f32(sums.high, values.high, values.high)};
    }
    float lanes[EM_LANES];
    em_store_lanes(lanes, sums);
    for (; i < count; i++) lanes[i % EM_LANES] = fmaf(input[i], input[i], lanes[i % EM_LANES]);
    return em_fold_lanes(lanes);
}

float em_exponentials_neon(float *values, int32_t count, float shift) {
    const float32x4_t shifts = vdupq_n_f32(shift);
    em_lanes sums = {vdupq_n_f32(0), vdupq_n_f32(0)};
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const em_lanes in = em_load_lanes(values + i);
        const em_lanes results = {exponential(vsubq_f32(in.low, shifts)), exponential(vsubq_f32(in.high, shifts))};
        em_store_lanes(values + i, results);
        sums = (em_lanes){vaddq_f32(sums.low, results.low), vaddq_f32(sums.high, results.high)};
    }
    float lanes[EM_LANES];
    em_store_lanes(lanes, sums);
    for (; i < count; i++) {
        values[i] = em_exp(values[i] - shift);
        lanes[i % EM_LANES] += values[i];
    }
    return em_fold_lanes(lanes);
}

void em_silu_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    int32_t i = 0;
    (void)a;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), exponential(vnegq_f32(g))));
        vst1q_f32(output + i, vmulq_f32(silu, vld1q_f32(up + i)));
    }
    for (; i < count; i++) output[i] = em_silu(gate[i], up[i]);
}

void em_clamped_silu_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const float32x4_t most = vdupq_n_f32(a->limit), least = vdupq_n_f32(-a->limit);
    int32_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t g = vminq_f32(most, vld1q_f32(gate + i)); /* a NaN stays one */
        const float32x4_t u = vmaxq_f32(least, vminq_f32(most, vld1q_f32(up + i)));
        const float32x4_t power = exponential(vnegq_f32(vmulq_f32(vdupq_n_f32(a->alpha), g)));
        const float32x4_t gated = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), power));
        vst1q_f32(output + i, vmulq_f32(gated, vaddq_f32(u, vdupq_n_f32(a->offset))));
    }
    for (; i < count; i++) output[i] = em_clamped_silu(a, gate[i], up[i]);
}

void em_gelu_tanh_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const float32x4_t linear = vdupq_n_f32(EM_GELU_LINEAR), cubic = vdupq_n_f32(EM_GELU_CUBIC);
    int32_t i = 0;
    (void)a;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        const float32x4_t slope = vaddq_f32(vmulq_f32(vmulq_f32(g, g), cubic), linear);
        const float32x4_t power = exponential(vnegq_f32(vmulq_f32(g, slope)));
        const float32x4_t gated = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), power));
        vst1q_f32(output + i, vmulq_f32(gated, vld1q_f32(up + i)));
    }
    for (; i < count; i++) output[i] = em_gelu_tanh(gate[i], up[i]);
}

/* em_positive, four at a time; vmaxq_f32 would make 0 of -0. */
INLINE float32x4_t positive(float32x4_t x) { return vbslq_f32(vcltzq_f32(x), vdupq_n_f32(0), x); }

void em_gelu_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const float32x4_t one = vdupq_n_f32(1), half = vdupq_n_f32(0.5f);
    int32_t i = 0;
    (void)a;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        const float32x4_t distance = vminq_f32(vdupq_n_f32(EM_GELU_END), vabsq_f32(g)); /* a NaN stays one */
        const float32x4_t z = vmulq_f32(distance, vdupq_n_f32(EM_GELU_ROOT));
        const float32x4_t t = vdivq_f32(one, vaddq_f32(vmulq_f32(z, half), one));
        float32x4_t sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C8), vdupq_n_f32(EM_ERFC_C9), t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C7), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C6), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C5), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C4), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C3), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C2), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C1), sum, t);
        sum = vfmaq_f32(vdupq_n_f32(EM_ERFC_C0), sum, t);
        const float32x4_t power = exponential(vsubq_f32(sum, vmulq_f32(z, z)));
        const float32x4_t tail = vmulq_f32(vmulq_f32(t, power), half);
        const float32x4_t share = vsubq_f32(positive(g), vmulq_f32(distance, tail));
        vst1q_f32(output + i, vmulq_f32(share, vld1q_f32(up + i)));
    }
    for (; i < count; i++) output[i] = em_gelu(gate[i], up[i]);
}

void em_relu_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    int32_t i = 0;
    (void)a;
    for (; i + 4 <= count; i += 4) vst1q_f32(output + i, vmulq_f32(positive(vld1q_f32(gate + i)), vld1q_f32(up + i)));
    for (; i < count; i++) output[i] = em_relu(gate[i], up[i]);
}

void em_relu2_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    int32_t i = 0;
    (void)a;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t g = positive(vld1q_f32(gate + i));
        vst1q_f32(output + i, vmulq_f32(vmulq_f32(g, g), vld1q_f32(up + i)));
    }
    for (; i < count; i++) output[i] = em_relu2(gate[i], up[i]);
}

void em_capped_silu_neon(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const float32x4_t most = vdupq_n_f32(a->limit), least = vdupq_n_f32(-a->limit);
    int32_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), exponential(vnegq_f32(g))));
        const float32x4_t u = vmaxq_f32(least, vminq_f32(most, vld1q_f32(up + i))); /* a NaN stays one */
        vst1q_f32(output + i, vmulq_f32(vminq_f32(most, silu), u));
    }
    for (; i < count; i++) output[i] = em_capped_silu(a, gate[i], up[i]);
}

void em_to_half_neon(const float *input, uint16_t *output, int32_t count) {
    int32_t i = 0;
    for (; i + 4 <= count; i += 4) vst1_u16(output + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(input + i))));
    for (; i < count; i++) output[i] = em_float_to_half(input[i]);
}
