/* The scale of a group of 32 in an 8-bit cache; meant for files kernels/quantise/<isa>.c. */
#ifndef EDGEMOE_CACHE_SCALE_H
#define EDGEMOE_CACHE_SCALE_H

#include "../half.h"

typedef struct em_cache_scale {
    uint16_t half; /* what is stored: finite and not below 0, or the NaN 0x7e00 for a group that is then zeros */
    float factor;  /* what the group's numbers are multiplied with before they are rounded */
} em_cache_scale;

/* As reference.quantise_cache_rows does, given the group's largest magnitude, which may be infinite or a NaN. */
static inline em_cache_scale em_scale_for(float largest) {
    const uint16_t half = em_float_to_half(largest / 127.0f);
    if (half >= 0x7c00) return (em_cache_scale){0x7e00, 0.0f};
    return (em_cache_scale){half, half ? 1.0f / em_half_to_float(half) : 0.0f};
}

static inline int em_is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

#endif
