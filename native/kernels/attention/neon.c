/* Attention's scores and mixtures (rows.h) with NEON. No speed was measured on any processor. */
#include "../neon.h"
#include "element.h"

enum { KEYS_TOGETHER = 4 };

INLINE em_lanes broadcast(float number) { return (em_lanes){vdupq_n_f32(number), vdupq_n_f32(number)}; }

INLINE em_lanes times(em_lanes a, em_lanes b) {
    return (em_lanes){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}

INLINE em_lanes add_products(em_lanes sums, em_lanes a, em_lanes b) {
    return (em_lanes){vfmaq_f32(sums.low, a.low, b.low), vfmaq_f32(sums.high, a.high, b.high)};
}

INLINE em_lanes load8(em_cached rows, size_t at, em_lanes scale, int format) {
    if (format == EM_F32) return em_load_lanes((const float *)rows.elements + at);
    if (format == EM_F16) return em_load_half_lanes((const uint16_t *)rows.elements + at);
    const int16x8_t values = vmovl_s8(vld1_s8((const int8_t *)rows.elements + at));
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(values)));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(values));
    return times((em_lanes){low, high}, scale);
}

/* The scale of the group that a column lies in; nothing that is used where there are none. */
INLINE em_lanes load_scale(em_cached rows, size_t row, int32_t column, int format) {
    if (format != EM_Q8) return broadcast(0);
    return broadcast(em_half_to_float(rows.scales[em_scale_index(rows, row, column)]));
}

/* Of two vectors a and b: a0 + a2, a1 + a3, b0 + b2, b1 + b3. */
INLINE float32x4_t add_halves(float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)), vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}

/* Folds four vectors together, transposed. */
INLINE void store_folded(float *at, const em_lanes lanes[KEYS_TOGETHER], float scale) {
    float32x4_t once[KEYS_TOGETHER]; /* l0 + l4, l1 + l5, l2 + l6, l3 + l7 */
    for (int k = 0; k < KEYS_TOGETHER; k++) once[k] = vaddq_f32(lanes[k].low, lanes[k].high);
    const float32x4_t folded = vpaddq_f32(add_halves(once[0], once[1]), add_halves(once[2], once[3]));
    vst1q_f32(at, vmulq_n_f32(folded, scale));
}

#include "rows.h"

DEFINE_ATTENTION(neon, f32, EM_F32)
DEFINE_ATTENTION(neon, f16, EM_F16)
DEFINE_ATTENTION(neon, q8, EM_Q8)
