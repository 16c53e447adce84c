/* The words in which C on the host, OpenCL C, CUDA and Metal's language differ, and numbers that all compute to the same
 * bits.
 *
 * A kernel's text is a function of one work-item, without barriers and without memory that work-items share: an item
 * writes what no other item of its launch reads or writes. So the order in which items run, and how many run at once,
 * cannot show. kernels/device/entries.py prints the entry of each kernel, which calls that function.
 *
 * Every sum has the written order of native/kernels/kernels.h. The text asks of a compiler that it neither contracts nor
 * reorders, that + - x / and the square root round to nearest, and that fused() rounds once; known answers tell. Numbers
 * below float32's normal range may be flushed: no half is converted by way of them. */
#ifdef __OPENCL_VERSION__
#pragma OPENCL FP_CONTRACT OFF
#define GLOBAL __global
#define TABLE __constant
#define INLINE static inline
typedef char i8;
typedef uchar u8;
typedef ushort u16;
typedef int i32;
typedef uint u32;
typedef ulong u64;
#define bits_of(value) as_uint(value)
#define of_bits(bits) as_float(bits)
#define fused(a, b, c) fma(a, b, c)
#define root(x) sqrt(x)
#elif defined __METAL_VERSION__
#pragma clang fp contract(off)
#define GLOBAL device
#define TABLE constant
#define INLINE static inline
typedef char i8;
typedef uchar u8;
typedef ushort u16;
typedef int i32;
typedef uint u32;
typedef ulong u64;
#define bits_of(value) as_type<u32>((float)(value))
#define of_bits(bits) as_type<float>((u32)(bits))
#define fused(a, b, c) metal::fma(a, b, c)
#define root(x) metal::precise::sqrt(x)
#elif defined __CUDACC__
#define GLOBAL
#define TABLE static __device__ const
#define INLINE static __device__ __forceinline__
typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef unsigned long long u64;
#define bits_of(value) __float_as_uint(value)
#define of_bits(bits) __uint_as_float(bits)
#define fused(a, b, c) __fmaf_rn(a, b, c)
#define root(x) __fsqrt_rn(x)
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#define GLOBAL
#define TABLE static const
#define INLINE static inline
typedef int8_t i8;
typedef uint8_t u8;
typedef uint16_t u16;
typedef int32_t i32;
typedef uint32_t u32;
typedef uint64_t u64;
INLINE u32 bits_of(float value) {
    u32 bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
INLINE float of_bits(u32 bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
#ifndef fused /* a test defines one that rounds twice */
#define fused(a, b, c) fmaf(a, b, c)
#endif
#define root(x) sqrtf(x)

/* What the entry of a kernel gets on the host, one for each argument. */
typedef union argument {
    void *buffer;
    i32 whole;
    float number;
} argument;
#endif

#define PANEL_ROWS 16
#define GROUP_COLUMNS 32
#define QUADS 8 /* of a group: 4 columns of a row, whose codes share a word */
#define LANES 8

/* What products need to know of a group of 32 quantised activations. */
typedef struct group {
    float scale;
    float scaled_sum;   /* scale * sum of the 32 integers */
    i32 half_sums[2];   /* of the first and of the last 16 integers */
} group;

/* A subnormal half is a whole number of 2^-24, so that no number below float32's normal range comes up. */
INLINE float of_half(u32 code) {
    const u32 magnitude = code & 0x7fff, sign_bit = (code & 0x8000) << 16;
    if (magnitude < 0x400) return of_bits(bits_of((float)magnitude * 5.9604644775390625e-8f) | sign_bit);
    if (magnitude < 0x7c00) return of_bits(((magnitude << 13) + 0x38000000) | sign_bit);
    return of_bits(magnitude << 13 | 0x7f800000 | (magnitude > 0x7c00 ? 0x400000 : 0) | sign_bit);
}

/* exp() in the steps of native/kernels/exponential.h. */
INLINE float exponential(float x) {
    x = 89.0f < x ? 89.0f : x;
    x = -104.0f > x ? -104.0f : x;
    const float rounded = fused(x, 1.44269504f, 12582912.0f);
    const float n = rounded - 12582912.0f;
    const i32 whole = (i32)(bits_of(rounded) - 0x4b400000u);
    float r = fused(n, -0.693359375f, x);
    r = fused(n, 2.12194440e-4f, r);
    float sum = fused(1.0f / 5040, r, 1.0f / 720);
    sum = fused(sum, r, 1.0f / 120);
    sum = fused(sum, r, 1.0f / 24);
    sum = fused(sum, r, 1.0f / 6);
    sum = fused(sum, r, 1.0f / 2);
    sum = fused(sum, r, 1.0f);
    sum = fused(sum, r, 1.0f);
    const i32 half_of = whole >> 1;
    return sum * of_bits((u32)(half_of + 127) << 23) * of_bits((u32)(whole - half_of + 127) << 23);
}

INLINE float fold_lanes(GLOBAL const float *lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}
