/* The router's choice: the largest logits of each token and their softmax. */
#include "../operations.h"

#include <math.h>
#include <stdbool.h>

enum { EXPONENTIALS_AT_ONCE = 64 };

typedef struct route_task {
    const em_route *route;
    const em_run *run;
} route_task;

/* A NaN comes after every number, as it does in the reference's sort. */
static inline bool comes_before(float a, float b) { return a > b || (isnan(b) && !isnan(a)); }

/* The best expert that comes after `previous` (-1: the best of all). */
static int32_t next_best(const float *logits, int32_t count, int32_t previous) {
    int32_t best = -1;
    for (int32_t e = 0; e < count; e++) {
        if (previous >= 0) {
            const bool after = comes_before(logits[previous], logits[e]) ||
                               (!comes_before(logits[e], logits[previous]) && e > previous);
            if (!after) continue;
        }
        if (best < 0 || comes_before(logits[e], logits[best])) best = e;
    }
    return best;
}

static float sum_of_exponentials(const em_kernels *kernels, const float *logits, int32_t count, float largest) {
    float sum = 0;
    for (int32_t start = 0; start < count; start += EXPONENTIALS_AT_ONCE) {
        const int32_t here = count - start < EXPONENTIALS_AT_ONCE ? count - start : EXPONENTIALS_AT_ONCE;
        float block[EXPONENTIALS_AT_ONCE];
        for (int32_t i = 0; i < here; i++) block[i] = logits[start + i];
        sum += kernels->exponentials(block, here, largest);
    }
    return sum;
}

static void route_token(const em_route *r, const em_kernels *kernels, int64_t token) {
    const float *logits = r->logits + token * r->expert_count;
    int32_t *experts = r->experts + token * r->used;
    float *weights = r->weights + token * r->used;
    for (int32_t k = 0; k < r->used; k++) {
        experts[k] = next_best(logits, r->expert_count, k ? experts[k - 1] : -1);
        weights[k] = logits[experts[k]];
    }
    /* A NaN is chosen last but spoils a sum over all: then, as in the reference, every weight is NaN. */
    const float largest = weights[0];
    float sum = r->renormalise ? sum_of_exponentials(kernels, weights, r->used, largest)
                               : sum_of_exponentials(kernels, logits, r->expert_count, largest);
    kernels->exponentials(weights, r->used, largest);
    for (int32_t k = 0; k < r->used; k++) weights[k] /= sum;
}

static void route_tokens(void *context, int64_t begin, int64_t end, int32_t thread) {
    const route_task *task = context;
    (void)thread;
    for (int64_t token = begin; token < end; token++) route_token(task->route, task->run->kernels, token);
}

int32_t em_run_route(const em_route *route, const em_run *run) {
    route_task task = {route, run};
    em_pool_for(run->pool, run->tokens, 8, route_tokens, &task);
    return EM_OK;
}
