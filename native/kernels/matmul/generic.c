/* Panel products in plain C: the meaning of matmul/<isa>.c, and the fallback everywhere. */
#include <math.h>
#include <string.h>

#include "../half.h"
#include "../kernels.h"

enum { QUAD = 4, QUADS_PER_GROUP = EM_GROUP_COLUMNS / QUAD, QUAD_BYTES = EM_PANEL_ROWS * QUAD };

/* Adds 16 rows x 4 columns of int8 weights times 4 activations to `dots`. */
static inline void add_quad(const int8_t *weights, const int8_t *x, int32_t *dots) {
    for (int row = 0; row < EM_PANEL_ROWS; row++) {
        for (int i = 0; i < QUAD; i++) dots[row] += weights[row * QUAD + i] * x[i];
    }
}

static void dot_group_q8(const uint8_t *payload, const int8_t *x, int32_t *dots) {
    for (int quad = 0; quad < QUADS_PER_GROUP; quad++) {
        add_quad((const int8_t *)payload + quad * QUAD_BYTES, x + quad * QUAD, dots);
    }
}

static void dot_group_q4(const uint8_t *payload, const int8_t *x, int32_t *dots) {
    for (int quad = 0; quad < QUADS_PER_GROUP / 2; quad++) {
        int8_t low[QUAD_BYTES], high[QUAD_BYTES];
        for (int i = 0; i < QUAD_BYTES; i++) {
            low[i] = payload[quad * QUAD_BYTES + i] & 15;
            high[i] = payload[quad * QUAD_BYTES + i] >> 4;
        }
        add_quad(low, x + quad * QUAD, dots);
        add_quad(high, x + (quad + QUADS_PER_GROUP / 2) * QUAD, dots);
    }
}

static inline float half_at(const uint8_t *bytes, size_t index) {
    uint16_t half;
    memcpy(&half, bytes + 2 * index, sizeof half);
    return em_half_to_float(half);
}

static inline void quantised_product(const uint8_t *panel, const em_activations *x, int32_t row, int32_t format,
                                     float *sums) {
    const size_t payload_bytes = em_payload_bytes(format);
    const uint8_t *scales = panel + (size_t)x->group_count * payload_bytes;
    const uint8_t *minimums = scales + (size_t)x->group_count * EM_PANEL_ROWS * 2;
    const em_group *groups = x->groups + (size_t)row * x->group_count;
    const int8_t *values = x->values + (size_t)row * x->group_count * EM_GROUP_COLUMNS;
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t g = 0; g < x->group_count; g++) {
        const uint8_t *payload = panel + (size_t)g * payload_bytes;
        int32_t dots[EM_PANEL_ROWS] = {0};
        (format == EM_Q8 ? dot_group_q8 : dot_group_q4)(payload, values + (size_t)g * EM_GROUP_COLUMNS, dots);
        for (int i = 0; i < EM_PANEL_ROWS; i++) {
            const size_t at = (size_t)g * EM_PANEL_ROWS + i;
            const int32_t dot = format == EM_Q4 ? dots[i] - groups[g].sum_times_8 : dots[i];
            sums[i] = fmaf((float)dot, half_at(scales, at) * groups[g].scale, sums[i]);
            if (format == EM_Q4M) sums[i] = fmaf(half_at(minimums, at), groups[g].scaled_sum, sums[i]);
        }
    }
}

static inline void float_product(const uint8_t *panel, const em_activations *x, int32_t row, int32_t format,
                                 float *sums) {
    const float *input = x->floats + (size_t)row * x->columns;
    memset(sums, 0, EM_PANEL_ROWS * sizeof *sums);
    for (int32_t column = 0; column < x->columns; column++) {
        for (int i = 0; i < EM_PANEL_ROWS; i++) {
            const size_t at = (size_t)column * EM_PANEL_ROWS + i;
            float weight;
            if (format == EM_F16) {
                weight = half_at(panel, at);
            } else {
                memcpy(&weight, panel + 4 * at, sizeof weight);
            }
            sums[i] = fmaf(weight, input[column], sums[i]);
        }
    }
}

#define DEFINE_PANEL(name, format, product)                                                                    \
    void name(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count,               \
              float (*out)[EM_PANEL_ROWS]) {                                                                   \
        for (int32_t i = 0; i < count; i++) product(panel, x, rows[i], format, out[i]);                        \
    }

DEFINE_PANEL(em_panel_f32_generic, EM_F32, float_product)
DEFINE_PANEL(em_panel_f16_generic, EM_F16, float_product)
DEFINE_PANEL(em_panel_q8_generic, EM_Q8, quantised_product)
DEFINE_PANEL(em_panel_q4_generic, EM_Q4, quantised_product)
DEFINE_PANEL(em_panel_q4m_generic, EM_Q4M, quantised_product)
