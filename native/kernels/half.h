/* float16 <-> float32 in plain C. */
#ifndef EDGEMOE_HALF_H
#define EDGEMOE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float em_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t em_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float em_half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f; /* zero and subnormals: exact */
    if (exponent == 31) return em_from_bits(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
    return em_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

/* Rounds half to even; overflows to infinity; a NaN stays one. */
static inline uint16_t em_float_to_half(float value) {
    const uint32_t bits = em_to_bits(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x47800000) return (uint16_t)(sign | 0x7c00); /* 65536 and more */
    if (magnitude < 0x38800000) { /* below 2^-14: adding 0.5 leaves the multiple of 2^-24, rounded, in the low bits */
        return (uint16_t)(sign | (em_to_bits(em_from_bits(magnitude) + 0.5f) - 0x3f000000));
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

#endif
