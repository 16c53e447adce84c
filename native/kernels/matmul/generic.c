/* Panel products in plain C: the meaning of matmul/<isa>.c, and the fallback everywhere.
 *
 * The loops over 64 bytes (16 rows x 4 columns) are for the compiler to turn into vectors of int16, which every
 * processor has: each byte is multiplied with its column's activation and added in a place of its own, and the four
 * columns of a row are folded last. */
#include <math.h>
#include <string.h>

#include "../half.h"
#include "../kernels.h"

enum { QUAD = 4, QUADS_PER_GROUP = EM_GROUP_COLUMNS / QUAD, QUAD_BYTES = EM_PANEL_ROWS * QUAD };

/* The activations of 4 columns, once for each of 16 rows. */
static inline void repeat_quad(const int8_t *x, int16_t *repeated) {
    const int16_t quad[QUAD] = {x[0], x[1], x[2], x[3]};
    for (int row = 0; row < EM_PANEL_ROWS; row++) memcpy(repeated + row * QUAD, quad, sizeof quad);
}

static inline void fold_quads(const int32_t *products, int32_t *dots) {
    for (int row = 0; row < EM_PANEL_ROWS; row++) {
        const int32_t *p = products + row * QUAD;
        dots[row] = p[0] + p[1] + p[2] + p[3];
    }
}

/* Two products of at most 128 * 127 fit in an int16. */
static void dot_group_q8(const uint8_t *payload, const int8_t *x, int32_t *dots) {
    int32_t products[QUAD_BYTES] = {0};
    for (int quad = 0; quad < QUADS_PER_GROUP; quad += 2) {
        const int8_t *first = (const int8_t *)payload + quad * QUAD_BYTES, *second = first + QUAD_BYTES;
        int16_t x_first[QUAD_BYTES], x_second[QUAD_BYTES];
        repeat_quad(x + quad * QUAD, x_first);
        repeat_quad(x + (quad + 1) * QUAD, x_second);
        for (int i = 0; i < QUAD_BYTES; i++) {
            products[i] += (int16_t)(first[i] * x_first[i] + second[i] * x_second[i]);
        }
    }
    fold_quads(products, dots);
}

/* Eight products of at most 15 * 127 fit in an int16. */
static void dot_group_q4(const uint8_t *payload, const int8_t *x, int32_t *dots) {
    int16_t products[QUAD_BYTES] = {0};
    for (int quad = 0; quad < QUADS_PER_GROUP / 2; quad++) {
        const uint8_t *bytes = payload + quad * QUAD_BYTES;
        int16_t x_low[QUAD_BYTES], x_high[QUAD_BYTES];
        repeat_quad(x + quad * QUAD, x_low);
        repeat_quad(x + (quad + QUADS_PER_GROUP / 2) * QUAD, x_high);
        for (int i = 0; i < QUAD_BYTES; i++) {
            products[i] = (int16_t)(products[i] + (bytes[i] & 15) * x_low[i] + (bytes[i] >> 4) * x_high[i]);
        }
    }
    int32_t wide[QUAD_BYTES];
    for (int i = 0; i < QUAD_BYTES; i++) wide[i] = products[i];
    fold_quads(wide, dots);
}

/* The value of an e2m1 code, doubled: EM_M4_SIGNED by comparisons, which compilers turn into vectors. */
static inline int16_t doubled(int code) {
    const int size = code & 7;
    const int value = size + (size > 4) + (size > 5) + 3 * (size > 6);
    return (int16_t)(code & 8 ? -value : value);
}

/* Eight products of at most 12 * 127 fit in an int16. */
static void dot_group_m4(const uint8_t *payload, const int8_t *x, int32_t *dots) {
    int16_t products[QUAD_BYTES] = {0};
    for (int quad = 0; quad < QUADS_PER_GROUP / 2; quad++) {
        const uint8_t *bytes = payload + quad * QUAD_BYTES;
        int16_t x_low[QUAD_BYTES], x_high[QUAD_BYTES];
        repeat_quad(x + quad * QUAD, x_low);
        repeat_quad(x + (quad + QUADS_PER_GROUP / 2) * QUAD, x_high);
        for (int i = 0; i < QUAD_BYTES; i++) {
            products[i] = (int16_t)(products[i] + doubled(bytes[i] & 15) * x_low[i] + doubled(bytes[i] >> 4) * x_high[i]);
        }
    }
    int32_t wide[QUAD_BYTES];
    for (int i = 0; i < QUAD_BYTES; i++) wide[i] = products[i];
    fold_quads(wide, dots);
}

/* 16 numbers of float16 or, for f32 weights, of float32. */
static inline void load_numbers(const uint8_t *at, int32_t format, float *numbers) {
    if (format == EM_F32) {
        memcpy(numbers, at, EM_PANEL_ROWS * sizeof *numbers);
        return;
    }
    uint16_t halves[EM_PANEL_ROWS];
    memcpy(halves, at, sizeof halves);
    for (int i = 0; i < EM_PANEL_ROWS; i++) numbers[i] = em_half_to_float(halves[i]);
}

static inline void load_scales(const uint8_t *at, int32_t format, float *scales) {
    if (format != EM_M4) {
        load_numbers(at, EM_F16, scales);
        return;
    }
    for (int i = 0; i < EM_PANEL_ROWS; i++) scales[i] = em_from_bits((uint32_t)em_m4_scale_bits(at[i]));
}

static inline void quantised_product(const uint8_t *panel, const em_activations *x, int32_t row, int32_t format,
                                     float *sums) {
    const size_t payload_bytes = em_payload_bytes(format), scales_bytes = em_scales_bytes(format);
    const uint8_t *scale_section = panel + (size_t)x->group_count * payload_bytes;
    const uint8_t *minimum_section = scale_section + (size_t)x->group_count * scales_bytes;
    const em_group *groups = x->groups + (size_t)row * x->group_count;
    const int8_t *values = x->values + (size_t)row * x->group_count * EM_GROUP_COLUMNS;
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t g = 0; g < x->group_count; g++) {
        const uint8_t *payload = panel + (size_t)g * payload_bytes;
        const int32_t start = format == EM_Q4 ? groups[g].q4_start : 0;
        int32_t dots[EM_PANEL_ROWS];
        float scales[EM_PANEL_ROWS], minimums[EM_PANEL_ROWS];
        const int8_t *x_group = values + (size_t)g * EM_GROUP_COLUMNS;
        (format == EM_Q8 ? dot_group_q8 : format == EM_M4 ? dot_group_m4 : dot_group_q4)(payload, x_group, dots);
        load_scales(scale_section + (size_t)g * scales_bytes, format, scales);
        if (format == EM_Q4M) load_numbers(minimum_section + (size_t)g * scales_bytes, EM_F16, minimums);
        for (int i = 0; i < EM_PANEL_ROWS; i++) {
            sums[i] = fmaf((float)(dots[i] + start), scales[i] * groups[g].scale, sums[i]);
            if (format == EM_Q4M) sums[i] = fmaf(minimums[i], groups[g].scaled_sum, sums[i]);
        }
    }
}

static inline void float_product(const uint8_t *panel, const em_activations *x, int32_t row, int32_t format,
                                 float *sums) {
    const float *input = x->floats + (size_t)row * x->columns;
    const size_t element_bytes = format == EM_F32 ? 4 : 2;
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t column = 0; column < x->columns; column++) {
        float weights[EM_PANEL_ROWS];
        load_numbers(panel + (size_t)column * EM_PANEL_ROWS * element_bytes, format, weights);
        for (int i = 0; i < EM_PANEL_ROWS; i++) sums[i] = fmaf(weights[i], input[column], sums[i]);
    }
}

#define DEFINE_PANELS(name, format, product)                                                              \
    void name(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,      \
              const int32_t *rows, int32_t count, float *out, size_t out_stride) {                       \
        for (int32_t p = 0; p < panel_count; p++) {                                                      \
            const uint8_t *panel = em_panel(matrix, first + p, format);                                  \
            for (int32_t i = 0; i < count; i++) {                                                        \
                product(panel, x, rows[i], format, out + i * out_stride + (size_t)p * EM_PANEL_ROWS);    \
            }                                                                                            \
        }                                                                                                \
    }

DEFINE_PANELS(em_panels_f32_generic, EM_F32, float_product)
DEFINE_PANELS(em_panels_f16_generic, EM_F16, float_product)
DEFINE_PANELS(em_panels_q8_generic, EM_Q8, quantised_product)
DEFINE_PANELS(em_panels_q4_generic, EM_Q4, quantised_product)
DEFINE_PANELS(em_panels_q4m_generic, EM_Q4M, quantised_product)
DEFINE_PANELS(em_panels_m4_generic, EM_M4, quantised_product)
