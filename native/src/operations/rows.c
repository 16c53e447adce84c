/* The operations that work row by row: embed, norms, rope, scale by position, clip, gate, soft cap, combine, mix. */
#include "../operations.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "../../kernels/exponential.h"
#include "../../kernels/half.h"
#include "../../kernels/matmul/grid.h"
#include "../../kernels/matmul/trellis.h"

enum {
    /* A chunk of fewer numbers than this costs more to hand out than to do. */
    CHUNK_NUMBERS = 8192,
};

typedef struct rows_task {
    const void *operation;
    const em_run *run;
} rows_task;

static int32_t run_rows(const void *operation, const em_run *run, em_task *rows, int64_t row_count, int64_t width) {
    rows_task task = {operation, run};
    em_pool_for(run->pool, row_count, (CHUNK_NUMBERS + width - 1) / width, rows, &task);
    return EM_OK;
}

/* ---- embed -------------------------------------------------------------------------------------------- */

static inline uint16_t bits_at(const uint8_t *section, size_t index) {
    uint16_t bits;
    memcpy(&bits, section + 2 * index, sizeof bits);
    return bits;
}

static inline float half_at(const uint8_t *section, size_t index) { return em_half_to_float(bits_at(section, index)); }

static inline float float_at(const uint8_t *section, size_t index) {
    float value;
    memcpy(&value, section + 4 * index, sizeof value);
    return value;
}

static float e4m3(uint8_t code, float unit) { return em_half_to_float(em_e4m3_half_bits(code)) * unit; }

/* The value of column c of a group, in the quantised formats. */
static float value_at(const uint8_t *payload, int32_t format, int32_t row, int32_t c) {
    static const int8_t e2m1[16] = {EM_E2M1_SIGNED}, iq4[16] = {EM_IQ4_SIGNED};
    const em_format_numbers numbers = em_numbers(format);
    const int quad = c / 4, byte = row * 4 + c % 4;
    if (format == EM_Q8) return (float)(int8_t)payload[quad * EM_LINE_BYTES + byte];
    if (format == EM_Q8M) return (float)(payload[quad * EM_LINE_BYTES + byte] ^ 128);
    int code = 0;
    for (int low = 0; low < numbers.bits;) { /* plane by plane: formats.PLANES */
        const int left = numbers.bits - low, bits = left >= 4 ? 4 : left == 3 ? 2 : left;
        const uint8_t line = payload[quad % bits * EM_LINE_BYTES + byte];
        code |= (line >> (quad / bits * bits) & ((1 << bits) - 1)) << low;
        payload += bits * EM_LINE_BYTES;
        low += bits;
    }
    if (numbers.table == EM_TABLE_E2M1) return e2m1[code];
    if (numbers.table == EM_TABLE_IQ4) return iq4[code];
    return numbers.table == EM_TABLE_SIGNS ? (float)(2 * code - 1) : (float)(code - numbers.zero);
}

/* One weight of row `row` of a panel of a matrix whose head is `head`. */
static float weight_at(const uint8_t *head, const uint8_t *panel, int32_t format, int32_t group_count, int32_t row,
                       int32_t column) {
    const em_format_numbers numbers = em_numbers(format);
    const size_t at = (size_t)column * EM_PANEL_ROWS + row, group = (size_t)column / EM_GROUP_COLUMNS;
    if (format == EM_F16) return half_at(panel, at);
    if (format == EM_BF16) return em_from_bits((uint32_t)bits_at(panel, at) << 16);
    if (format == EM_F32) return float_at(panel, at);
    const em_sections sections = em_sections_of(format, group_count);
    const int32_t c = column % EM_GROUP_COLUMNS;
    if (numbers.grid != EM_GRID_NONE) {
        const int half = c * numbers.halves / EM_GROUP_COLUMNS;
        const int value = em_grid_value(panel + group * em_payload_bytes(format), format, row, c);
        const int factor = em_grid_factor(panel, sections, format, (int32_t)group, half, row);
        return em_grid_scale(panel, sections, format, (int32_t)group, row) * (float)(factor * value);
    }
    if (em_is_trellis(format)) {
        return em_trellis_scale(panel, sections, format, (int32_t)group, row) *
               (float)em_trellis_value(head, panel, format, row, column);
    }
    const float value = numbers.floating ? e4m3(panel[at], em_e4m3_unit(format))
                                         : value_at(panel + group * em_payload_bytes(format), format, row, c);
    const size_t number = (group >> numbers.scale_shift) * EM_PANEL_ROWS + row;
    const uint8_t *scales = panel + sections.scales;
    float scale = numbers.scale == EM_SCALE_F16 ? half_at(scales, number)
                  : numbers.scale == EM_SCALE_F32
                      ? float_at(scales, number)
                      : em_from_bits((uint32_t)em_e8m0_half_bits(scales[number]));
    const size_t own = (group * numbers.halves + (size_t)(c * numbers.halves / EM_GROUP_COLUMNS)) * EM_PANEL_ROWS + row;
    const float minimum = numbers.has_minimums ? half_at(panel + sections.minimums, number) : scale;
    const uint8_t factor = numbers.factor == EM_FACTOR_NONE ? 0 : panel[sections.factors + own];
    if (numbers.factor == EM_FACTOR_INT8) scale *= (float)(int8_t)factor;
    if (numbers.factor == EM_FACTOR_NIBBLE) scale *= (float)(factor & 15);
    if (numbers.factor == EM_FACTOR_E4M3) scale *= e4m3(factor, EM_E4M3_HALVED);
    if (!numbers.has_offsets) return numbers.has_minimums ? value * scale + minimum : value * scale;
    const int offset = numbers.factor == EM_FACTOR_NIBBLE ? factor >> 4 : panel[sections.offsets + own];
    return value * scale - minimum * (float)offset;
}

static void embed_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_embed *e = ((const rows_task *)context)->operation;
    const em_matrix *matrix = &e->matrix;
    const int32_t groups = em_group_count(matrix->columns);
    const size_t row_bytes = (size_t)matrix->columns * sizeof(float);
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const int32_t id = e->ids[t];
        const uint8_t *panel = em_panel(matrix, id / EM_PANEL_ROWS, matrix->format);
        float *output = e->output + t * e->copies * matrix->columns;
        for (int32_t column = 0; column < matrix->columns; column++) {
            const float weight =
                weight_at(matrix->data, panel, matrix->format, groups, id % EM_PANEL_ROWS, column);
            output[column] = weight * e->scale;
        }
        for (int32_t copy = 1; copy < e->copies; copy++) {
            memcpy(output + (size_t)copy * matrix->columns, output, row_bytes);
        }
    }
}

EM_NO_SCRATCH(embed)

int32_t em_run_embed(const em_embed *embed, const em_run *run) {
    for (int32_t t = 0; t < run->tokens; t++) {
        if (embed->ids[t] < 0 || embed->ids[t] >= embed->matrix.rows) return EM_BAD_TOKEN_ID;
    }
    return run_rows(embed, run, embed_rows, run->tokens, embed->matrix.columns);
}

/* ---- norm --------------------------------------------------------------------------------------------- */

enum { GATED_AT_ONCE = 256 };

/* output = silu(gate) * (input * factor * weight); the output may be input or gate, in place. */
static void gated_norm(const em_kernels *kernels, const em_rms_norm *n, const float *input, const float *gate,
                       const float *weight, float factor, float *output) {
    const em_activation silu = {.function = EM_FUNCTION_SILU};
    float normed[GATED_AT_ONCE];
    for (int32_t start = 0; start < n->head_dim; start += GATED_AT_ONCE) {
        const int32_t left = n->head_dim - start, count = left < GATED_AT_ONCE ? left : GATED_AT_ONCE;
        for (int32_t i = 0; i < count; i++) normed[i] = input[start + i] * factor * weight[start + i];
        kernels->activate[EM_FUNCTION_SILU](&silu, gate + start, normed, output + start, count);
    }
}

static void norm_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const rows_task *task = context;
    const em_rms_norm *n = task->operation;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *input = n->input + row * n->head_dim;
        float *output = n->output + row * n->head_dim;
        const float *weight = n->weight ? n->weight + row % n->own_weights * n->head_dim : NULL;
        const float mean = task->run->kernels->sum_squares(input, n->head_dim) / (float)n->head_dim;
        const float factor = 1.0f / sqrtf(mean + n->epsilon);
        if (n->gate) {
            gated_norm(task->run->kernels, n, input, n->gate + row * n->head_dim, weight, factor, output);
        } else if (weight) {
            for (int32_t i = 0; i < n->head_dim; i++) output[i] = input[i] * factor * weight[i];
        } else {
            for (int32_t i = 0; i < n->head_dim; i++) output[i] = input[i] * factor;
        }
    }
}

EM_NO_SCRATCH(rms_norm)

int32_t em_run_rms_norm(const em_rms_norm *norm, const em_run *run) {
    return run_rows(norm, run, norm_rows, (int64_t)run->tokens * norm->heads, norm->head_dim);
}

/* ---- layer norm --------------------------------------------------------------------------------------- */

/* A sum in the order of the kernels' sums along a vector. */
static float lane_sum(const float *values, int32_t count) {
    float lanes[EM_LANES] = {0};
    int32_t start = 0;
    for (; start + EM_LANES <= count; start += EM_LANES) {
        for (int32_t lane = 0; lane < EM_LANES; lane++) lanes[lane] += values[start + lane];
    }
    for (int32_t lane = 0; start + lane < count; lane++) lanes[lane] += values[start + lane];
    return em_fold_lanes(lanes);
}

static void layer_norm_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const rows_task *task = context;
    const em_layer_norm *n = task->operation;
    const int32_t width = n->hidden_size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *input = n->input + row * width;
        float *output = n->output + row * width;
        const float mean = lane_sum(input, width) / (float)width;
        for (int32_t i = 0; i < width; i++) output[i] = input[i] - mean;
        const float variance = task->run->kernels->sum_squares(output, width) / (float)width;
        const float factor = 1.0f / sqrtf(variance + n->epsilon);
        for (int32_t i = 0; i < width; i++) output[i] = output[i] * factor * n->weight[i];
        for (int32_t i = 0; n->bias && i < width; i++) output[i] += n->bias[i];
    }
}

EM_NO_SCRATCH(layer_norm)

int32_t em_run_layer_norm(const em_layer_norm *norm, const em_run *run) {
    return run_rows(norm, run, layer_norm_rows, run->tokens, norm->hidden_size);
}

/* ---- rope --------------------------------------------------------------------------------------------- */

static void rope_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const rows_task *task = context;
    const em_rope *r = task->operation;
    const int32_t half = r->rotated / 2;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const size_t table_row = (size_t)r->positions[row / r->heads] * half;
        const float *cosine = r->cosine + table_row, *sine = r->sine + table_row;
        float *first = r->values + row * r->head_dim + (r->last ? r->head_dim - r->rotated : 0);
        const float side = r->back ? -1.0f : 1.0f; /* a factor of the sine that rounds nothing */
        if (r->neighbours) {
            for (int32_t i = 0; i < half; i++) {
                const float a = first[2 * i], b = first[2 * i + 1];
                first[2 * i] = a * cosine[i] - b * (side * sine[i]);
                first[2 * i + 1] = b * cosine[i] + a * (side * sine[i]);
            }
            continue;
        }
        float *second = first + half;
        for (int32_t i = 0; i < half; i++) {
            const float a = first[i], b = second[i];
            first[i] = a * cosine[i] - b * (side * sine[i]);
            second[i] = b * cosine[i] + a * (side * sine[i]);
        }
    }
}

EM_NO_SCRATCH(rope)

int32_t em_run_rope(const em_rope *rope, const em_run *run) {
    for (int32_t t = 0; t < run->tokens; t++) {
        if (rope->positions[t] < 0 || rope->positions[t] >= rope->context) return EM_BAD_POSITION;
    }
    return run_rows(rope, run, rope_rows, (int64_t)run->tokens * rope->heads, rope->head_dim);
}

/* ---- scale by position -------------------------------------------------------------------------------- */

static void scale_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_scale_by_position *s = ((const rows_task *)context)->operation;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float factor = s->factors[s->positions[row]];
        float *values = s->values + row * s->columns;
        for (int32_t i = 0; i < s->columns; i++) values[i] *= factor;
    }
}

EM_NO_SCRATCH(scale_by_position)

int32_t em_run_scale_by_position(const em_scale_by_position *scale, const em_run *run) {
    for (int32_t t = 0; t < run->tokens; t++) {
        if (scale->positions[t] < 0 || scale->positions[t] >= scale->context) return EM_BAD_POSITION;
    }
    return run_rows(scale, run, scale_rows, run->tokens, scale->columns);
}

/* ---- clip --------------------------------------------------------------------------------------------- */

static void clip_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_clip *c = ((const rows_task *)context)->operation;
    (void)thread;
    for (int64_t i = begin * c->columns; i < end * c->columns; i++) {
        const float value = c->values[i];
        c->values[i] = value > c->limit ? c->limit : value < -c->limit ? -c->limit : value;
    }
}

EM_NO_SCRATCH(clip)

int32_t em_run_clip(const em_clip *clip, const em_run *run) {
    return run_rows(clip, run, clip_rows, run->tokens, clip->columns);
}

/* ---- gate --------------------------------------------------------------------------------------------- */

enum { GATES_AT_ONCE = 256 };

/* Turns numbers into factors. The exponentials, which cost most, are those of the instruction set. */
static void gate_factors(const em_kernels *kernels, int32_t gating, const float *gate, float *factors, int32_t count) {
    if (gating == EM_GATING_IDENTITY) {
        memcpy(factors, gate, (size_t)count * sizeof *factors);
        return;
    }
    const bool softplus = gating == EM_GATING_SOFTPLUS;
    for (int32_t i = 0; i < count; i++) factors[i] = softplus ? -fabsf(gate[i]) : -gate[i];
    kernels->exponentials(factors, count, 0);
    if (softplus) {
        for (int32_t i = 0; i < count; i++) {
            factors[i] = (gate[i] > 0 ? gate[i] : 0) + em_log_of_one_plus(factors[i]);
        }
        return;
    }
    const bool silu = gating == EM_GATING_SILU;
    for (int32_t i = 0; i < count; i++) factors[i] = (silu ? gate[i] : 1.0f) / (1.0f + factors[i]);
}

static void gate_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const rows_task *task = context;
    const em_gate *g = task->operation;
    (void)thread;
    for (int64_t first = begin * g->runs; first < end * g->runs; first += GATES_AT_ONCE) {
        float factors[GATES_AT_ONCE];
        const int64_t left = end * g->runs - first;
        const int32_t count = left < GATES_AT_ONCE ? (int32_t)left : GATES_AT_ONCE;
        gate_factors(task->run->kernels, g->gating, g->gate + first, factors, count);
        float *values = g->values + first * g->width;
        if (g->width == 1) {
            for (int32_t i = 0; i < count; i++) values[i] *= factors[i];
            continue;
        }
        for (int32_t i = 0; i < count; i++, values += g->width) {
            for (int32_t channel = 0; channel < g->width; channel++) values[channel] *= factors[i];
        }
    }
}

EM_NO_SCRATCH(gate)

int32_t em_run_gate(const em_gate *gate, const em_run *run) {
    return run_rows(gate, run, gate_rows, run->tokens, (int64_t)gate->runs * gate->width);
}

/* ---- soft cap ----------------------------------------------------------------------------------------- */

enum { CAPS_AT_ONCE = 256 };

/* tanh(x) is (1 - p) / (1 + p) with the sign of x, where p = exp(-2 |x|). */
static void soft_cap_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const rows_task *task = context;
    const em_soft_cap *s = task->operation;
    const int64_t stop = end * s->columns;
    (void)thread;
    for (int64_t first = begin * s->columns; first < stop; first += CAPS_AT_ONCE) {
        float powers[CAPS_AT_ONCE], *values = s->values + first;
        const int32_t count = stop - first < CAPS_AT_ONCE ? (int32_t)(stop - first) : CAPS_AT_ONCE;
        for (int32_t i = 0; i < count; i++) powers[i] = -2.0f * fabsf(values[i] / s->limit);
        task->run->kernels->exponentials(powers, count, 0);
        for (int32_t i = 0; i < count; i++) {
            values[i] = copysignf(s->limit * ((1.0f - powers[i]) / (1.0f + powers[i])), values[i]);
        }
    }
}

EM_NO_SCRATCH(soft_cap)

int32_t em_run_soft_cap(const em_soft_cap *cap, const em_run *run) {
    return run_rows(cap, run, soft_cap_rows, run->tokens, cap->columns);
}

/* ---- combine ------------------------------------------------------------------------------------------ */

enum { COLUMNS_AT_ONCE = 256 };

/* Sums columns start .. start + count - 1 of one token, in router order. */
static void combine_columns(const em_combine *c, int64_t token, int32_t start, int32_t count) {
    float sums[COLUMNS_AT_ONCE] = {0};
    for (int32_t k = 0; c->routed && k < c->top_k; k++) {
        const float weight = c->weights ? c->weights[token * c->top_k + k] : 1.0f;
        const float *routed = c->routed + (token * c->top_k + k) * c->hidden_size + start;
        for (int32_t i = 0; i < count; i++) sums[i] = k == 0 ? weight * routed[i] : sums[i] + weight * routed[i];
    }
    if (c->shared) {
        const float gate = c->shared_gate ? 1.0f / (1.0f + em_exp(-c->shared_gate[token])) : 1.0f;
        const float *shared = c->shared + token * c->hidden_size + start;
        for (int32_t i = 0; i < count; i++) sums[i] += gate * shared[i];
    }
    float *output = c->output + token * c->hidden_size + start;
    for (int32_t i = 0; i < count; i++) {
        const float sum = c->scale * sums[i];
        output[i] = c->accumulate ? output[i] + sum : sum;
    }
}

static void combine_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_combine *c = ((const rows_task *)context)->operation;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        for (int32_t start = 0; start < c->hidden_size; start += COLUMNS_AT_ONCE) {
            const int32_t left = c->hidden_size - start;
            combine_columns(c, token, start, left < COLUMNS_AT_ONCE ? left : COLUMNS_AT_ONCE);
        }
    }
}

EM_NO_SCRATCH(combine)

int32_t em_run_combine(const em_combine *combine, const em_run *run) {
    return run_rows(combine, run, combine_rows, run->tokens, (int64_t)combine->hidden_size * (combine->top_k + 1));
}

/* ---- mix ---------------------------------------------------------------------------------------------- */

static void mix_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_mix *m = ((const rows_task *)context)->operation;
    const int32_t width = m->hidden_size;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        const float *base = m->base + token * width, *result = m->result + token * width;
        float *output = m->output + token * width;
        for (int32_t i = 0; i < width; i++) {
            const float kept = m->keep ? m->keep[i] * base[i] : base[i];
            const float scaled = m->scale * result[i];
            const float sum = kept + (m->share ? m->share[i] * scaled : scaled);
            output[i] = m->shift ? sum + m->shift[i] : sum;
        }
        for (int32_t i = 0; m->factor && i < width; i++) output[i] *= *m->factor;
    }
}

EM_NO_SCRATCH(mix)

int32_t em_run_mix(const em_mix *mix, const em_run *run) {
    return run_rows(mix, run, mix_rows, run->tokens, mix->hidden_size);
}
