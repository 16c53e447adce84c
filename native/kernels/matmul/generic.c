/* Panel products in plain C: the meaning of matmul/<isa>.c, and the fallback everywhere.
 *
 * A group's codes become signed bytes first, whatever their format. The loops over 64 bytes (16 rows x 4 columns) are for
 * the compiler to turn into vectors of int16, which every processor has: each byte is multiplied with its column's
 * activation and added in a place of its own, and the four columns of a row are folded last. */
#include <math.h>
#include <string.h>

#include "../half.h"
#include "../kernels.h"
#include "grid.h"
#include "trellis.h"

enum { QUAD = 4, QUADS_PER_GROUP = EM_GROUP_COLUMNS / QUAD, QUAD_BYTES = EM_LINE_BYTES, NIBBLES = 15 };

/* The codes of a group: those of quad q from byte q * QUAD_BYTES on. */
static inline void unpack_codes(const uint8_t *payload, int32_t format, uint8_t *codes) {
    const int bits = em_numbers(format).bits, low_bits = bits > 4 ? 4 : bits == 3 ? 2 : bits;
    if (bits == 8) {
        memcpy(codes, payload, QUADS_PER_GROUP * QUAD_BYTES);
        return;
    }
    for (int quad = 0; quad < QUADS_PER_GROUP; quad++) {
        const uint8_t *line = payload + quad % low_bits * QUAD_BYTES;
        const int shift = quad / low_bits * low_bits, mask = (1 << low_bits) - 1;
        for (int i = 0; i < QUAD_BYTES; i++) codes[quad * QUAD_BYTES + i] = line[i] >> shift & mask;
    }
    const int high_bits = bits - low_bits;
    payload += low_bits * QUAD_BYTES;
    for (int quad = 0; high_bits && quad < QUADS_PER_GROUP; quad++) {
        const uint8_t *line = payload + quad % high_bits * QUAD_BYTES;
        const int shift = quad / high_bits * high_bits, mask = (1 << high_bits) - 1;
        for (int i = 0; i < QUAD_BYTES; i++) codes[quad * QUAD_BYTES + i] |= (line[i] >> shift & mask) << low_bits;
    }
}

/* The value of an e2m1 code, doubled: EM_E2M1_SIGNED by comparisons, which compilers turn into vectors. */
static inline int8_t doubled(int code) {
    const int size = code & 7;
    const int value = size + (size > 4) + (size > 5) + 3 * (size > 6);
    return (int8_t)(code & 8 ? -value : value);
}

/* The codes of a group as signed bytes, from which em_signed_zero has yet to be taken off. */
static inline void unpack(const uint8_t *payload, int32_t format, int8_t *values) {
    static const int8_t iq4[16] = {EM_IQ4_SIGNED};
    uint8_t codes[EM_PANEL_ROWS * EM_GROUP_COLUMNS];
    if (em_numbers(format).grid != EM_GRID_NONE) {
        em_grid_unpack(payload, format, values);
        return;
    }
    unpack_codes(payload, format, codes);
    for (int i = 0; i < EM_PANEL_ROWS * EM_GROUP_COLUMNS; i++) {
        switch (em_numbers(format).table) {
        case EM_TABLE_E2M1: values[i] = doubled(codes[i]); break;
        case EM_TABLE_IQ4: values[i] = iq4[codes[i] & NIBBLES]; break;
        case EM_TABLE_SIGNS: values[i] = (int8_t)(2 * codes[i]); break;
        default: values[i] = (int8_t)codes[i];
        }
    }
}

/* The activations of 4 columns, once for each of 16 rows. */
static inline void repeat_quad(const int8_t *x, int16_t *repeated) {
    const int16_t quad[QUAD] = {x[0], x[1], x[2], x[3]};
    for (int row = 0; row < EM_PANEL_ROWS; row++) memcpy(repeated + row * QUAD, quad, sizeof quad);
}

/* The integer dots of some quads, an even number of them. Two products of at most 128 * 127 fit in an int16. */
static inline void dot_quads(const int8_t *values, const int8_t *x, int quads, int32_t *dots) {
    int32_t products[QUAD_BYTES] = {0};
    for (int quad = 0; quad < quads; quad += 2) {
        const int8_t *first = values + quad * QUAD_BYTES, *second = first + QUAD_BYTES;
        int16_t x_first[QUAD_BYTES], x_second[QUAD_BYTES];
        repeat_quad(x + quad * QUAD, x_first);
        repeat_quad(x + (quad + 1) * QUAD, x_second);
        for (int i = 0; i < QUAD_BYTES; i++) {
            products[i] += (int16_t)(first[i] * x_first[i] + second[i] * x_second[i]);
        }
    }
    for (int row = 0; row < EM_PANEL_ROWS; row++) {
        const int32_t *p = products + row * QUAD;
        dots[row] = p[0] + p[1] + p[2] + p[3];
    }
}

/* 16 numbers of float16 or, for f32 weights, of float32. */
static inline void load_numbers(const uint8_t *at, int32_t format, float *numbers) {
    if (format == EM_F32) {
        memcpy(numbers, at, EM_PANEL_ROWS * sizeof *numbers);
        return;
    }
    uint16_t halves[EM_PANEL_ROWS];
    memcpy(halves, at, sizeof halves);
    for (int i = 0; i < EM_PANEL_ROWS; i++) {
        numbers[i] = format == EM_BF16 ? em_from_bits((uint32_t)halves[i] << 16) : em_half_to_float(halves[i]);
    }
}

static inline float e4m3(uint8_t code) { return em_half_to_float(em_e4m3_half_bits(code)); }

/* The scales of 16 rows for group g. */
static inline void load_scales(const uint8_t *section, int32_t g, int32_t format, float *scales) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *at = section + (size_t)(g >> numbers.scale_shift) * em_scales_bytes(format);
    if (numbers.scale != EM_SCALE_E8M0) {
        load_numbers(at, numbers.scale == EM_SCALE_F16 ? EM_F16 : EM_F32, scales);
        return;
    }
    for (int i = 0; i < EM_PANEL_ROWS; i++) scales[i] = em_from_bits((uint32_t)em_e8m0_half_bits(at[i]));
}

static inline int factor_of(uint8_t byte, int32_t format) {
    return em_numbers(format).factor == EM_FACTOR_NIBBLE ? byte & NIBBLES : (int8_t)byte;
}

/* Adds the share of group g of a format with a grid: see add_group. */
static inline void add_grid_group(const uint8_t *panel, em_sections at, int32_t g, const em_group *group,
                                  int32_t dots[2][EM_PANEL_ROWS], int32_t format, float *sums) {
    for (int i = 0; i < EM_PANEL_ROWS; i++) {
        const float scale = em_grid_scale(panel, at, format, g, i);
        const int factor = em_grid_factor(panel, at, format, g, 0, i);
        if (em_has_half_factors(format)) {
            const int32_t dot = factor * dots[0][i] + em_grid_factor(panel, at, format, g, 1, i) * dots[1][i];
            sums[i] = fmaf((float)dot, scale * group->scale, sums[i]);
        } else {
            sums[i] = fmaf((float)dots[0][i], scale * (float)factor * group->scale, sums[i]);
        }
    }
}

/* Adds that of a format with a trellis. */
static inline void add_trellis_group(const uint8_t *panel, em_sections at, int32_t g, const em_group *group,
                                     int32_t dots[2][EM_PANEL_ROWS], int32_t format, float *sums) {
    for (int i = 0; i < EM_PANEL_ROWS; i++) {
        const float scale = em_trellis_scale(panel, at, format, g, i);
        sums[i] = fmaf((float)dots[0][i], scale * group->scale, sums[i]);
    }
}

/* Adds the share of group g, whose dots of each half are `dots`, or of the whole group the first of them. */
static inline void add_group(const uint8_t *panel, em_sections at, int32_t g, const em_group *group,
                             int32_t dots[2][EM_PANEL_ROWS], int32_t format, float *sums) {
    const em_format_numbers numbers = em_numbers(format);
    if (numbers.grid != EM_GRID_NONE) {
        add_grid_group(panel, at, g, group, dots, format, sums);
        return;
    }
    if (em_is_trellis(format)) {
        add_trellis_group(panel, at, g, group, dots, format, sums);
        return;
    }
    const uint8_t *factors[2], *offsets[2];
    float scales[EM_PANEL_ROWS], minimums[EM_PANEL_ROWS];
    load_scales(panel + at.scales, g, format, scales);
    memcpy(minimums, scales, sizeof minimums);
    if (numbers.has_minimums) {
        load_numbers(panel + at.minimums + (size_t)(g >> numbers.scale_shift) * em_minimums_bytes(format), EM_F16, minimums);
    }
    for (int half = 0; half < 2; half++) {
        const size_t number = ((size_t)g * numbers.halves + (size_t)(half % numbers.halves)) * EM_PANEL_ROWS;
        factors[half] = panel + at.factors + number;
        offsets[half] = panel + at.offsets + number;
    }
    for (int i = 0; i < EM_PANEL_ROWS; i++) {
        if (em_has_half_factors(format)) {
            const int32_t dot = factor_of(factors[0][i], format) * dots[0][i] + factor_of(factors[1][i], format) * dots[1][i];
            sums[i] = fmaf((float)dot, scales[i] * group->scale, sums[i]);
            if (!numbers.has_offsets) continue;
            const int32_t sum = (factors[0][i] >> 4) * group->half_sums[0] + (factors[1][i] >> 4) * group->half_sums[1];
            sums[i] = fmaf(-(float)sum, minimums[i] * group->scale, sums[i]);
            continue;
        }
        if (numbers.factor == EM_FACTOR_E4M3) {
            for (int half = 0; half < 2; half++) {
                const float scale = scales[i] * (e4m3(factors[half][i]) * EM_E4M3_HALVED);
                sums[i] = fmaf((float)dots[half][i], scale * group->scale, sums[i]);
            }
            continue;
        }
        const float scale = numbers.factor == EM_FACTOR_NONE ? scales[i] : scales[i] * (float)factor_of(factors[0][i], format);
        sums[i] = fmaf((float)dots[0][i], scale * group->scale, sums[i]);
        if (numbers.has_offsets) minimums[i] = -(minimums[i] * (float)offsets[0][i]);
        if (numbers.has_offsets || numbers.has_minimums) sums[i] = fmaf(minimums[i], group->scaled_sum, sums[i]);
    }
}

static inline void quantised_product(const uint8_t *head, const uint8_t *panel, const em_activations *x, int32_t row,
                                     int32_t format, float *sums) {
    const int halves = em_numbers(format).halves, quads = QUADS_PER_GROUP / halves;
    const em_sections at = em_sections_of(format, x->group_count);
    const em_group *groups = x->groups + (size_t)row * x->group_count;
    const int8_t *input = x->values + (size_t)row * x->group_count * EM_GROUP_COLUMNS;
    const int32_t zero = em_signed_zero(format);
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t g = 0; g < x->group_count; g++, input += EM_GROUP_COLUMNS) {
        int8_t values[EM_PANEL_ROWS * EM_GROUP_COLUMNS];
        int32_t dots[2][EM_PANEL_ROWS];
        if (em_is_trellis(format)) em_trellis_unpack(head, panel, format, g, values);
        else unpack(panel + (size_t)g * em_payload_bytes(format), format, values);
        for (int half = 0; half < halves; half++) {
            const int32_t start = halves == 1 ? em_start(groups + g, zero) : em_half_start(groups + g, half, zero);
            dot_quads(values + half * quads * QUAD_BYTES, input + half * quads * QUAD, quads, dots[half]);
            for (int i = 0; i < EM_PANEL_ROWS; i++) dots[half][i] += start;
        }
        add_group(panel, at, g, groups + g, dots, format, sums);
    }
}

static inline void float_product(const uint8_t *head, const uint8_t *panel, const em_activations *x, int32_t row,
                                 int32_t format, float *sums) {
    (void)head;
    const float *input = x->floats + (size_t)row * x->columns;
    const size_t element_bytes = format == EM_F32 ? 4 : 2;
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t column = 0; column < x->columns; column++) {
        float weights[EM_PANEL_ROWS];
        load_numbers(panel + (size_t)column * EM_PANEL_ROWS * element_bytes, format, weights);
        for (int i = 0; i < EM_PANEL_ROWS; i++) sums[i] = fmaf(weights[i], input[column], sums[i]);
    }
}

static inline void e4m3_product(const uint8_t *head, const uint8_t *panel, const em_activations *x, int32_t row,
                                int32_t format, float *sums) {
    (void)head;
    const float *input = x->floats + (size_t)row * x->columns, unit = em_e4m3_unit(format);
    const em_sections at = em_sections_of(format, em_group_count(x->columns));
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t first = 0; first < x->columns; first += EM_GROUP_COLUMNS) {
        const int32_t end = x->columns - first < EM_GROUP_COLUMNS ? x->columns : first + EM_GROUP_COLUMNS;
        float partial[EM_PANEL_ROWS] = {0}, scales[EM_PANEL_ROWS];
        for (int32_t column = first; column < end; column++) {
            const uint8_t *codes = panel + (size_t)column * EM_PANEL_ROWS;
            for (int i = 0; i < EM_PANEL_ROWS; i++) partial[i] = fmaf(e4m3(codes[i]), input[column], partial[i]);
        }
        load_scales(panel + at.scales, first / EM_GROUP_COLUMNS, format, scales);
        for (int i = 0; i < EM_PANEL_ROWS; i++) sums[i] = fmaf(partial[i], scales[i] * unit, sums[i]);
    }
}

#define DEFINE_PANELS(name, format, product)                                                              \
    void name(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,      \
              const int32_t *rows, int32_t count, float *out, size_t out_stride) {                       \
        for (int32_t p = 0; p < panel_count; p++) {                                                      \
            const uint8_t *panel = em_panel(matrix, first + p, format);                                  \
            for (int32_t i = 0; i < count; i++) {                                                        \
                product(matrix->data, panel, x, rows[i], format,                                        \
                        out + i * out_stride + (size_t)p * EM_PANEL_ROWS);                              \
            }                                                                                            \
        }                                                                                                \
    }

DEFINE_PANELS(em_panels_f32_generic, EM_F32, float_product)
DEFINE_PANELS(em_panels_f16_generic, EM_F16, float_product)
DEFINE_PANELS(em_panels_bf16_generic, EM_BF16, float_product)
DEFINE_PANELS(em_panels_f8_generic, EM_F8, e4m3_product)
DEFINE_PANELS(em_panels_m8_generic, EM_M8, e4m3_product)
#define DEFINE_QUANTISED(NAME, name) DEFINE_PANELS(em_panels_##name##_generic, EM_##NAME, quantised_product)
EM_QUANTISED_FORMATS(DEFINE_QUANTISED)
