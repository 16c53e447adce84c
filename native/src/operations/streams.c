/* The operations on several residual streams: ReadStreams, WriteStreams and GateByAgreement. Threads share out rows. */
#include "../operations.h"

#include <math.h>

enum {
    /* A chunk of fewer numbers than this costs more to hand out than to do. */
    STREAM_CHUNK_NUMBERS = 8192,
    COLUMNS_AT_ONCE = 256,
};

typedef struct streams_task {
    const void *operation;
    const em_run *run;
} streams_task;

static int32_t run_rows(const void *operation, const em_run *run, em_task *rows, int32_t count, int32_t width) {
    streams_task task = {operation, run};
    const int64_t numbers = (int64_t)count * width;
    em_pool_for(run->pool, run->tokens, (STREAM_CHUNK_NUMBERS + numbers - 1) / numbers, rows, &task);
    return EM_OK;
}

/* The sigmoid of each number. The exponentials, which cost most, are those of the instruction set. */
static void sigmoids(const em_kernels *kernels, const float *numbers, float *factors, int32_t count) {
    for (int32_t i = 0; i < count; i++) factors[i] = -numbers[i];
    kernels->exponentials(factors, count, 0);
    for (int32_t i = 0; i < count; i++) factors[i] = 1.0f / (1.0f + factors[i]);
}

/* ---- read streams ------------------------------------------------------------------------------------- */

static void read_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const streams_task *task = context;
    const em_read_streams *r = task->operation;
    const int32_t width = r->hidden_size;
    const float inverse = 1.0f / (float)r->count;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        for (int32_t start = 0; start < width; start += COLUMNS_AT_ONCE) {
            const int32_t left = width - start, columns = left < COLUMNS_AT_ONCE ? left : COLUMNS_AT_ONCE;
            float sums[COLUMNS_AT_ONCE] = {0}, factors[COLUMNS_AT_ONCE];
            for (int32_t s = 0; s < r->count; s++) {
                const int64_t at = (t * r->count + s) * width + start;
                const float *stream = r->streams + at;
                sigmoids(task->run->kernels, r->shares + at, factors, columns);
                for (int32_t i = 0; i < columns; i++) sums[i] += factors[i] * stream[i];
            }
            float *output = r->output + t * width + start;
            for (int32_t i = 0; i < columns; i++) output[i] = sums[i] * inverse;
        }
    }
}

EM_NO_SCRATCH(read_streams)

int32_t em_run_read_streams(const em_read_streams *read, const em_run *run) {
    return run_rows(read, run, read_rows, read->count, read->hidden_size);
}

/* ---- write streams ------------------------------------------------------------------------------------ */

static void write_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const streams_task *task = context;
    const em_write_streams *w = task->operation;
    const int32_t width = w->hidden_size;
    (void)thread;
    for (int64_t row = begin * w->count; row < end * w->count; row++) {
        const float *result = w->result + row / w->count * width;
        float *stream = w->streams + row * width, factor;
        sigmoids(task->run->kernels, w->shares + row, &factor, 1);
        factor *= 2.0f;
        for (int32_t i = 0; i < width; i++) stream[i] += factor * result[i];
    }
}

EM_NO_SCRATCH(write_streams)

int32_t em_run_write_streams(const em_write_streams *write, const em_run *run) {
    return run_rows(write, run, write_rows, write->count, write->hidden_size);
}

/* ---- gate by agreement -------------------------------------------------------------------------------- */

/* The sum of products, in the order of the kernels' sums along a vector. */
static float product_sum(const float *a, const float *b, int32_t count) {
    float lanes[EM_LANES] = {0};
    int32_t start = 0;
    for (; start + EM_LANES <= count; start += EM_LANES) {
        for (int32_t lane = 0; lane < EM_LANES; lane++) lanes[lane] += a[start + lane] * b[start + lane];
    }
    for (int32_t lane = 0; start + lane < count; lane++) lanes[lane] += a[start + lane] * b[start + lane];
    return em_fold_lanes(lanes);
}

static void gate_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const streams_task *task = context;
    const em_gate_by_agreement *g = task->operation;
    const int32_t width = g->hidden_size;
    (void)thread;
    for (int64_t row = begin * g->count; row < end * g->count; row++) {
        const float *key = g->key + row * width, *query = g->query + row * width;
        const float *value = g->value + row / g->count * width;
        const float agreement = product_sum(key, query, width) / sqrtf((float)width);
        const float root = sqrtf(fmaxf(fabsf(agreement), g->least));
        const float rooted = agreement == 0 ? 0 : copysignf(root, agreement);
        float *output = g->output + row * width, factor;
        sigmoids(task->run->kernels, &rooted, &factor, 1);
        for (int32_t i = 0; i < width; i++) output[i] = factor * value[i];
    }
}

EM_NO_SCRATCH(gate_by_agreement)

int32_t em_run_gate_by_agreement(const em_gate_by_agreement *gate, const em_run *run) {
    return run_rows(gate, run, gate_rows, gate->count, gate->hidden_size);
}
