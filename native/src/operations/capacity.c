/* Which choices of experts count: those within an expert's capacity, and those of enough weight. */
#include "../operations.h"

#include <string.h>

enum { MILLIONTHS = 1000000 };

/* How many choices of a run each expert takes. */
static int64_t capacity_of(const em_capacity *c, int32_t tokens) {
    int64_t shared = tokens * c->share / ((int64_t)MILLIONTHS * c->num_experts);
    if (shared > tokens) shared = tokens;
    return shared > c->capacity ? shared : c->capacity;
}

size_t em_capacity_scratch_bytes(const em_capacity *capacity, int32_t tokens) {
    (void)tokens;
    return (size_t)capacity->num_experts * sizeof(int32_t);
}

int32_t em_run_capacity(const em_capacity *c, const em_run *run) {
    const int64_t tokens = run->tokens, count = c->top_k, capacity = capacity_of(c, run->tokens);
    int32_t *taken = (int32_t *)(void *)run->scratch;
    memset(taken, 0, (size_t)c->num_experts * sizeof *taken);
    for (int64_t i = 0; i < tokens * count; i++) {
        const int64_t at = c->by_rank ? i % tokens * count + i / tokens : i;
        const int32_t expert = c->experts[at];
        if (expert < 0 || expert >= c->num_experts) return EM_BAD_OPERATION;
        if (c->weights[at] == 0) continue;
        if (taken[expert] == capacity) {
            c->weights[at] = 0;
        } else {
            taken[expert]++;
        }
    }
    return EM_OK;
}

EM_NO_SCRATCH(least_weight)

int32_t em_run_least_weight(const em_least_weight *l, const em_run *run) {
    for (int64_t row = 0; row < run->tokens; row++) {
        float *weights = l->weights + row * l->top_k;
        for (int32_t k = 1; k < l->top_k; k++) {
            if (!(weights[k] > l->least)) weights[k] = 0;
        }
    }
    return EM_OK;
}
