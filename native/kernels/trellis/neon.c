/* The search for codes of trellis formats, and the feedback of errors with NEON; the same costs as generic.c. No speed was measured on any processor. */
#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct ints {
    int32x4_t at[4];
} INTS;

typedef struct floats {
    float32x4_t at[4];
} FLOATS;

#define EVERY_QUARTER(type, name, instruction)                                                                        \
    static inline type name(type a, type b) {                                                                         \
        return (type){{instruction(a.at[0], b.at[0]), instruction(a.at[1], b.at[1]), instruction(a.at[2], b.at[2]),   \
                       instruction(a.at[3], b.at[3])}};                                                               \
    }

EVERY_QUARTER(FLOATS, mul, vmulq_f32)
EVERY_QUARTER(FLOATS, add_floats, vaddq_f32)
EVERY_QUARTER(FLOATS, sub_floats, vsubq_f32)
EVERY_QUARTER(FLOATS, smaller_float, vminq_f32)
EVERY_QUARTER(FLOATS, larger_float, vmaxq_f32)
EVERY_QUARTER(INTS, add, vaddq_s32)
EVERY_QUARTER(INTS, sub, vsubq_s32)
EVERY_QUARTER(INTS, smaller, vminq_s32)
EVERY_QUARTER(INTS, both, vandq_s32)
EVERY_QUARTER(INTS, either, vorrq_s32)

static inline bool none_larger(FLOATS a, FLOATS b) {
    uint32x4_t all = vcleq_f32(a.at[0], b.at[0]);
    for (int quarter = 1; quarter < 4; quarter++) all = vandq_u32(all, vcleq_f32(a.at[quarter], b.at[quarter]));
    return vminvq_u32(all) == UINT32_MAX;
}

static inline FLOATS load_floats(const float *at) {
    return (FLOATS){{vld1q_f32(at), vld1q_f32(at + 4), vld1q_f32(at + 8), vld1q_f32(at + 12)}};
}

static inline INTS load_ints(const int32_t *at) {
    return (INTS){{vld1q_s32(at), vld1q_s32(at + 4), vld1q_s32(at + 8), vld1q_s32(at + 12)}};
}

static inline FLOATS spread(float number) {
    const float32x4_t four = vdupq_n_f32(number);
    return (FLOATS){{four, four, four, four}};
}

static inline INTS truncate(FLOATS a) {
    return (INTS){{vcvtq_s32_f32(a.at[0]), vcvtq_s32_f32(a.at[1]), vcvtq_s32_f32(a.at[2]), vcvtq_s32_f32(a.at[3])}};
}

static inline INTS spread_int(int32_t number) {
    const int32x4_t four = vdupq_n_s32(number);
    return (INTS){{four, four, four, four}};
}

static inline INTS shift_left(INTS a, int32_t bits) {
    const int32x4_t by = vdupq_n_s32(bits);
    return (INTS){{vshlq_s32(a.at[0], by), vshlq_s32(a.at[1], by), vshlq_s32(a.at[2], by), vshlq_s32(a.at[3], by)}};
}

static inline void store_ints(int32_t *at, INTS a) {
    for (int quarter = 0; quarter < 4; quarter++) vst1q_s32(at + 4 * quarter, a.at[quarter]);
}

static inline void store_floats(float *at, FLOATS a) {
    for (int quarter = 0; quarter < 4; quarter++) vst1q_f32(at + 4 * quarter, a.at[quarter]);
}

#include "feed.h"
#include "search.h"

void em_search_trellis_neon(const em_trellis_panel *panel, int32_t chain) { search(panel, chain); }

void em_feed_trellis_neon(const em_trellis_unit *unit) { feed(unit); }
