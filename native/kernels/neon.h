/* What the NEON files share. A vector has four floats, so the eight lanes of a lane sum are two of them. */
#ifndef EDGEMOE_NEON_H
#define EDGEMOE_NEON_H

#include <arm_neon.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct em_lanes {
    float32x4_t low;  /* lanes 0 to 3 */
    float32x4_t high; /* lanes 4 to 7 */
} em_lanes;

INLINE em_lanes em_load_lanes(const float *at) { return (em_lanes){vld1q_f32(at), vld1q_f32(at + 4)}; }

INLINE em_lanes em_load_half_lanes(const uint16_t *at) {
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(at));
    return (em_lanes){vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}

INLINE void em_store_lanes(float *at, em_lanes lanes) {
    vst1q_f32(at, lanes.low);
    vst1q_f32(at + 4, lanes.high);
}

/* Four float16 anywhere in memory. */
INLINE float32x4_t em_load_four_halves(const uint8_t *at) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at)));
}

#endif
