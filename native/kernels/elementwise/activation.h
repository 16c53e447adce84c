/* The activations of one pair of numbers; kernels.h has their formulas. */
#ifndef EDGEMOE_ACTIVATION_H
#define EDGEMOE_ACTIVATION_H

#include "../exponential.h"
#include "../kernels.h"

static inline float em_silu(float gate, float up) { return gate / (1.0f + em_exp(-gate)) * up; }

static inline float em_clamped_silu(const em_activation *a, float gate, float up) {
    const float g = a->limit < gate ? a->limit : gate;
    float u = a->limit < up ? a->limit : up;
    u = -a->limit > u ? -a->limit : u;
    return g / (1.0f + em_exp(-(a->alpha * g))) * (u + a->offset);
}

#endif
