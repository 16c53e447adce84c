/* Panel products with NEON and its dot products (ARMv8.2-A with FEAT_DotProd); the same bits as matmul/generic.c.
 *
 * A 16-byte vector of a quantised payload holds 4 rows x 4 columns, so a panel has four quarters. sdot multiplies its
 * bytes with 4 activations, which it takes by itself from one lane of a vector of 16, and adds the four products of
 * each row to that row's 32-bit sum. So a quarter's group of 32 columns is eight of them:
 *
 *   q4    nibbles are 0 to 15, good int8 as they are; the sums start at -8 * sum(x), which takes off their zero point
 *   q4m   the same from 0; the minimum has its own share of the group's sum
 *   m4    one table lookup makes 16 codes the int8 that they stand for
 *   q8    int8 already, -128 too
 *
 * With one activation row the four quarters are four chains of sums that know nothing of each other, and prefetches run
 * ahead in the stream of panels. With several, the weights of two quarters fill 16 of the 32 registers and serve up to
 * ROWS_TOGETHER rows; the other two quarters of the group follow at once, from the first-level cache. The sums lie in
 * memory then: two loads and stores beside some 24 vector instructions.
 *
 * Correctness is tested under an emulator; no speed was measured on any processor. By the instruction counts (64 vector
 * instructions and some 20 more for a q4 group of 288 bytes) a core with two vector pipes takes 7 bytes a cycle, one
 * with four pipes 14: about what one core gets from memory. */
#include <string.h>

#include "../neon.h"
#include "lookahead.h"

enum {
    QUAD_BYTES = 64, /* 16 rows x 4 columns of int8 */
    QUADS = 8,       /* of a group */
    QUARTERS = 4,    /* of a panel, 4 rows each */
    QUARTER_ROWS = EM_PANEL_ROWS / QUARTERS,
    QUARTERS_TOGETHER = 2,
    /* A group's activations of so many rows still lie in a four-way cache when rows are 4096 bytes apart. */
    ROWS_TOGETHER = 16,
    FLOAT_ROWS_TOGETHER = 4,
    FLOAT_PANELS_TOGETHER = 2,
    /* Prefetches go this far ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    FLOAT_BYTES_AHEAD = 4096,
};

/* The weights of 4 rows x 32 columns, one vector per quad of columns. */
INLINE void unpack(const uint8_t *payload, int quarter, int format, int8x16_t weights[QUADS]) {
    const uint8_t *at = payload + quarter * (QUAD_BYTES / QUARTERS);
    if (format == EM_Q8) {
        for (int quad = 0; quad < QUADS; quad++) weights[quad] = vreinterpretq_s8_u8(vld1q_u8(at + quad * QUAD_BYTES));
        return;
    }
    for (int quad = 0; quad < QUADS / 2; quad++) {
        const uint8x16_t bytes = vld1q_u8(at + quad * QUAD_BYTES);
        weights[quad] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
        weights[quad + QUADS / 2] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    }
    if (format != EM_M4) return;
    static const int8_t table[16] = {EM_M4_SIGNED};
    const int8x16_t values = vld1q_s8(table);
    for (int quad = 0; quad < QUADS; quad++) {
        weights[quad] = vqtbl1q_s8(values, vreinterpretq_u8_s8(weights[quad]));
    }
}

/* One activation row's part in a group. */
typedef struct group_input {
    int8x16_t low, high; /* columns 0-15 and 16-31 */
    int32x4_t first;     /* where integer sums begin */
    float scale, scaled_sum;
} group_input;

INLINE group_input load_input(const int8_t *values, const em_group *group, int format) {
    return (group_input){
        .low = vld1q_s8(values),
        .high = vld1q_s8(values + 16),
        .first = format == EM_Q4 ? vld1q_dup_s32(&group->q4_start) : vdupq_n_s32(0),
        .scale = group->scale,
        .scaled_sum = group->scaled_sum,
    };
}

/* Four quads with the 16 activations of their columns. */
INLINE int32x4_t dot_quads(int32x4_t sums, const int8x16_t weights[QUADS / 2], int8x16_t x) {
    sums = vdotq_laneq_s32(sums, weights[0], x, 0);
    sums = vdotq_laneq_s32(sums, weights[1], x, 1);
    sums = vdotq_laneq_s32(sums, weights[2], x, 2);
    return vdotq_laneq_s32(sums, weights[3], x, 3);
}

/* The integer dots of 4 rows. */
INLINE int32x4_t dot_group(const int8x16_t weights[QUADS], group_input in) {
    return dot_quads(dot_quads(in.first, weights, in.low), weights + QUADS / 2, in.high);
}

/* The scales and, of q4m, the minimums of 4 rows. */
typedef struct row_numbers {
    float32x4_t scales;
    float32x4_t minimums;
} row_numbers;

/* The scales of 4 rows: float16 or, of m4, e8m0 (em_m4_scale_bits). */
INLINE float32x4_t load_scales(const uint8_t *at, int format) {
    if (format != EM_M4) return em_load_four_halves(at);
    uint32_t four;
    memcpy(&four, at, sizeof four);
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    const int32x4_t e = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
    const int32x4_t normal = vshlq_n_s32(vsubq_s32(e, vdupq_n_s32(1)), 23);
    const int32x4_t below_normal = vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(1)), 21);
    return vreinterpretq_f32_s32(vmaxq_s32(normal, below_normal));
}

INLINE row_numbers load_numbers(const uint8_t *panel, int32_t group_count, int32_t g, int quarter, int format) {
    const size_t scales_bytes = em_scales_bytes(format);
    const uint8_t *at = panel + (size_t)group_count * em_payload_bytes(format) + (size_t)g * scales_bytes +
                        (size_t)quarter * (scales_bytes / QUARTERS);
    row_numbers numbers = {load_scales(at, format), vdupq_n_f32(0)};
    if (format == EM_Q4M) numbers.minimums = em_load_four_halves(at + (size_t)group_count * scales_bytes);
    return numbers;
}

/* `sum` and one group's share. */
INLINE float32x4_t add_group(float32x4_t sum, int32x4_t dots, group_input in, row_numbers numbers, int format) {
    sum = vfmaq_f32(sum, vcvtq_f32_s32(dots), vmulq_n_f32(numbers.scales, in.scale));
    return format == EM_Q4M ? vfmaq_n_f32(sum, numbers.minimums, in.scaled_sum) : sum;
}

/* One activation row times one panel, with prefetches ahead in the stream of panels. */
INLINE void quantised_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    float32x4_t sums[QUARTERS];
    for (int quarter = 0; quarter < QUARTERS; quarter++) sums[quarter] = vdupq_n_f32(0);
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, group_count, group_count, format, panel_bytes);
        const group_input in = load_input(values + (size_t)g * EM_GROUP_COLUMNS, groups + g, format);
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            int8x16_t weights[QUADS];
            unpack(panel + (size_t)g * payload_bytes, quarter, format, weights);
            const int32x4_t dots = dot_group(weights, in);
            const row_numbers numbers = load_numbers(panel, group_count, g, quarter, format);
            sums[quarter] = add_group(sums[quarter], dots, in, numbers, format);
        }
    }
    for (int quarter = 0; quarter < QUARTERS; quarter++) vst1q_f32(out + quarter * QUARTER_ROWS, sums[quarter]);
}

/* `count` activation rows times one group of QUARTERS_TOGETHER quarters, added to the sums in `out`. */
INLINE void add_group_of_rows(const uint8_t *panel, const em_activations *x, int32_t g, int first_quarter,
                              const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    const size_t payload_bytes = em_payload_bytes(format);
    const int32_t group_count = x->group_count;
    /* Kept apart from `x`, which for all that the compiler knows the stores below might change. */
    const em_group *groups = x->groups + g;
    const int8_t *values = x->values + (size_t)g * EM_GROUP_COLUMNS;
    int8x16_t weights[QUARTERS_TOGETHER][QUADS];
    row_numbers numbers[QUARTERS_TOGETHER];
    for (int i = 0; i < QUARTERS_TOGETHER; i++) {
        unpack(panel + (size_t)g * payload_bytes, first_quarter + i, format, weights[i]);
        numbers[i] = load_numbers(panel, group_count, g, first_quarter + i, format);
    }
    out += first_quarter * QUARTER_ROWS;
    for (int32_t row = 0; row < count; row++, out += out_stride) {
        const size_t at = (size_t)rows[row] * group_count;
        const group_input in = load_input(values + at * EM_GROUP_COLUMNS, groups + at, format);
        for (int i = 0; i < QUARTERS_TOGETHER; i++) {
            float *sum = out + i * QUARTER_ROWS;
            vst1q_f32(sum, add_group(vld1q_f32(sum), dot_group(weights[i], in), in, numbers[i], format));
        }
    }
}

/* `count` activation rows, at most ROWS_TOGETHER, times one panel. */
INLINE void quantised_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count,
                           float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    em_lookahead next = em_look_ahead(panel, x->group_count, 0, x->group_count, format, panel_bytes, GROUPS_AHEAD);
    for (int32_t row = 0; row < count; row++) memset(out + (size_t)row * out_stride, 0, EM_PANEL_ROWS * sizeof *out);
    for (int32_t g = 0; g < x->group_count; g++) {
        em_prefetch_group(&next, x->group_count, x->group_count, format, panel_bytes);
        for (int quarter = 0; quarter < QUARTERS; quarter += QUARTERS_TOGETHER) {
            add_group_of_rows(panel, x, g, quarter, rows, count, out, out_stride, format);
        }
    }
}

INLINE void quantised_panels(const uint8_t *panel, int32_t panel_count, const em_activations *x, const int32_t *rows,
                             int32_t count, float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    for (int32_t p = 0; p < panel_count; p++, panel += panel_bytes, out += EM_PANEL_ROWS) {
        if (count == 1) {
            quantised_row(panel, x, rows[0], out, format);
            continue;
        }
        for (int32_t done = 0; done < count; done += ROWS_TOGETHER) {
            const int32_t now = count - done < ROWS_TOGETHER ? count - done : ROWS_TOGETHER;
            quantised_rows(panel, x, rows + done, now, out + (size_t)done * out_stride, out_stride, format);
        }
    }
}

/* 4 rows of one column of f32 or f16 weights. */
INLINE float32x4_t load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return em_load_four_halves(panel + 2 * index);
    return vreinterpretq_f32_u8(vld1q_u8(panel + 4 * index));
}

/* `count` activation rows times `panels` panels; the two numbers are known when this is compiled. A column is one step
 * of each sum, so 8 or 16 sums side by side hide the time that a step takes. */
INLINE void float_tile(const uint8_t *panel, int panels, const em_activations *x, const int32_t *rows, int count,
                       float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns), column_bytes = format == EM_F16 ? 32 : 64;
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

INLINE void float_panels(const uint8_t *panel, int32_t panel_count, const em_activations *x, const int32_t *rows,
                         int32_t count, float *out, size_t out_stride, int format) {
    enum { STEP = FLOAT_PANELS_TOGETHER };
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    for (; panel_count >= STEP; panel_count -= STEP, panel += STEP * panel_bytes, out += STEP * EM_PANEL_ROWS) {
        float_panels_together(panel, STEP, x, rows, count, out, out_stride, format);
    }
    if (panel_count > 0) float_panels_together(panel, 1, x, rows, count, out, out_stride, format);
}

#define DEFINE_PANELS(name, format, products)                                                                       \
    void name(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,               \
              const int32_t *rows, int32_t count, float *out, size_t out_stride) {                                \
        products(em_panel(matrix, first, format), panel_count, x, rows, count, out, out_stride, format);          \
    }

DEFINE_PANELS(em_panels_f32_neon, EM_F32, float_panels)
DEFINE_PANELS(em_panels_f16_neon, EM_F16, float_panels)
DEFINE_PANELS(em_panels_q8_neon, EM_Q8, quantised_panels)
DEFINE_PANELS(em_panels_q4_neon, EM_Q4, quantised_panels)
DEFINE_PANELS(em_panels_q4m_neon, EM_Q4M, quantised_panels)
DEFINE_PANELS(em_panels_m4_neon, EM_M4, quantised_panels)
