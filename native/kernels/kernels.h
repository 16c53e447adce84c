/* The inner loops, each written once per instruction set as kernels/<op>/<isa>.c.
 *
 * Every implementation of a kernel gives the same bits. Therefore each sum has one order, written here:
 *
 *   product with quantised weights, per row and token, over the groups of 32 columns in order:
 *       sum = fma((float)integer_dot, weight_scale * input_scale, sum)
 *       q4m then: sum = fma(weight_minimum, input_scale * (float)sum_of_input, sum)
 *       m4: the integers of weights are doubled e2m1 values, and weight_scale is 2^(e - 128)
 *     (integer dots are exact: at most 32 * 128 * 127 < 2^24)
 *   product with f16 or f32 weights, over the columns in order:
 *       sum = fma(weight, input, sum)
 *   sums along a vector ("lane sums"): element i goes to lane i % 8, lanes are folded as
 *       (((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7)))
 *   sums over the rows of a recurrent state ("chain sums"), per column: row i goes to chain i % 4 by fma, chains are
 *   folded as ((c0 + c2) + (c1 + c3))
 *
 * and exp() is the one of exponential.h. */
#ifndef EDGEMOE_KERNELS_H
#define EDGEMOE_KERNELS_H

#include "edgemoe.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "matrices are stored little-endian");

enum {
    EM_PANEL_ROWS = 16,
    EM_GROUP_COLUMNS = 32,
    EM_PANEL_ALIGNMENT = 64,
    EM_LANES = 8,
};

/* A group of activations whose largest magnitude lies below this is all zeros (reference.SMALLEST_ACTIVATION). */
#define EM_SMALLEST_ACTIVATION 1e-35f

/* What a product needs to know of one group of 32 quantised activations. */
typedef struct em_group {
    float scale;
    float scaled_sum; /* scale * sum of the 32 integers, for q4m */
    /* Where integer dots begin, to end as those with signed weights. */
    int32_t q4_start; /* -8 * sum: nibbles stand for nibble - 8; em_m4_start follows from it */
    int32_t q8_start; /* -128 * sum: for kernels that take bytes as byte + 128 */
} em_group;

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
 *   relu:          max(gate, 0) * up
 *   relu2:         max(gate, 0) * max(gate, 0) * up
 * A NaN stays one. */
typedef void em_activation_kernel(const em_activation *activation, const float *gate, const float *up, float *output,
                                  int32_t count);

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
};

#define EM_DECLARE_MATMUL(isa) \
    em_panels_kernel em_panels_f32_##isa, em_panels_f16_##isa, em_panels_q8_##isa, em_panels_q4_##isa, \
        em_panels_q4m_##isa, em_panels_m4_##isa

#define EM_DECLARE_VECTORS(isa)                                                                                       \
    void em_quantise_##isa(const float *input, int32_t columns, int8_t *values, em_group *groups);                    \
    float em_sum_squares_##isa(const float *input, int32_t count);                                                    \
    float em_exponentials_##isa(float *values, int32_t count, float shift);                                           \
    em_activation_kernel em_silu_##isa, em_clamped_silu_##isa, em_gelu_tanh_##isa, em_relu_##isa, em_relu2_##isa;     \
    em_activation_kernel em_capped_silu_##isa;                                                                        \
    void em_to_half_##isa(const float *input, uint16_t *output, int32_t count);                                       \
    void em_to_q8_##isa(const float *input, int8_t *values, uint16_t *scales, int32_t count);                         \
    em_scores_kernel em_scores_f32_##isa, em_scores_f16_##isa, em_scores_q8_##isa;                                    \
    em_mix_kernel em_mix_f32_##isa, em_mix_f16_##isa, em_mix_q8_##isa;                                                \
    uint32_t em_crc32c_##isa(uint32_t crc, const uint8_t *data, uint64_t bytes)

em_delta_kernel em_delta_generic, em_delta_avx2, em_delta_avx512, em_delta_neon;
em_scan_kernel em_scan_generic, em_scan_avx2, em_scan_avx512, em_scan_neon;
em_channels_kernel em_channels_generic, em_channels_avx2, em_channels_avx512, em_channels_neon;
EM_DECLARE_MATMUL(generic);
EM_DECLARE_MATMUL(avx2);
EM_DECLARE_MATMUL(avxvnni);
EM_DECLARE_MATMUL(avx512);
EM_DECLARE_MATMUL(neon);
EM_DECLARE_VECTORS(generic);
EM_DECLARE_VECTORS(avx2);
EM_DECLARE_VECTORS(neon);

/* ---- the layout of a matrix (formats.py) ------------------------------------------------------------- */

static inline int32_t em_panel_count(int32_t rows) { return (rows + EM_PANEL_ROWS - 1) / EM_PANEL_ROWS; }

static inline int32_t em_group_count(int32_t columns) { return (columns + EM_GROUP_COLUMNS - 1) / EM_GROUP_COLUMNS; }

static inline int em_is_quantised(int32_t format) { return format >= EM_Q8; }

/* Bytes of the payload of one panel's group. */
static inline size_t em_payload_bytes(int32_t format) {
    static const uint16_t bytes[EM_FORMAT_COUNT] = {2048, 1024, 512, 256, 256, 256};
    return bytes[format];
}

/* Bytes of the scales of one panel's group: 16 of float16 or, of m4, of e8m0. */
static inline size_t em_scales_bytes(int32_t format) {
    static const uint8_t bytes[EM_FORMAT_COUNT] = {0, 0, 32, 32, 32, 16};
    return bytes[format];
}

/* Bytes of the minimums of one panel's group: 16 of float16. */
static inline size_t em_minimums_bytes(int32_t format) { return format == EM_Q4M ? 32 : 0; }

static inline size_t em_panel_bytes(int32_t format, int32_t columns) {
    const size_t group_bytes = em_payload_bytes(format) + em_scales_bytes(format) + em_minimums_bytes(format);
    const size_t used = (size_t)em_group_count(columns) * group_bytes;
    return (used + EM_PANEL_ALIGNMENT - 1) / EM_PANEL_ALIGNMENT * EM_PANEL_ALIGNMENT;
}

/* The first byte of a panel of a matrix whose panels lie one after the other, as those of every format so far. */
static inline const uint8_t *em_panel(const em_matrix *matrix, int32_t panel, int32_t format) {
    return matrix->data + (size_t)panel * em_panel_bytes(format, matrix->columns);
}

/* ---- the numbers of m4 (formats.py) ------------------------------------------------------------------ */

/* Doubled e2m1 values by code, as signed bytes, and as unsigned ones with 12 added. */
#define EM_M4_SIGNED 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12
#define EM_M4_UNSIGNED 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0

/* Where integer dots with unsigned values begin: -12 * the sum of the activations, which is 1.5 times q4_start, exactly:
 * that is a multiple of 8. */
static inline int32_t em_m4_start(const em_group *group) { return group->q4_start + group->q4_start / 2; }

/* The bits of the float32 2^(e - 128), for a scale's byte e: the exponent of a normal number lies from bit 23 on; of the
 * two scales below normal numbers, 2^-128 is bit 21 and 2^-127 bit 22. For e of 0 and 1 the second expression is the
 * larger one, from 2 on the first, so the maximum needs no branch. (255 is NaN, and in no store.) */
static inline int32_t em_m4_scale_bits(int32_t e) {
    const int32_t normal = (e - 1) * (1 << 23), below_normal = (e + 1) * (1 << 21);
    return normal > below_normal ? normal : below_normal;
}

/* ---- sums -------------------------------------------------------------------------------------------- */

/* The end of a lane sum. */
static inline float em_fold_lanes(const float lanes[EM_LANES]) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

#endif
