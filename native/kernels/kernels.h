/* The inner loops, each written once per instruction set as kernels/<op>/<isa>.c.
 *
 * Every implementation of a kernel gives the same bits. Therefore each sum has one order, written here:
 *
 *   product with quantised weights, per row and token, over the groups of 32 columns in order:
 *       sum = fma((float)integer_dot, weight_scale * input_scale, sum)
 *       with minimums or offsets then: sum = fma(weight_minimum, input_scale * (float)sum_of_input, sum)
 *     (integer dots are exact: at most 32 * 255 * 127 < 2^24.) weight_scale is the scale, or scale * factor, which is
 *     exact; weight_minimum is the minimum, or -(minimum * offset), or -(scale * offset).
 *   where whole factors are of 16 columns, with the dots and the sums of the input of both halves of a group:
 *       sum = fma((float)(factor_0 * dot_0 + factor_1 * dot_1), weight_scale * input_scale, sum)
 *       with offsets then: sum = fma(-(float)(offset_0 * sum_0 + offset_1 * sum_1), minimum * input_scale, sum)
 *     (these integers are exact too: at most 2 * 128 * 32 * 127 * 16 < 2^24)
 *     (of formats with a grid a factor is 2k + 1, and weight_scale the scale times the format's unit, all exact)
 *   where factors of 16 columns are e4m3, for one half after the other:
 *       sum = fma((float)dot, (weight_scale * factor) * input_scale, sum)
 *   product with f16 or f32 weights, over the columns in order:
 *       sum = fma(weight, input, sum)
 *   product with e4m3 weights, over the groups in order, from a partial sum of 0 over their columns in order:
 *       partial = fma(weight / 256, input, partial), then sum = fma(partial, 256 * weight_scale, sum)
 *   sums along a vector ("lane sums"): element i goes to lane i % 8, lanes are folded as
 *       (((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)))
 *   sums over the rows of a recurrent state ("chain sums"), per column: row i goes to chain i % 4 by fma, chains are
 *   folded as ((c0 + c2) + (c1 + c3))
 *
 * and exp() is the one of exponential.h. */
#ifndef EDGEMOE_KERNELS_H
#define EDGEMOE_KERNELS_H

#include "edgemoe.h"
#include "formats.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "matrices are stored little-endian");

enum { EM_LANES = 8 };

/* A group of activations whose largest magnitude lies below this is all zeros (reference.SMALLEST_ACTIVATION). */
#define EM_SMALLEST_ACTIVATION 1e-35f

/* What a product needs to know of one group of 32 quantised activations. */
typedef struct em_group {
    float scale;
    float scaled_sum; /* scale * sum of the 32 integers */
    /* -8 * sum, where the integer dots of q4 begin, so that they end as those with signed weights; em_start has the
     * others. */
    int32_t q4_start;
    int16_t half_sums[2]; /* of the first and of the last 16 integers */
} em_group;

/* -zero * the sum of a group, or of half `half` of it; the zero is known when this is compiled. */
static inline int32_t em_start(const em_group *group, int32_t zero) {
    if (zero % 8 == 0) return group->q4_start * (zero / 8);
    return (group->q4_start >> 3) * zero;
}

static inline int32_t em_half_start(const em_group *group, int half, int32_t zero) { return -zero * group->half_sums[half]; }

/* The rows that a matrix is multiplied with: floats for f16 and f32 weights, groups for the others. */
typedef struct em_activations {
    const float *floats;    /* (rows, columns) */
    const int8_t *values;   /* (rows, group_count * 32), each -127..127, zeros after the last column */
    const em_group *groups; /* (rows, group_count) */
    int32_t columns;
    int32_t group_count;
} em_activations;

/* Panels of 16 matrix rows times activation rows: panel first + p, one of `panel_count`, times activation row rows[i],
 * one of `count`, goes to out[i * out_stride + p * 16] and the 15 floats behind it. Where a panel lies in its matrix is
 * the kernel's business. What lies behind the last panel may be prefetched. */
typedef void em_panels_kernel(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,
                              const int32_t *rows, int32_t count, float *out, size_t out_stride);

/* Formats of a KV cache: EM_F32, EM_F16 and EM_Q8. */
enum { EM_CACHE_FORMATS = EM_Q8 + 1 };

static inline int em_is_cache_format(int32_t format) { return format >= 0 && format < EM_CACHE_FORMATS; }

/* Keys or values of one head at neighbouring positions. */
typedef struct em_cached {
    const void *elements;   /* (count, row_width): float32, float16 or int8 */
    const uint16_t *scales; /* (count, em_group_count(row_width)): float16, of EM_Q8 */
    int32_t row_width;      /* at least the width that a kernel reads, from the first element of a row on */
} em_cached;

/* One of the rows of queries that read the same keys and values. */
typedef struct em_attending {
    const float *query; /* (width) */
    float *output;      /* (width) */
    float *weights;     /* (count): scores of keys, then weights of values */
    float factor;       /* of the output so far */
} em_attending;

typedef void em_scores_kernel(const em_attending *rows, int32_t row_count, em_cached keys, int32_t count,
                              int32_t width, float scale);
typedef void em_mix_kernel(const em_attending *rows, int32_t row_count, em_cached values, int32_t count,
                           int32_t width);

/* One row of the delta rule, for one panel of a head's state. */
typedef struct em_delta_row {
    const float *query, *key; /* (width): of the lengths that the rule gives them */
    const float *values;      /* (EM_PANEL_ROWS) */
    float *output;            /* (EM_PANEL_ROWS) */
    const float *decays;      /* (width), or NULL, where `decay` holds for all */
    float decay, strength;
} em_delta_row;

/* Rows one after another on a panel (width, EM_PANEL_ROWS) of a state. For each row, of each column c:
 *   error = strength * fma(-decay, chain sum of key[i] * state[i][c], values[c])
 *   state[i][c] = fma(key[i], error, decay * state[i][c])
 *   output[c] = chain sum of query[i] * state[i][c]
 * With decays, which all rows of a call have or none, the first two become
 *   error = strength * (values[c] - chain sum of (key[i] * decays[i]) * state[i][c])
 *   state[i][c] = fma(key[i], error, decays[i] * state[i][c]) */
typedef void em_delta_kernel(float *state, const em_delta_row *rows, int32_t row_count, int32_t width);

/* One row of the selective scan, for one panel of a head's state. */
typedef struct em_scan_row {
    const float *query, *key; /* (width) */
    const float *values;      /* (EM_PANEL_ROWS) */
    float *output;            /* (EM_PANEL_ROWS) */
    float decay, step, skip;
} em_scan_row;

/* As the delta rule's, without a correction. For each row, of each column c:
 *   state[i][c] = fma(key[i], step * values[c], decay * state[i][c])
 *   output[c] = fma(skip, values[c], chain sum of query[i] * state[i][c]) */
typedef void em_scan_kernel(float *state, const em_scan_row *rows, int32_t row_count, int32_t width);

/* One row of the channel scan, for one panel of channels. */
typedef struct em_channels_row {
    const float *query, *key; /* (width) */
    const float *decays;      /* (width, EM_PANEL_ROWS) */
    const float *steps;       /* (EM_PANEL_ROWS) */
    const float *values;      /* (EM_PANEL_ROWS) */
    float *output;            /* (EM_PANEL_ROWS) */
} em_channels_row;

/* As the scan's, with a decay for each number of the state, and a step and a `skip` (EM_PANEL_ROWS) for each column:
 *   state[i][c] = fma(key[i], steps[c] * values[c], decays[i][c] * state[i][c])
 *   output[c] = fma(skip[c], values[c], chain sum of query[i] * state[i][c]) */
typedef void em_channels_kernel(float *state, const em_channels_row *row, const float *skip, int32_t width);

/* output = what activation makes of gate and up. Each function is the same in every instruction set, step by step:
 *   silu:          gate / (1 + exp(-gate)) * up
 *   clamped_silu:  g / (1 + exp(-(alpha * g))) * (u + offset), where g = min(gate, limit), u = max(min(up, limit), -limit)
 *   capped_silu:   min(gate / (1 + exp(-gate)), limit) * max(min(up, limit), -limit)
 *   gelu_tanh:     gate / (1 + exp(-(gate * (gate * gate * cubic + linear)))) * up
 *   gelu:          (max(gate, 0) - |gate| * tail) * up, as elementwise/activation.h has it
 *   relu:          max(gate, 0) * up
 *   relu2:         max(gate, 0) * max(gate, 0) * up
 * A NaN stays one. */
typedef void em_activation_kernel(const em_activation *activation, const float *gate, const float *up, float *output,
                                  int32_t count);

typedef struct em_trellis_panel em_trellis_panel; /* trellis/panel.h */
typedef struct em_trellis_unit em_trellis_unit;

struct em_kernels {
    const char *isa;

    em_panels_kernel *panels[EM_FORMAT_COUNT];

    /* Round a row to groups of int8 as reference.quantise_activations does. A group that is not finite gets some
     * integers within range and a scale that is not finite. */
    void (*quantise)(const float *input, int32_t columns, int8_t *values, em_group *groups);

    /* Lane sum of squares. */
    float (*sum_squares)(const float *input, int32_t count);
    /* values = exp(values - shift); returns their lane sum. */
    float (*exponentials)(float *values, int32_t count, float shift);
    em_activation_kernel *activate[EM_FUNCTION_COUNT];
    /* To float16, rounding half to even. */
    void (*to_half)(const float *input, uint16_t *output, int32_t count);
    /* To groups of 32 int8 with a float16 scale each, as reference.quantise_cache_rows does. */
    void (*to_q8)(const float *input, int8_t *values, uint16_t *scales, int32_t count);

    /* By the format of the cache. An element of EM_Q8 is (float)value * (float)scale, which is exact. */
    /* For each row weights[i] = scale * (lane sum of query * keys[i]), for up to EM_PAGE_TOKENS keys. */
    em_scores_kernel *scores[EM_CACHE_FORMATS];
    /* For each row output = factor * output, then for i in order: output = fma(weights[i], values[i], output). */
    em_mix_kernel *mix[EM_CACHE_FORMATS];

    em_delta_kernel *delta;
    em_scan_kernel *scan;
    em_channels_kernel *channels;

    /* CRC-32C as the header says: goes on from that of the bytes before, 0 at the beginning. `data` lies anywhere. */
    uint32_t (*crc32c)(uint32_t crc, const uint8_t *data, uint64_t bytes);

    /* The cheapest codes of 16 rows in the columns chain, chain + 4, ...: fills panel's `words` and `ends`. */
    void (*search_trellis)(const em_trellis_panel *panel, int32_t chain);
    /* What is left of the errors of a unit, and what that takes from the targets of later columns. */
    void (*feed_trellis)(const em_trellis_unit *unit);
};

#define EM_DECLARE_PANELS(NAME, name, ...)                                                                            \
    em_panels_kernel em_panels_##name##_generic, em_panels_##name##_avx2, em_panels_##name##_avxvnni,                 \
        em_panels_##name##_avx512, em_panels_##name##_avx512vbmi, em_panels_##name##_neon;
EM_FORMATS(EM_DECLARE_PANELS)
EM_VARYING_FORMATS(EM_DECLARE_PANELS)
#undef EM_DECLARE_PANELS

#define EM_DECLARE_VECTORS(isa)                                                                                       \
    void em_quantise_##isa(const float *input, int32_t columns, int8_t *values, em_group *groups);                    \
    float em_sum_squares_##isa(const float *input, int32_t count);                                                    \
    float em_exponentials_##isa(float *values, int32_t count, float shift);                                           \
    em_activation_kernel em_silu_##isa, em_clamped_silu_##isa, em_gelu_tanh_##isa, em_relu_##isa, em_relu2_##isa;     \
    em_activation_kernel em_capped_silu_##isa, em_gelu_##isa;                                                         \
    void em_to_half_##isa(const float *input, uint16_t *output, int32_t count);                                       \
    void em_to_q8_##isa(const float *input, int8_t *values, uint16_t *scales, int32_t count);                         \
    em_scores_kernel em_scores_f32_##isa, em_scores_f16_##isa, em_scores_q8_##isa;                                    \
    em_mix_kernel em_mix_f32_##isa, em_mix_f16_##isa, em_mix_q8_##isa;                                                \
    uint32_t em_crc32c_##isa(uint32_t crc, const uint8_t *data, uint64_t bytes);                                      \
    void em_search_trellis_##isa(const em_trellis_panel *panel, int32_t chain);                                       \
    void em_feed_trellis_##isa(const em_trellis_unit *unit)

em_delta_kernel em_delta_generic, em_delta_avx2, em_delta_avx512, em_delta_neon;
em_scan_kernel em_scan_generic, em_scan_avx2, em_scan_avx512, em_scan_neon;
em_channels_kernel em_channels_generic, em_channels_avx2, em_channels_avx512, em_channels_neon;
EM_DECLARE_VECTORS(generic);
EM_DECLARE_VECTORS(avx2);
EM_DECLARE_VECTORS(neon);

/* ---- sums -------------------------------------------------------------------------------------------- */

/* The end of a lane sum. */
static inline float em_fold_lanes(const float lanes[EM_LANES]) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

#endif
