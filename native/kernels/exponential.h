/* exp() and log(1 + y) as every instruction set computes them, step by step the same.
 *
 *   n = x / ln 2 rounded to nearest, r = x - n ln 2 (in two parts), exp(x) = 2^n * (Taylor series of exp(r))
 *
 * |r| <= 0.347, so the series to the seventh power leaves 5e-9; the result is within 2 units in the last place.
 * 2^n is applied in two halves, so that results below the normal range come out right. */
#ifndef EDGEMOE_EXPONENTIAL_H
#define EDGEMOE_EXPONENTIAL_H

#include <math.h>

#include "half.h"

#define EM_EXP_LOWEST -104.0f /* exp() of less is zero */
#define EM_EXP_HIGHEST 89.0f  /* exp() of more is infinite */
#define EM_EXP_PER_LN2 1.44269504f
#define EM_EXP_ROUNDER 12582912.0f /* 1.5 * 2^23: a sum with it has the rounded integer in its low bits */
#define EM_EXP_ROUNDER_BITS 0x4b400000u
#define EM_EXP_LN2_HIGH 0.693359375f /* 355 / 512: times any n in use it is exact */
#define EM_EXP_LN2_LOW -2.12194440e-4f
#define EM_EXP_C2 (1.0f / 2)
#define EM_EXP_C3 (1.0f / 6)
#define EM_EXP_C4 (1.0f / 24)
#define EM_EXP_C5 (1.0f / 120)
#define EM_EXP_C6 (1.0f / 720)
#define EM_EXP_C7 (1.0f / 5040)

static inline float em_exp(float x) {
    /* Written so that a NaN stays in x, as it does in the vector minimum and maximum. */
    x = EM_EXP_HIGHEST < x ? EM_EXP_HIGHEST : x;
    x = EM_EXP_LOWEST > x ? EM_EXP_LOWEST : x;
    const float rounded = fmaf(x, EM_EXP_PER_LN2, EM_EXP_ROUNDER);
    const float n = rounded - EM_EXP_ROUNDER;
    const int32_t whole = (int32_t)(em_to_bits(rounded) - EM_EXP_ROUNDER_BITS);
    float r = fmaf(n, -EM_EXP_LN2_HIGH, x);
    r = fmaf(n, -EM_EXP_LN2_LOW, r);
    float sum = fmaf(EM_EXP_C7, r, EM_EXP_C6);
    sum = fmaf(sum, r, EM_EXP_C5);
    sum = fmaf(sum, r, EM_EXP_C4);
    sum = fmaf(sum, r, EM_EXP_C3);
    sum = fmaf(sum, r, EM_EXP_C2);
    sum = fmaf(sum, r, 1.0f);
    sum = fmaf(sum, r, 1.0f);
    const int32_t half = whole >> 1;
    const uint32_t first = ((uint32_t)half + 127) << 23;
    const uint32_t second = ((uint32_t)whole - (uint32_t)half + 127) << 23;
    return sum * em_from_bits(first) * em_from_bits(second);
}

/* log(1 + y) for 0 <= y <= 1, as twice the series of artanh(s) for s = y / (2 + y): s is at most 1/3, so the series to the
 * seventeenth power leaves 3e-10 of the sum. Without fma, so that any compiler can take several numbers at a time. */
static inline float em_log_of_one_plus(float y) {
    const float s = y / (2.0f + y), square = s * s;
    float sum = 1.0f / 17;
    sum = sum * square + 1.0f / 15;
    sum = sum * square + 1.0f / 13;
    sum = sum * square + 1.0f / 11;
    sum = sum * square + 1.0f / 9;
    sum = sum * square + 1.0f / 7;
    sum = sum * square + 1.0f / 5;
    sum = sum * square + 1.0f / 3;
    sum = sum * square + 1.0f;
    return 2.0f * s * sum;
}

/* log(1 + exp(x)); a NaN stays one. */
static inline float em_softplus(float x) { return (x > 0.0f ? x : 0.0f) + em_log_of_one_plus(em_exp(-fabsf(x))); }

#endif
