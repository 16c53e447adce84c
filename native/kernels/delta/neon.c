/* The delta rule and the scans with NEON; the same bits as generic.c. No speed was measured on any processor. */
#include <arm_neon.h>
#include <stdint.h>

#define VECTOR float32x4_t
enum { FLOATS = 4 };

static inline float32x4_t load(const float *at) { return vld1q_f32(at); }
static inline void store(float *at, float32x4_t values) { vst1q_f32(at, values); }
static inline float32x4_t spread(float number) { return vdupq_n_f32(number); }
static inline float32x4_t mul(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
static inline float32x4_t add(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
static inline float32x4_t sub(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
static inline float32x4_t fused(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
static inline float32x4_t fused_minus(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmsq_f32(c, a, b); }

#include "vectors.h"

void em_delta_neon(float *state, const em_delta_row *rows, int32_t row_count, int32_t width) {
    delta(state, rows, row_count, width);
}

void em_scan_neon(float *state, const em_scan_row *rows, int32_t row_count, int32_t width) {
    scan(state, rows, row_count, width);
}

void em_channels_neon(float *state, const em_channels_row *row, const float *skip, int32_t width) {
    scan_channels(state, row, skip, width);
}
