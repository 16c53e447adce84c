/* The activations of one pair of numbers; kernels.h has their formulas. */
#ifndef EDGEMOE_ACTIVATION_H
#define EDGEMOE_ACTIVATION_H

#include "../exponential.h"
#include "../kernels.h"

#define EM_GELU_LINEAR 1.59576912f  /* 2 sqrt(2 / pi) */
#define EM_GELU_CUBIC 0.0713548163f /* 0.044715 of it */

static inline float em_silu(float gate, float up) { return gate / (1.0f + em_exp(-gate)) * up; }

static inline float em_clamped_silu(const em_activation *a, float gate, float up) {
    const float g = a->limit < gate ? a->limit : gate;
    float u = a->limit < up ? a->limit : up;
    u = -a->limit > u ? -a->limit : u;
    return g / (1.0f + em_exp(-(a->alpha * g))) * (u + a->offset);
}

static inline float em_capped_silu(const em_activation *a, float gate, float up) {
    const float silu = gate / (1.0f + em_exp(-gate)), g = a->limit < silu ? a->limit : silu;
    float u = a->limit < up ? a->limit : up;
    u = -a->limit > u ? -a->limit : u;
    return g * u;
}

/* The argument of the sigmoid that is half of 1 + tanh. */
static inline float em_gelu_argument(float gate) { return gate * (gate * gate * EM_GELU_CUBIC + EM_GELU_LINEAR); }

static inline float em_gelu_tanh(float gate, float up) {
    return gate / (1.0f + em_exp(-em_gelu_argument(gate))) * up;
}

/* A NaN stays one, and zeros keep their sign. */
static inline float em_positive(float x) { return x < 0.0f ? 0.0f : x; }

/* GELU = max(gate, 0) - |gate| * tail, where tail is what the normal distribution has beyond |gate|: half of erfc(z) for
 * z = |gate| / sqrt(2). With t = 1 / (1 + z / 2), erfc(z) is t * exp(p(t) - z^2); the polynomial leaves 6e-8 of it. Beyond
 * EM_GELU_END there is no tail. A NaN stays one. */
#define EM_GELU_END 16.0f
#define EM_GELU_ROOT 0.707106781f
#define EM_ERFC_C0 -1.26546729f
#define EM_ERFC_C1 0.99902026f
#define EM_ERFC_C2 0.38335595f
#define EM_ERFC_C3 0.05008431f
#define EM_ERFC_C4 -0.04363095f
#define EM_ERFC_C5 0.00313138f
#define EM_ERFC_C6 -0.79588525f
#define EM_ERFC_C7 1.23076841f
#define EM_ERFC_C8 -0.71197586f
#define EM_ERFC_C9 0.15059909f

static inline float em_gelu(float gate, float up) {
    float distance = fabsf(gate);
    distance = EM_GELU_END < distance ? EM_GELU_END : distance;
    const float z = distance * EM_GELU_ROOT, t = 1.0f / (z * 0.5f + 1.0f);
    float sum = fmaf(EM_ERFC_C9, t, EM_ERFC_C8);
    sum = fmaf(sum, t, EM_ERFC_C7);
    sum = fmaf(sum, t, EM_ERFC_C6);
    sum = fmaf(sum, t, EM_ERFC_C5);
    sum = fmaf(sum, t, EM_ERFC_C4);
    sum = fmaf(sum, t, EM_ERFC_C3);
    sum = fmaf(sum, t, EM_ERFC_C2);
    sum = fmaf(sum, t, EM_ERFC_C1);
    sum = fmaf(sum, t, EM_ERFC_C0);
    const float tail = t * em_exp(sum - z * z) * 0.5f;
    return (em_positive(gate) - distance * tail) * up;
}

static inline float em_relu(float gate, float up) { return em_positive(gate) * up; }

static inline float em_relu2(float gate, float up) { return em_positive(gate) * em_positive(gate) * up; }

#endif
