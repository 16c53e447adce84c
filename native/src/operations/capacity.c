/* The capacity of experts: how many choices of a run each takes, counted row by row. */
#include "../operations.h"

#include <string.h>

size_t em_capacity_scratch_bytes(const em_capacity *capacity, int32_t tokens) {
    (void)tokens;
    return (size_t)capacity->num_experts * sizeof(int32_t);
}

int32_t em_run_capacity(const em_capacity *c, const em_run *run) {
    int32_t *taken = (int32_t *)(void *)run->scratch;
    memset(taken, 0, (size_t)c->num_experts * sizeof *taken);
    for (int64_t i = 0; i < (int64_t)run->tokens * c->top_k; i++) {
        if (c->experts[i] < 0 || c->experts[i] >= c->num_experts) return EM_BAD_OPERATION;
        if (taken[c->experts[i]] == c->capacity) {
            c->weights[i] = 0;
        } else {
            taken[c->experts[i]]++;
        }
    }
    return EM_OK;
}
