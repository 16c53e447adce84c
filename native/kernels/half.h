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

/* Without a branch, for the compiler to take several at a time. */
static inline float em_half_to_float(uint16_t half) {
    const uint32_t magnitude = half & 0x7fff;
    /* The exponent's bias is 15 and shall be 127; the product does that, and is exact for subnormals too. */
    uint32_t bits = em_to_bits(em_from_bits(magnitude << 13) * 0x1p112f);
    bits |= magnitude >= 0x7c00 ? 0x7f800000 : 0;
    bits |= magnitude > 0x7c00 ? 0x400000 : 0; /* a NaN becomes a quiet one, as instructions do */
    return em_from_bits(bits | (uint32_t)(half & 0x8000) << 16);
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
