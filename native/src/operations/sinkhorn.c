/* Several residual streams: what a block reads of them, and how its result joins them by a balanced mixture. */
#include "../operations.h"

#include "../../kernels/exponential.h"

enum {
    /* A chunk of fewer numbers than this costs more to hand out than to do. */
    CHUNK_NUMBERS = 8192,
    BLOCK_COLUMNS = 64,
};

typedef struct streams_task {
    const void *operation;
    const em_run *run;
} streams_task;

static int32_t run_rows(const void *operation, const em_run *run, em_task *rows, int64_t width) {
    streams_task task = {operation, run};
    em_pool_for(run->pool, run->tokens, (CHUNK_NUMBERS + width - 1) / width, rows, &task);
    return EM_OK;
}

static float sigmoid(float x) { return 1.0f / (1.0f + em_exp(-x)); }

/* ---- collapse ----------------------------------------------------------------------------------------- */

static void collapse_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_collapse_streams *c = ((const streams_task *)context)->operation;
    const int32_t n = c->count, width = c->hidden_size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *stream = c->streams + row * n * width;
        float *output = c->output + row * width;
        for (int32_t i = 0; i < n; i++, stream += width) {
            const float share = sigmoid(c->numbers[row * n + i] * c->scale[0] + c->base[i]) + c->epsilon;
            for (int32_t d = 0; d < width; d++) output[d] = i ? output[d] + share * stream[d] : share * stream[d];
        }
    }
}

EM_NO_SCRATCH(collapse_streams)

int32_t em_run_collapse_streams(const em_collapse_streams *collapse, const em_run *run) {
    return run_rows(collapse, run, collapse_rows, (int64_t)collapse->count * collapse->hidden_size);
}

/* ---- balance ------------------------------------------------------------------------------------------ */

/* The softmax of a row of n numbers, plus epsilon, in place. */
static void softmax(float *numbers, int32_t n, float epsilon) {
    float largest = numbers[0], sum = 0;
    for (int32_t j = 1; j < n; j++) largest = numbers[j] > largest ? numbers[j] : largest;
    for (int32_t j = 0; j < n; j++) sum += numbers[j] = em_exp(numbers[j] - largest);
    for (int32_t j = 0; j < n; j++) numbers[j] = numbers[j] / sum + epsilon;
}

/* Divides numbers, `step` apart, by their sum plus epsilon. */
static void divide_by_sum(float *numbers, int32_t n, int32_t step, float epsilon) {
    float sum = 0;
    for (int32_t i = 0; i < n; i++) sum += numbers[i * step];
    for (int32_t i = 0; i < n; i++) numbers[i * step] /= sum + epsilon;
}

static void balance_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_balance_streams *b = ((const streams_task *)context)->operation;
    const int32_t n = b->count;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        float *post = b->numbers + row * b->J, *mix = post + n;
        for (int32_t i = 0; i < n; i++) post[i] = 2.0f * sigmoid(post[i] * b->scales[0] + b->base[i]);
        for (int32_t i = 0; i < n * n; i++) mix[i] = mix[i] * b->scales[1] + b->base[n + i];
        for (int32_t i = 0; i < n; i++) softmax(mix + i * n, n, b->epsilon);
        for (int64_t iteration = 0; iteration < b->iterations; iteration++) {
            for (int32_t i = 0; iteration && i < n; i++) divide_by_sum(mix + i * n, n, 1, b->epsilon);
            for (int32_t j = 0; j < n; j++) divide_by_sum(mix + j, n, n, b->epsilon);
        }
    }
}

EM_NO_SCRATCH(balance_streams)

int32_t em_run_balance_streams(const em_balance_streams *balance, const em_run *run) {
    return run_rows(balance, run, balance_rows, balance->iterations * balance->J * 4);
}

/* ---- join --------------------------------------------------------------------------------------------- */

static void join_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_join_streams *s = ((const streams_task *)context)->operation;
    const int32_t n = s->count, width = s->hidden_size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *result = s->result + row * width;
        float *streams = s->streams + row * n * width, before[EM_MOST_STREAMS][BLOCK_COLUMNS];
        const float *post = s->joining + row * s->J, *mix = post + n;
        for (int32_t start = 0; start < width; start += BLOCK_COLUMNS) {
            const int32_t left = width - start, count = left < BLOCK_COLUMNS ? left : BLOCK_COLUMNS;
            for (int32_t i = 0; i < n; i++) {
                for (int32_t d = 0; d < count; d++) before[i][d] = streams[(int64_t)i * width + start + d];
            }
            for (int32_t j = 0; j < n; j++) {
                float *stream = streams + (int64_t)j * width + start;
                for (int32_t d = 0; d < count; d++) stream[d] = post[j] * result[start + d];
                for (int32_t i = 0; i < n; i++) {
                    for (int32_t d = 0; d < count; d++) stream[d] += mix[i * n + j] * before[i][d];
                }
            }
        }
    }
}

EM_NO_SCRATCH(join_streams)

int32_t em_run_join_streams(const em_join_streams *join, const em_run *run) {
    if (join->count > EM_MOST_STREAMS) return EM_BAD_OPERATION;
    return run_rows(join, run, join_rows, (int64_t)join->count * join->hidden_size);
}
