/* The router's choice: the largest logits of each token and their softmax.
 *
 * With a bonus for experts in memory (off by default, and lossy) the expert of largest logit is chosen as without it,
 * the others by score. Every step of a score is one float32 operation, so that all instruction sets choose alike. */
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

/* The inputs of one token's scores: its logits, and the bonus of the experts in memory. */
typedef struct scoring {
    const float *logits;
    const int32_t *slots; /* of the experts; negative: not in memory */
    float bonus; /* added to the logits of experts in memory */
} scoring;

/* The bonus is a share of the range of the logits, NaNs left out; it is 0 if that range is not finite. */
static scoring scoring_of(const em_route *r, const float *logits) {
    float largest = -INFINITY, smallest = INFINITY;
    for (int32_t e = 0; e < r->num_experts; e++) {
        if (logits[e] > largest) largest = logits[e];
        if (logits[e] < smallest) smallest = logits[e];
    }
    const float reach = largest - smallest;
    return (scoring){logits, r->slots, isfinite(reach) ? r->bonus * reach : 0};
}

static inline float score(const scoring *s, int32_t e) {
    return s->slots[e] >= 0 ? s->logits[e] + s->bonus : s->logits[e];
}

/* Whether `a` comes before `b`: by falling score, on a tie by falling logit, then by number. */
static bool scores_before(const scoring *s, int32_t a, int32_t b) {
    const float x = score(s, a), y = score(s, b);
    if (comes_before(x, y) || comes_before(y, x)) return comes_before(x, y);
    const float logit_a = s->logits[a], logit_b = s->logits[b];
    if (comes_before(logit_a, logit_b) || comes_before(logit_b, logit_a)) return comes_before(logit_a, logit_b);
    return a < b;
}

/* Chooses the expert of largest logit and those of largest score; lists all in falling order of their logits. */
static void choose_with_bonus(const em_route *r, const float *logits, int32_t *experts) {
    const scoring s = scoring_of(r, logits);
    const scoring by_logit = {logits, r->slots, 0};
    const int32_t first = next_best(logits, r->num_experts, -1);
    int32_t previous = -1;
    experts[0] = first;
    for (int32_t k = 1; k < r->top_k; k++) {
        int32_t best = -1;
        for (int32_t e = 0; e < r->num_experts; e++) {
            if (e == first || (previous >= 0 && !scores_before(&s, previous, e))) continue;
            if (best < 0 || scores_before(&s, e, best)) best = e;
        }
        previous = best;
        int32_t place = k;
        for (; scores_before(&by_logit, best, experts[place - 1]); place--) experts[place] = experts[place - 1];
        experts[place] = best;
    }
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
    const float *logits = r->logits + token * r->num_experts;
    int32_t *experts = r->experts + token * r->top_k;
    float *weights = r->weights + token * r->top_k;
    if (r->slots) {
        choose_with_bonus(r, logits, experts);
    } else {
        for (int32_t k = 0; k < r->top_k; k++) {
            experts[k] = next_best(logits, r->num_experts, k ? experts[k - 1] : -1);
        }
    }
    for (int32_t k = 0; k < r->top_k; k++) weights[k] = logits[experts[k]];
    /* A NaN is chosen last but spoils a sum over all: then, as in the reference, every weight is NaN. */
    const float largest = weights[0];
    float sum = r->renormalise ? sum_of_exponentials(kernels, weights, r->top_k, largest)
                               : sum_of_exponentials(kernels, logits, r->num_experts, largest);
    kernels->exponentials(weights, r->top_k, largest);
    for (int32_t k = 0; k < r->top_k; k++) weights[k] /= sum;
}

static void route_tokens(void *context, int64_t begin, int64_t end, int32_t thread) {
    const route_task *task = context;
    (void)thread;
    for (int64_t token = begin; token < end; token++) route_token(task->route, task->run->kernels, token);
}

EM_NO_SCRATCH(route)

int32_t em_run_route(const em_route *route, const em_run *run) {
    route_task task = {route, run};
    em_pool_for(run->pool, run->tokens, 8, route_tokens, &task);
    return EM_OK;
}
