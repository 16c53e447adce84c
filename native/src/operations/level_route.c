/* Routers of several levels: a token's choices at each level are shares of a choice at the level above. */
#include "route.h"

#include "../../kernels/exponential.h"

typedef struct level_task {
    const em_level_route *route;
    const em_run *run;
} level_task;

/* The sum of exp(logit - largest) over `count` logits, in their order; of a NaN it is one. */
static float sum_of_powers(const float *logits, int32_t count, float largest) {
    float sum = 0;
    for (int32_t i = 0; i < count; i++) sum += em_exp(logits[i] - largest);
    return sum;
}

/* Chooses among the `size` members of a choice, whose weight is `weight`: writes `top_k` of them, and their weights. */
static void choose_members(const em_level_route *r, em_level level, const float *logits, int32_t first, float weight,
                           int32_t *members, float *weights) {
    const int32_t size = (int32_t)level.size, top_k = (int32_t)level.top_k;
    int32_t last = -1;
    for (int32_t k = 0; k < top_k; k++) {
        last = members[k] = next_best(logits, size, last);
        weights[k] = logits[last];
    }
    const float largest = weights[0];
    const float sum = r->renormalise ? sum_of_powers(weights, top_k, largest) : sum_of_powers(logits, size, largest);
    for (int32_t k = 0; k < top_k; k++) {
        weights[k] = weight * (em_exp(weights[k] - largest) / sum);
        members[k] += first;
    }
}

static void route_tokens(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_level_route *r = ((const level_task *)context)->route;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        const float *logits = r->logits + token * r->numbers;
        int32_t *experts = r->experts + token * r->top_k;
        float *weights = r->weights + token * r->top_k;
        int32_t chosen = 1, total = 1;
        experts[0] = 0;
        weights[0] = r->scale;
        for (int32_t l = 0; l < r->levels_count; l++) {
            const em_level level = r->levels[l];
            /* The members of a choice take its place and those behind it: the last choice goes first. */
            for (int32_t i = chosen - 1; i >= 0; i--) {
                const int32_t first = experts[i] * (int32_t)level.size, at = i * (int32_t)level.top_k;
                choose_members(r, level, logits + first, first, weights[i], experts + at, weights + at);
            }
            chosen *= (int32_t)level.top_k;
            total *= (int32_t)level.size;
            logits += total;
        }
    }
}

EM_NO_SCRATCH(level_route)

int32_t em_run_level_route(const em_level_route *route, const em_run *run) {
    level_task task = {route, run};
    em_pool_for(run->pool, run->tokens, 8, route_tokens, &task);
    return EM_OK;
}
