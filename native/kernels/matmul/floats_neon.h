/* Panel products of floats with NEON: of weights that are floats, and the loads of floats that scales are too. */
#ifndef EDGEMOE_FLOATS_NEON_H
#define EDGEMOE_FLOATS_NEON_H

#include <string.h>

#include "../neon.h"

enum {
    QUARTERS = 4, /* of a panel, 4 rows each */
    QUARTER_ROWS = EM_PANEL_ROWS / QUARTERS,
    FLOAT_ROWS_TOGETHER = 4,
    FLOAT_PANELS_TOGETHER = 2,
    FLOAT_BYTES_AHEAD = 4096, /* of prefetches: see neon.c */
};

INLINE int32x4_t load_bytes(const uint8_t *at) {
    uint32_t four;
    memcpy(&four, at, sizeof four);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

/* 4 bytes of e4m3 as floats divided by 256 (em_e4m3_half_bits). */
INLINE float32x4_t load_e4m3(const uint8_t *at) {
    const uint16x4_t code = vmovn_u32(vreinterpretq_u32_s32(load_bytes(at)));
    const uint16x4_t sign = vshl_n_u16(vand_u16(code, vdup_n_u16(128)), 8);
    const uint16x4_t rest = vshl_n_u16(vand_u16(code, vdup_n_u16(127)), 7);
    return vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(sign, rest)));
}

/* The scales of 4 rows. */
INLINE float32x4_t load_scales(const uint8_t *at, int format) {
    if (em_numbers(format).scale == EM_SCALE_F16) return em_load_four_halves(at);
    if (em_numbers(format).scale == EM_SCALE_F32) return vreinterpretq_f32_u8(vld1q_u8(at));
    const int32x4_t e = load_bytes(at); /* em_e8m0_half_bits */
    const int32x4_t normal = vshlq_n_s32(vsubq_s32(e, vdupq_n_s32(1)), 23);
    const int32x4_t below_normal = vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(1)), 21);
    return vreinterpretq_f32_s32(vmaxq_s32(normal, below_normal));
}

/* 4 rows of one column of f32, f16 or bf16 weights. */
INLINE float32x4_t load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return em_load_four_halves(panel + 2 * index);
    if (format == EM_BF16) return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(panel + 2 * index)), 16));
    return vreinterpretq_f32_u8(vld1q_u8(panel + 4 * index));
}

/* `count` activation rows times `panels` panels; the two numbers are known when this is compiled. A column is one step
 * of each sum, so 8 or 16 sums side by side hide the time that a step takes. */
INLINE void float_tile(const uint8_t *panel, int panels, const em_activations *x, const int32_t *rows, int count,
                       float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns), column_bytes = format == EM_F32 ? 64 : 32;
    const float *inputs[FLOAT_ROWS_TOGETHER];
    float32x4_t sums[FLOAT_PANELS_TOGETHER][FLOAT_ROWS_TOGETHER][QUARTERS];
    for (int t = 0; t < count; t++) inputs[t] = x->floats + (size_t)rows[t] * x->columns;
    for (int p = 0; p < panels; p++) {
        for (int t = 0; t < count; t++) {
            for (int quarter = 0; quarter < QUARTERS; quarter++) sums[p][t][quarter] = vdupq_n_f32(0);
        }
    }
    for (int32_t column = 0; column < x->columns; column++) {
        for (int p = 0; p < panels; p++) {
            const uint8_t *at = panel + p * panel_bytes;
            if (count == 1) __builtin_prefetch(at + (size_t)column * column_bytes + FLOAT_BYTES_AHEAD);
            for (int quarter = 0; quarter < QUARTERS; quarter++) {
                const size_t index = (size_t)column * EM_PANEL_ROWS + (size_t)quarter * QUARTER_ROWS;
                const float32x4_t weights = load_weights(at, index, format);
                for (int t = 0; t < count; t++) {
                    sums[p][t][quarter] = vfmaq_n_f32(sums[p][t][quarter], weights, inputs[t][column]);
                }
            }
        }
    }
    for (int p = 0; p < panels; p++) {
        for (int t = 0; t < count; t++) {
            float *to = out + (size_t)t * out_stride + p * EM_PANEL_ROWS;
            for (int quarter = 0; quarter < QUARTERS; quarter++) {
                vst1q_f32(to + quarter * QUARTER_ROWS, sums[p][t][quarter]);
            }
        }
    }
}

/* `count` activation rows times a panel of e4m3 weights, whose scales multiply the sums of whole groups. */
INLINE void e4m3_tile(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                      size_t out_stride, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const size_t scales_bytes = em_scales_bytes(format);
    const uint8_t *scales = panel + em_sections_of(format, em_group_count(x->columns)).scales;
    const float *inputs[FLOAT_ROWS_TOGETHER];
    float32x4_t sums[FLOAT_ROWS_TOGETHER][QUARTERS], partial[FLOAT_ROWS_TOGETHER][QUARTERS];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns;
        for (int quarter = 0; quarter < QUARTERS; quarter++) sums[t][quarter] = vdupq_n_f32(0);
    }
    for (int32_t first = 0; first < x->columns; first += EM_GROUP_COLUMNS) {
        const int32_t end = x->columns - first < EM_GROUP_COLUMNS ? x->columns : first + EM_GROUP_COLUMNS;
        const uint8_t *shared = scales + (size_t)(first / EM_GROUP_COLUMNS >> numbers.scale_shift) * scales_bytes;
        for (int t = 0; t < count; t++) {
            for (int quarter = 0; quarter < QUARTERS; quarter++) partial[t][quarter] = vdupq_n_f32(0);
        }
        for (int32_t column = first; column < end; column++) {
            const uint8_t *codes = panel + (size_t)column * EM_PANEL_ROWS;
            if (count == 1 && column % 4 == 0) __builtin_prefetch(codes + FLOAT_BYTES_AHEAD);
            for (int quarter = 0; quarter < QUARTERS; quarter++) {
                const float32x4_t weights = load_e4m3(codes + quarter * QUARTER_ROWS);
                for (int t = 0; t < count; t++) {
                    partial[t][quarter] = vfmaq_n_f32(partial[t][quarter], weights, inputs[t][column]);
                }
            }
        }
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            const float32x4_t given = load_scales(shared + (size_t)quarter * (scales_bytes / QUARTERS), format);
            const float32x4_t scale = vmulq_n_f32(given, em_e4m3_unit(format));
            for (int t = 0; t < count; t++) sums[t][quarter] = vfmaq_f32(sums[t][quarter], partial[t][quarter], scale);
        }
    }
    for (int t = 0; t < count; t++) {
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            vst1q_f32(out + (size_t)t * out_stride + quarter * QUARTER_ROWS, sums[t][quarter]);
        }
    }
}

INLINE void e4m3_panels(const uint8_t *head, const uint8_t *panel, int32_t panel_count, const em_activations *x,
                        const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    (void)head;
    for (int32_t p = 0; p < panel_count; p++, panel += em_panel_bytes(format, x->columns), out += EM_PANEL_ROWS) {
        int32_t i = 0;
        for (; i + STEP <= count; i += STEP) {
            e4m3_tile(panel, x, rows + i, STEP, out + (size_t)i * out_stride, out_stride, format);
        }
        for (; i < count; i++) e4m3_tile(panel, x, rows + i, 1, out + (size_t)i * out_stride, out_stride, format);
    }
}

/* `panels` panels, one or FLOAT_PANELS_TOGETHER: four activation rows at a time with one of them, then one with all. */
INLINE void float_panels_together(const uint8_t *panel, int panels, const em_activations *x, const int32_t *rows,
                                  int32_t count, float *out, size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t in_steps = count / STEP * STEP;
    for (int p = 0; p < panels; p++) {
        for (int32_t i = 0; i < in_steps; i += STEP) {
            float *to = out + (size_t)i * out_stride + p * EM_PANEL_ROWS;
            float_tile(panel + p * panel_bytes, 1, x, rows + i, STEP, to, out_stride, format);
        }
    }
    for (int32_t i = in_steps; i < count; i++) {
        float_tile(panel, panels, x, rows + i, 1, out + (size_t)i * out_stride, out_stride, format);
    }
}

INLINE void float_panels(const uint8_t *head, const uint8_t *panel, int32_t panel_count, const em_activations *x,
                         const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    enum { STEP = FLOAT_PANELS_TOGETHER };
    (void)head;
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    for (; panel_count >= STEP; panel_count -= STEP, panel += STEP * panel_bytes, out += STEP * EM_PANEL_ROWS) {
        float_panels_together(panel, STEP, x, rows, count, out, out_stride, format);
    }
    if (panel_count > 0) float_panels_together(panel, 1, x, rows, count, out, out_stride, format);
}

#endif
