/* Several residual streams: what a block reads of them, and how its result joins them. */
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

/* [post | mix] of a row, from the numbers behind those of `pre`. */
static void find_joining(const em_collapse_streams *c, const float *numbers, float *joining) {
    const int32_t n = c->count;
    float *mix = joining + n;
    for (int32_t i = 0; i < n; i++) joining[i] = 2.0f * sigmoid(numbers[n + i] * c->scales[1] + c->base[n + i]);
    for (int32_t i = 0; i < n * n; i++) mix[i] = numbers[2 * n + i] * c->scales[2] + c->base[2 * n + i];
    for (int32_t i = 0; i < n; i++) softmax(mix + i * n, n, c->epsilon);
    for (int64_t iteration = 0; iteration < c->iterations; iteration++) {
        for (int32_t i = 0; iteration && i < n; i++) divide_by_sum(mix + i * n, n, 1, c->epsilon);
        for (int32_t j = 0; j < n; j++) divide_by_sum(mix + j, n, n, c->epsilon);
    }
}

static void collapse_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_collapse_streams *c = ((const streams_task *)context)->operation;
    const int32_t n = c->count, width = c->hidden_size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *numbers = c->numbers + row * c->columns, *streams = c->streams + row * n * width;
        float *output = c->output + row * width;
        for (int32_t i = 0; i < n; i++) {
            const float share = sigmoid(numbers[i] * c->scales[0] + c->base[i]) + c->epsilon;
            const float *stream = streams + (int64_t)i * width;
            for (int32_t d = 0; d < width; d++) output[d] = i ? output[d] + share * stream[d] : share * stream[d];
        }
        if (c->joining) find_joining(c, numbers, c->joining + row * c->J);
    }
}

EM_NO_SCRATCH(collapse_streams)

int32_t em_run_collapse_streams(const em_collapse_streams *collapse, const em_run *run) {
    return run_rows(collapse, run, collapse_rows, (int64_t)collapse->count * collapse->hidden_size);
}

/* ---- join --------------------------------------------------------------------------------------------- */

static void join_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_join_streams *s = ((const streams_task *)context)->operation;
    const int32_t n = s->count, width = s->hidden_size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *result = s->result + row * width;
        float *streams = s->streams + row * n * width, before[EM_MOST_STREAMS][BLOCK_COLUMNS];
        const float *post = s->joining ? s->joining + row * s->J : NULL;
        for (int32_t start = 0; start < width; start += BLOCK_COLUMNS) {
            const int32_t left = width - start, count = left < BLOCK_COLUMNS ? left : BLOCK_COLUMNS;
            for (int32_t i = 0; post && i < n; i++) {
                for (int32_t d = 0; d < count; d++) before[i][d] = streams[(int64_t)i * width + start + d];
            }
            for (int32_t j = 0; j < n; j++) {
                float *stream = streams + (int64_t)j * width + start;
                for (int32_t d = 0; d < count; d++) stream[d] = post ? post[j] * result[start + d] : result[start + d];
                for (int32_t i = 0; post && i < n; i++) {
                    const float share = post[n + i * n + j];
                    for (int32_t d = 0; d < count; d++) stream[d] += share * before[i][d];
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
