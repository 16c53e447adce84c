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

static inline float em_relu(float gate, float up) { return em_positive(gate) * up; }

static inline float em_relu2(float gate, float up) { return em_positive(gate) * em_positive(gate) * up; }

#endif
