/* Sums, exponentials and conversions along a vector with AVX2, FMA and F16C; the same bits as generic.c. */
#include <immintrin.h>

#include "activation.h"

/* em_exp, eight at a time. */
static inline __m256 exponential(__m256 x) {
    const __m256 rounder = _mm256_set1_ps(EM_EXP_ROUNDER);
    x = _mm256_min_ps(_mm256_set1_ps(EM_EXP_HIGHEST), x); /* with a NaN both give their second operand */
    x = _mm256_max_ps(_mm256_set1_ps(EM_EXP_LOWEST), x);
    const __m256 rounded = _mm256_fmadd_ps(x, _mm256_set1_ps(EM_EXP_PER_LN2), rounder);
    const __m256 n = _mm256_sub_ps(rounded, rounder);
    const __m256i whole = _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_set1_epi32(EM_EXP_ROUNDER_BITS));
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EM_EXP_LN2_HIGH), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EM_EXP_LN2_LOW), r);
    __m256 sum = _mm256_fmadd_ps(_mm256_set1_ps(EM_EXP_C7), r, _mm256_set1_ps(EM_EXP_C6));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(EM_EXP_C5));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(EM_EXP_C4));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(EM_EXP_C3));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(EM_EXP_C2));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(sum, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}

float em_sum_squares_avx2(const float *input, int32_t count) {
    __m256 sums = _mm256_setzero_ps();
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m256 values = _mm256_loadu_ps(input + i);
        sums = _mm256_fmadd_ps(values, values, sums);
    }
    float lanes[EM_LANES];
    _mm256_storeu_ps(lanes, sums);
    for (; i < count; i++) lanes[i % EM_LANES] = fmaf(input[i], input[i], lanes[i % EM_LANES]);
    return em_fold_lanes(lanes);
}

float em_exponentials_avx2(float *values, int32_t count, float shift) {
    __m256 sums = _mm256_setzero_ps();
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m256 results = exponential(_mm256_sub_ps(_mm256_loadu_ps(values + i), _mm256_set1_ps(shift)));
        _mm256_storeu_ps(values + i, results);
        sums = _mm256_add_ps(sums, results);
    }
    float lanes[EM_LANES];
    _mm256_storeu_ps(lanes, sums);
    for (; i < count; i++) {
        values[i] = em_exp(values[i] - shift);
        lanes[i % EM_LANES] += values[i];
    }
    return em_fold_lanes(lanes);
}

void em_silu_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    int32_t i = 0;
    (void)a;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m256 g = _mm256_loadu_ps(gate + i);
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exponential(_mm256_xor_ps(g, sign))));
        _mm256_storeu_ps(output + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
    }
    for (; i < count; i++) output[i] = em_silu(gate[i], up[i]);
}

void em_clamped_silu_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    const __m256 alpha = _mm256_set1_ps(a->alpha), offset = _mm256_set1_ps(a->offset);
    const __m256 most = _mm256_set1_ps(a->limit), least = _mm256_set1_ps(-a->limit);
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        /* With a NaN, minimum and maximum give their second operand. */
        const __m256 g = _mm256_min_ps(most, _mm256_loadu_ps(gate + i));
        const __m256 u = _mm256_max_ps(least, _mm256_min_ps(most, _mm256_loadu_ps(up + i)));
        const __m256 power = exponential(_mm256_xor_ps(_mm256_mul_ps(alpha, g), sign));
        const __m256 gated = _mm256_div_ps(g, _mm256_add_ps(one, power));
        _mm256_storeu_ps(output + i, _mm256_mul_ps(gated, _mm256_add_ps(u, offset)));
    }
    for (; i < count; i++) output[i] = em_clamped_silu(a, gate[i], up[i]);
}

void em_gelu_tanh_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    const __m256 linear = _mm256_set1_ps(EM_GELU_LINEAR), cubic = _mm256_set1_ps(EM_GELU_CUBIC);
    int32_t i = 0;
    (void)a;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m256 g = _mm256_loadu_ps(gate + i);
        const __m256 slope = _mm256_add_ps(_mm256_mul_ps(_mm256_mul_ps(g, g), cubic), linear);
        const __m256 power = exponential(_mm256_xor_ps(_mm256_mul_ps(g, slope), sign));
        const __m256 gated = _mm256_div_ps(g, _mm256_add_ps(one, power));
        _mm256_storeu_ps(output + i, _mm256_mul_ps(gated, _mm256_loadu_ps(up + i)));
    }
    for (; i < count; i++) output[i] = em_gelu_tanh(gate[i], up[i]);
}

void em_gelu_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 one = _mm256_set1_ps(1.0f), half = _mm256_set1_ps(0.5f), sign = _mm256_set1_ps(-0.0f);
    int32_t i = 0;
    (void)a;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        /* With a NaN, minimum and maximum give their second operand; of two zeros the maximum too. */
        const __m256 g = _mm256_loadu_ps(gate + i), positive = _mm256_max_ps(_mm256_setzero_ps(), g);
        const __m256 distance = _mm256_min_ps(_mm256_set1_ps(EM_GELU_END), _mm256_andnot_ps(sign, g));
        const __m256 z = _mm256_mul_ps(distance, _mm256_set1_ps(EM_GELU_ROOT));
        const __m256 t = _mm256_div_ps(one, _mm256_add_ps(_mm256_mul_ps(z, half), one));
        __m256 sum = _mm256_fmadd_ps(_mm256_set1_ps(EM_ERFC_C9), t, _mm256_set1_ps(EM_ERFC_C8));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C7));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C6));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C5));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C4));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C3));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C2));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C1));
        sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(EM_ERFC_C0));
        const __m256 power = exponential(_mm256_sub_ps(sum, _mm256_mul_ps(z, z)));
        const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(t, power), half);
        const __m256 share = _mm256_sub_ps(positive, _mm256_mul_ps(distance, tail));
        _mm256_storeu_ps(output + i, _mm256_mul_ps(share, _mm256_loadu_ps(up + i)));
    }
    for (; i < count; i++) output[i] = em_gelu(gate[i], up[i]);
}

void em_relu_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 zero = _mm256_setzero_ps();
    int32_t i = 0;
    (void)a;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m256 g = _mm256_max_ps(zero, _mm256_loadu_ps(gate + i)); /* of a NaN or two zeros it is the second */
        _mm256_storeu_ps(output + i, _mm256_mul_ps(g, _mm256_loadu_ps(up + i)));
    }
    for (; i < count; i++) output[i] = em_relu(gate[i], up[i]);
}

void em_relu2_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 zero = _mm256_setzero_ps();
    int32_t i = 0;
    (void)a;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m256 g = _mm256_max_ps(zero, _mm256_loadu_ps(gate + i));
        _mm256_storeu_ps(output + i, _mm256_mul_ps(_mm256_mul_ps(g, g), _mm256_loadu_ps(up + i)));
    }
    for (; i < count; i++) output[i] = em_relu2(gate[i], up[i]);
}

void em_capped_silu_avx2(const em_activation *a, const float *gate, const float *up, float *output, int32_t count) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    const __m256 most = _mm256_set1_ps(a->limit), least = _mm256_set1_ps(-a->limit);
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        /* With a NaN, minimum and maximum give their second operand. */
        const __m256 g = _mm256_loadu_ps(gate + i);
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exponential(_mm256_xor_ps(g, sign))));
        const __m256 u = _mm256_max_ps(least, _mm256_min_ps(most, _mm256_loadu_ps(up + i)));
        _mm256_storeu_ps(output + i, _mm256_mul_ps(_mm256_min_ps(most, silu), u));
    }
    for (; i < count; i++) output[i] = em_capped_silu(a, gate[i], up[i]);
}

void em_to_half_avx2(const float *input, uint16_t *output, int32_t count) {
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(input + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(output + i), halves);
    }
    for (; i < count; i++) output[i] = em_float_to_half(input[i]);
}
