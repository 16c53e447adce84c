/* Panel products with NEON and its dot products (ARMv8.2-A with FEAT_DotProd); the same bits as matmul/generic.c.
 *
 * A 16-byte vector of a quantised payload holds 4 rows x 4 columns, so a panel has four quarters. sdot multiplies its
 * bytes with 4 activations, which it takes by itself from one lane of a vector of 16, and adds the four products of
 * each row to that row's 32-bit sum. So a quarter's group of 32 columns is eight of them:
 *
 *   codes     of up to 6 bits are good int8 as they are; the sums start at -zero * sum(x), which takes their zero point off
 *   tables    one lookup makes 16 codes the int8 that they stand for
 *   8 bits    int8 already, -128 too
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
#include "floats_neon.h"
#include "grid_neon.h"
#include "lookahead.h"
#include "trellis_neon.h"

enum {
    QUADS = 8,    /* of a group */
    QUARTERS_TOGETHER = 2,
    /* A group's activations of so many rows still lie in a four-way cache when rows are 4096 bytes apart. */
    ROWS_TOGETHER = 16,
    /* Prefetches go this far ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    TRELLIS_BYTES_AHEAD = 4096, /* of payloads */
};

/* Quad `quad` of a plane of `bits` bits, of which `at` is the first byte of these 4 rows, moved to the bits from `to` on. */
INLINE uint8x16_t plane_quad(const uint8_t *at, int bits, int quad, int to) {
    const int from = quad / bits * bits;
    const uint8x16_t line = vld1q_u8(at + quad % bits * EM_LINE_BYTES);
    const uint8x16_t moved = vshlq_u8(line, vdupq_n_s8((int8_t)(to - from))); /* to the right, of a negative number */
    return vandq_u8(moved, vdupq_n_u8((uint8_t)(((1 << bits) - 1) << to)));
}

/* The weights of 4 rows x 32 columns, one vector per quad of columns. */
INLINE void unpack(const uint8_t *payload, int quarter, int format, int8x16_t weights[QUADS]) {
    const uint8_t *at = payload + quarter * (EM_LINE_BYTES / QUARTERS);
    const int bits = em_numbers(format).bits, low_bits = bits > 4 ? 4 : bits == 3 ? 2 : bits, high_bits = bits - low_bits;
    const int table = em_numbers(format).table;
    if (em_numbers(format).grid != EM_GRID_NONE) {
        grid_unpack(payload, quarter, format, weights);
        return;
    }
    if (bits == 8 || em_is_trellis(format)) { /* which is unpacked before (unpack_trellis) */
        for (int quad = 0; quad < QUADS; quad++) weights[quad] = vreinterpretq_s8_u8(vld1q_u8(at + quad * EM_LINE_BYTES));
        return;
    }
    if (bits == 4) {
        for (int quad = 0; quad < QUADS / 2; quad++) {
            const uint8x16_t bytes = vld1q_u8(at + quad * EM_LINE_BYTES);
            weights[quad] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
            weights[quad + QUADS / 2] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
        }
    }
    for (int quad = 0; bits != 4 && quad < QUADS; quad++) { /* the planes of formats.PLANES; codes of 1 bit are doubled */
        uint8x16_t codes = plane_quad(at, low_bits, quad, bits == 1);
        if (high_bits) codes = vorrq_u8(codes, plane_quad(at + low_bits * EM_LINE_BYTES, high_bits, quad, low_bits));
        weights[quad] = vreinterpretq_s8_u8(codes);
    }
    if (table != EM_TABLE_E2M1 && table != EM_TABLE_IQ4) return;
    static const int8_t e2m1[16] = {EM_E2M1_SIGNED}, iq4[16] = {EM_IQ4_SIGNED};
    const int8x16_t values = vld1q_s8(table == EM_TABLE_E2M1 ? e2m1 : iq4);
    for (int quad = 0; quad < QUADS; quad++) {
        weights[quad] = vqtbl1q_s8(values, vreinterpretq_u8_s8(weights[quad]));
    }
}

/* One activation row's part in a group. */
typedef struct group_input {
    int8x16_t x[2];     /* columns 0-15 and 16-31 */
    int32x4_t first[2]; /* where the integer sums of the group, or of its halves, begin */
    float scale, scaled_sum;
    int32_t half_sums[2];
} group_input;

INLINE group_input load_input(const int8_t *values, const em_group *group, int format) {
    const int32_t zero = em_signed_zero(format);
    group_input in = {
        .x = {vld1q_s8(values), vld1q_s8(values + EM_HALF_COLUMNS)},
        .first = {vdupq_n_s32(0), vdupq_n_s32(0)},
        .scale = group->scale,
        .scaled_sum = group->scaled_sum,
        .half_sums = {group->half_sums[0], group->half_sums[1]},
    };
    if (zero != 0 && em_numbers(format).halves == 1) in.first[0] = vdupq_n_s32(em_start(group, zero));
    for (int half = 0; half < 2 && zero != 0 && em_numbers(format).halves == 2; half++) {
        in.first[half] = vdupq_n_s32(em_half_start(group, half, zero));
    }
    return in;
}

/* Four quads with the 16 activations of their columns. */
INLINE int32x4_t dot_quads(int32x4_t sums, const int8x16_t weights[QUADS / 2], int8x16_t x) {
    sums = vdotq_laneq_s32(sums, weights[0], x, 0);
    sums = vdotq_laneq_s32(sums, weights[1], x, 1);
    sums = vdotq_laneq_s32(sums, weights[2], x, 2);
    return vdotq_laneq_s32(sums, weights[3], x, 3);
}

/* The numbers of 4 rows for one group. */
typedef struct row_numbers {
    float32x4_t scales[2], minimum;   /* the second scale is that of the second half, where factors are e4m3 */
    int32x4_t factors[2], offsets[2]; /* of both halves (em_has_half_factors) */
} row_numbers;

/* Those of a format with a grid. */
INLINE row_numbers grid_numbers(const uint8_t *panel, em_sections at, int32_t g, int quarter, int format) {
    const int32x4_t none = vdupq_n_s32(0);
    float32x4_t scale = grid_scale(panel, at, g, quarter, format);
    row_numbers rows = {{scale, scale}, scale, {none, none}, {none, none}};
    for (int half = 0; half < em_numbers(format).halves; half++) {
        rows.factors[half] = grid_factors(panel, at, g, half, quarter, format);
    }
    if (em_numbers(format).halves == 1) rows.scales[0] = vmulq_f32(scale, vcvtq_f32_s32(rows.factors[0]));
    return rows;
}

INLINE row_numbers load_numbers(const uint8_t *panel, em_sections at, int32_t g, int quarter, int format) {
    const em_format_numbers numbers = em_numbers(format);
    if (numbers.grid != EM_GRID_NONE) return grid_numbers(panel, at, g, quarter, format);
    if (em_is_trellis(format)) {
        const float32x4_t of_trellis = trellis_scale(panel, at, g, quarter, format);
        return (row_numbers){.scales = {of_trellis, of_trellis}, .minimum = of_trellis};
    }
    const size_t shared = (size_t)(g >> numbers.scale_shift), scales_bytes = em_scales_bytes(format);
    const uint8_t *scales = panel + at.scales + shared * scales_bytes + (size_t)quarter * (scales_bytes / QUARTERS);
    const float32x4_t scale = load_scales(scales, format);
    const int32x4_t none = vdupq_n_s32(0);
    row_numbers rows = {{scale, scale}, scale, {none, none}, {none, none}};
    if (numbers.has_minimums) {
        const size_t bytes = em_minimums_bytes(format);
        rows.minimum = em_load_four_halves(panel + at.minimums + shared * bytes + (size_t)quarter * (bytes / QUARTERS));
    }
    for (int half = 0; half < numbers.halves; half++) {
        const size_t number = ((size_t)g * numbers.halves + half) * EM_PANEL_ROWS + (size_t)quarter * QUARTER_ROWS;
        const uint8_t *factors = panel + at.factors + number, *offsets = panel + at.offsets + number;
        if (numbers.factor == EM_FACTOR_INT8) {
            rows.factors[half] = vshrq_n_s32(vshlq_n_s32(load_bytes(factors), 24), 24);
            if (numbers.halves == 1) rows.scales[0] = vmulq_f32(scale, vcvtq_f32_s32(rows.factors[0]));
        } else if (numbers.factor == EM_FACTOR_NIBBLE) {
            const int32x4_t both = load_bytes(factors);
            rows.factors[half] = vandq_s32(both, vdupq_n_s32(15));
            rows.offsets[half] = vshrq_n_s32(both, 4);
        } else if (numbers.factor == EM_FACTOR_E4M3) {
            rows.scales[half] = vmulq_f32(scale, vmulq_n_f32(load_e4m3(factors), EM_E4M3_HALVED));
        }
        if (numbers.has_offsets && numbers.halves == 1) {
            rows.minimum = vmulq_f32(rows.minimum, vcvtq_f32_s32(load_bytes(offsets)));
        }
    }
    return rows;
}

/* `sum` and the share of one group. */
INLINE float32x4_t add_group(float32x4_t sum, const int8x16_t weights[QUADS], const group_input *in,
                             const row_numbers *rows, int format) {
    const em_format_numbers numbers = em_numbers(format);
    int32x4_t dots = dot_quads(in->first[0], weights, in->x[0]);
    const int last = numbers.factor == EM_FACTOR_E4M3;
    if (em_has_half_factors(format)) {
        const int32x4_t second = dot_quads(in->first[1], weights + QUADS / 2, in->x[1]);
        dots = vmlaq_s32(vmulq_s32(dots, rows->factors[0]), second, rows->factors[1]);
    } else {
        if (last) {
            sum = vfmaq_f32(sum, vcvtq_f32_s32(dots), vmulq_n_f32(rows->scales[0], in->scale));
            dots = in->first[1];
        }
        dots = dot_quads(dots, weights + QUADS / 2, in->x[1]);
    }
    sum = vfmaq_f32(sum, vcvtq_f32_s32(dots), vmulq_n_f32(rows->scales[last], in->scale));
    if (em_has_half_factors(format) && numbers.has_offsets) {
        const int32x4_t first = vmulq_n_s32(rows->offsets[0], in->half_sums[0]);
        const int32x4_t offset = vmlaq_n_s32(first, rows->offsets[1], in->half_sums[1]);
        return vfmsq_f32(sum, vcvtq_f32_s32(offset), vmulq_n_f32(rows->minimum, in->scale));
    }
    if (numbers.has_offsets) return vfmsq_n_f32(sum, rows->minimum, in->scaled_sum);
    return numbers.has_minimums ? vfmaq_n_f32(sum, rows->minimum, in->scaled_sum) : sum;
}

/* One activation row times one panel, with prefetches ahead in the stream of panels. */
INLINE void quantised_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const em_sections at = em_sections_of(format, group_count);
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    float32x4_t sums[QUARTERS];
    for (int quarter = 0; quarter < QUARTERS; quarter++) sums[quarter] = vdupq_n_f32(0);
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, format);
        const group_input in = load_input(values + (size_t)g * EM_GROUP_COLUMNS, groups + g, format);
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            int8x16_t weights[QUADS];
            unpack(panel + (size_t)g * payload_bytes, quarter, format, weights);
            const row_numbers numbers = load_numbers(panel, at, g, quarter, format);
            sums[quarter] = add_group(sums[quarter], weights, &in, &numbers, format);
        }
    }
    for (int quarter = 0; quarter < QUARTERS; quarter++) vst1q_f32(out + quarter * QUARTER_ROWS, sums[quarter]);
}

/* The same with a trellis. A payload's groups follow one another while its planes are at hand. */
INLINE void trellis_row(const uint8_t *head, const uint8_t *panel, const em_activations *x, int32_t row, float *out,
                        int format) {
    const int32_t group_count = x->group_count;
    const int each = em_trellis_weights(format), ahead = TRELLIS_BYTES_AHEAD / (int)em_payload_bytes(format) * each;
    const em_sections at = em_sections_of(format, group_count);
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    const trellis_tables tables = trellis_load_tables(head, format);
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, em_panel_bytes(format, x->columns), ahead);
    float32x4_t sums[QUARTERS];
    for (int quarter = 0; quarter < QUARTERS; quarter++) sums[quarter] = vdupq_n_f32(0);
    for (int32_t first = 0; first < group_count; first += each) {
        const int32_t left = group_count - first, count = left < each ? left : each;
        for (int32_t i = 0; i < count; i++) em_prefetch_group(&next, format);
        for (int quarter = 0; quarter < QUARTERS; quarter++) {
            uint8x16_t planes[EM_TRELLIS_PLANES + 1];
            trellis_planes(panel, format, (size_t)(first / each), quarter, planes);
            EM_UNROLLED for (int i = 0; i < each; i++) {
                if (i >= count) break;
                const int32_t g = first + i;
                const group_input in = load_input(values + (size_t)g * EM_GROUP_COLUMNS, groups + g, format);
                const row_numbers numbers = load_numbers(panel, at, g, quarter, format);
                int8x16_t weights[QUADS];
                EM_UNROLLED for (int quad = 0; quad < QUADS; quad++) {
                    weights[quad] = trellis_quad(&tables, planes, format, i * QUADS + quad);
                }
                sums[quarter] = add_group(sums[quarter], weights, &in, &numbers, format);
            }
        }
    }
    for (int quarter = 0; quarter < QUARTERS; quarter++) vst1q_f32(out + quarter * QUARTER_ROWS, sums[quarter]);
}

/* The values of a payload of a trellis, with which group g begins: quads of 64 bytes. */
INLINE void unpack_trellis(const uint8_t *head, const uint8_t *panel, int format, int32_t g, uint8_t *unpacked) {
    const int each = em_trellis_weights(format);
    const trellis_tables tables = trellis_load_tables(head, format);
    for (int quarter = 0; quarter < QUARTERS; quarter++) {
        uint8x16_t planes[EM_TRELLIS_PLANES + 1];
        trellis_planes(panel, format, (size_t)(g / each), quarter, planes);
        EM_UNROLLED for (int quad = 0; quad < each * QUADS; quad++) {
            uint8_t *to = unpacked + quad * EM_LINE_BYTES + quarter * (EM_LINE_BYTES / QUARTERS);
            vst1q_u8(to, vreinterpretq_u8_s8(trellis_quad(&tables, planes, format, quad)));
        }
    }
}

/* `count` activation rows times one group of QUARTERS_TOGETHER quarters, added to the sums in `out`; the group's payload is
 * `payload`. */
INLINE void add_group_of_rows(const uint8_t *panel, const uint8_t *payload, const em_activations *x, int32_t g,
                              int first_quarter, const int32_t *rows, int32_t count, float *out, size_t out_stride,
                              int format) {
    const int32_t group_count = x->group_count;
    const em_sections sections = em_sections_of(format, group_count);
    /* Kept apart from `x`, which for all that the compiler knows the stores below might change. */
    const em_group *groups = x->groups + g;
    const int8_t *values = x->values + (size_t)g * EM_GROUP_COLUMNS;
    int8x16_t weights[QUARTERS_TOGETHER][QUADS];
    row_numbers numbers[QUARTERS_TOGETHER];
    for (int i = 0; i < QUARTERS_TOGETHER; i++) {
        unpack(payload, first_quarter + i, format, weights[i]);
        numbers[i] = load_numbers(panel, sections, g, first_quarter + i, format);
    }
    out += first_quarter * QUARTER_ROWS;
    for (int32_t row = 0; row < count; row++, out += out_stride) {
        const size_t at = (size_t)rows[row] * group_count;
        const group_input in = load_input(values + at * EM_GROUP_COLUMNS, groups + at, format);
        for (int i = 0; i < QUARTERS_TOGETHER; i++) {
            float *sum = out + i * QUARTER_ROWS;
            vst1q_f32(sum, add_group(vld1q_f32(sum), weights[i], &in, &numbers[i], format));
        }
    }
}

/* `count` activation rows, at most ROWS_TOGETHER, times one panel of a matrix whose head is `head`. */
INLINE void quantised_rows(const uint8_t *head, const uint8_t *panel, const em_activations *x, const int32_t *rows,
                           int32_t count, float *out, size_t out_stride, int format) {
    uint8_t unpacked[EM_TRELLIS_WEIGHTS * EM_PANEL_ROWS * EM_GROUP_COLUMNS]; /* a payload of a trellis */
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    em_lookahead next = em_look_ahead(panel, x->group_count, 0, x->group_count, format, panel_bytes, GROUPS_AHEAD);
    for (int32_t row = 0; row < count; row++) memset(out + (size_t)row * out_stride, 0, EM_PANEL_ROWS * sizeof *out);
    for (int32_t g = 0; g < x->group_count; g++) {
        const uint8_t *payload = panel + (size_t)g * em_payload_bytes(format);
        em_prefetch_group(&next, format);
        if (em_is_trellis(format)) {
            const int32_t within = g % em_trellis_weights(format);
            if (within == 0) unpack_trellis(head, panel, format, g, unpacked);
            payload = unpacked + within * EM_PANEL_ROWS * EM_GROUP_COLUMNS;
        }
        for (int quarter = 0; quarter < QUARTERS; quarter += QUARTERS_TOGETHER) {
            add_group_of_rows(panel, payload, x, g, quarter, rows, count, out, out_stride, format);
        }
    }
}

INLINE void quantised_panels(const uint8_t *head, const uint8_t *panel, int32_t panel_count, const em_activations *x,
                             const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    for (int32_t p = 0; p < panel_count; p++, panel += panel_bytes, out += EM_PANEL_ROWS) {
        if (count == 1 && em_is_trellis(format)) {
            trellis_row(head, panel, x, rows[0], out, format);
            continue;
        }
        if (count == 1) {
            quantised_row(panel, x, rows[0], out, format);
            continue;
        }
        for (int32_t done = 0; done < count; done += ROWS_TOGETHER) {
            const int32_t now = count - done < ROWS_TOGETHER ? count - done : ROWS_TOGETHER;
            quantised_rows(head, panel, x, rows + done, now, out + (size_t)done * out_stride, out_stride, format);
        }
    }
}

#define DEFINE_PANELS(NAME, name, products)                                                                         \
    void em_panels_##name##_neon(const em_matrix *matrix, int32_t first, int32_t panel_count,                      \
                                 const em_activations *x, const int32_t *rows, int32_t count, float *out,          \
                                 size_t out_stride) {                                                              \
        products(matrix->data, em_panel(matrix, first, EM_##NAME), panel_count, x, rows, count, out, out_stride,   \
                 EM_##NAME);                                                                                       \
    }

DEFINE_PANELS(F32, f32, float_panels)
DEFINE_PANELS(F16, f16, float_panels)
DEFINE_PANELS(BF16, bf16, float_panels)
DEFINE_PANELS(F8, f8, e4m3_panels)
DEFINE_PANELS(M8, m8, e4m3_panels)
#define DEFINE_QUANTISED(NAME, name) DEFINE_PANELS(NAME, name, quantised_panels)
EM_QUANTISED_FORMATS(DEFINE_QUANTISED)
