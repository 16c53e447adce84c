/* The router's choice: the experts of largest choice score of each token, and their weights.
 *
 * With a bonus for experts in memory (off by default, and lossy) the expert of largest choice score is chosen as without
 * it, the others by raised score. Every step of a score is one float32 operation or the written exponential, so that all
 * instruction sets choose alike. */
#include "route.h"

#include <math.h>
#include <stdbool.h>

#include "../../kernels/exponential.h"

enum { EXPONENTIALS_AT_ONCE = 64 };

typedef struct route_task {
    const em_route *route;
    const em_table_route *table; /* in its place */
    const em_run *run;
    float *scores; /* (T, E): choice scores; NULL if they are the logits as they stand */
    float *groups; /* (T, groups): what groups are kept for */
} route_task;

/* ---- choice scores -------------------------------------------------------------------------------------- */

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

static void sigmoids(const em_kernels *kernels, float *values, int32_t count) {
    for (int32_t i = 0; i < count; i++) values[i] = -values[i];
    kernels->exponentials(values, count, 0);
    for (int32_t i = 0; i < count; i++) values[i] = 1.0f / (1.0f + values[i]);
}

/* sqrt(log(1 + exp(x))) of each number: em_softplus, whose exponentials are those of the instruction set. */
static void roots_of_softplus(const em_kernels *kernels, float *values, int32_t count) {
    for (int32_t start = 0; start < count; start += EXPONENTIALS_AT_ONCE) {
        const int32_t here = count - start < EXPONENTIALS_AT_ONCE ? count - start : EXPONENTIALS_AT_ONCE;
        float powers[EXPONENTIALS_AT_ONCE];
        for (int32_t i = 0; i < here; i++) powers[i] = -fabsf(values[start + i]);
        kernels->exponentials(powers, here, 0);
        for (int32_t i = 0; i < here; i++) {
            const float x = values[start + i];
            values[start + i] = sqrtf((x > 0.0f ? x : 0.0f) + em_log_of_one_plus(powers[i]));
        }
    }
}

/* Whether an expert's score depends on its own logit alone. */
static bool by_themselves(const em_route *r) {
    return r->score == EM_SCORE_SIGMOID || r->score == EM_SCORE_SQRT_SOFTPLUS;
}

/* Turns logits into such scores. */
static void score_alone(const em_route *r, const em_kernels *kernels, float *values, int32_t count) {
    if (r->score == EM_SCORE_SIGMOID) {
        sigmoids(kernels, values, count);
    } else {
        roots_of_softplus(kernels, values, count);
    }
}

/* Sets the scores of all groups to -infinity but those of the largest sums of their largest scores, one or two. */
static void drop_groups(const em_route *r, float *scores, float *sums) {
    const int32_t size = r->num_experts / r->groups;
    for (int32_t group = 0; group < r->groups; group++) {
        const float *own = scores + (size_t)group * size;
        const int32_t first = next_best(own, size, -1);
        sums[group] = r->group_best == 1 ? own[first] : own[first] + own[next_best(own, size, first)];
    }
    int32_t last = -1; /* the last group that is kept */
    for (int32_t kept = 0; kept < r->kept_groups; kept++) last = next_best(sums, r->groups, last);
    for (int32_t group = 0; group < r->groups; group++) {
        if (!precedes(sums, last, group)) continue;
        for (int32_t i = 0; i < size; i++) scores[(size_t)group * size + i] = -INFINITY;
    }
}

/* Whether every expert's choice score is its logit. */
static bool by_logits(const em_route *r) {
    return (!by_themselves(r) || r->choose_by == EM_CHOOSE_BY_LOGIT) && !r->choice_bias && r->groups == 1;
}

static void score_choices(const em_route *r, const em_kernels *kernels, const float *logits, float *scores,
                          float *sums) {
    const int32_t count = r->num_experts;
    for (int32_t e = 0; e < count; e++) scores[e] = logits[e];
    if (r->choose_by == EM_CHOOSE_BY_LOGIT) {
        /* as they stand */
    } else if (by_themselves(r)) {
        score_alone(r, kernels, scores, count);
    } else if (r->choice_bias || r->groups > 1) {
        const float largest = logits[next_best(logits, count, -1)];
        const float sum = sum_of_exponentials(kernels, logits, count, largest);
        kernels->exponentials(scores, count, largest);
        for (int32_t e = 0; e < count; e++) scores[e] /= sum;
    }
    for (int32_t e = 0; r->choice_bias && e < count; e++) scores[e] += r->choice_bias[e];
    if (r->groups > 1) drop_groups(r, scores, sums);
}

/* ---- the bonus for experts in memory --------------------------------------------------------------------- */

/* The inputs of one token's raised scores: its choice scores, and the bonus of the experts in memory. */
typedef struct scoring {
    const float *scores;
    const int32_t *slots; /* of the experts; negative: not in memory */
    int32_t experts;      /* choices from here on are of no expert, and need no memory */
    float bonus; /* added to the scores of experts in memory */
} scoring;

/* The bonus is a share of the range of the scores, NaNs and dropped groups left out; it is 0 if that range is not
 * finite. */
static scoring scoring_of(const em_route *r, const float *scores) {
    float largest = -INFINITY, smallest = INFINITY;
    for (int32_t e = 0; e < r->num_experts; e++) {
        if (r->groups > 1 && scores[e] == -INFINITY) continue;
        if (scores[e] > largest) largest = scores[e];
        if (scores[e] < smallest) smallest = scores[e];
    }
    const float reach = largest - smallest;
    return (scoring){scores, r->slots, r->num_experts - r->passing, isfinite(reach) ? r->bonus * reach : 0};
}

static inline float raised(const scoring *s, int32_t e) {
    return e >= s->experts || s->slots[e] >= 0 ? s->scores[e] + s->bonus : s->scores[e];
}

/* Whether `a` comes before `b`: by falling raised score, on a tie by falling score, then by number. */
static bool raised_before(const scoring *s, int32_t a, int32_t b) {
    const float x = raised(s, a), y = raised(s, b);
    if (comes_before(x, y) || comes_before(y, x)) return comes_before(x, y);
    return precedes(s->scores, a, b);
}

/* Chooses the expert of largest score and those of largest raised score; lists all in falling order of their scores. */
static void choose_with_bonus(const em_route *r, const float *scores, int32_t *experts) {
    const scoring s = scoring_of(r, scores);
    const int32_t first = next_best(scores, r->num_experts, -1);
    int32_t previous = -1;
    experts[0] = first;
    for (int32_t k = 1; k < r->top_k; k++) {
        int32_t best = -1;
        for (int32_t e = 0; e < r->num_experts; e++) {
            if (e == first || (previous >= 0 && !raised_before(&s, previous, e))) continue;
            if (best < 0 || raised_before(&s, e, best)) best = e;
        }
        previous = best;
        int32_t place = k;
        for (; precedes(scores, best, experts[place - 1]); place--) experts[place] = experts[place - 1];
        experts[place] = best;
    }
}

/* Whether an expert is one of the first `count` of a list. */
static bool is_among(const int32_t *experts, int32_t count, int32_t expert) {
    for (int32_t i = 0; i < count; i++) {
        if (experts[i] == expert) return true;
    }
    return false;
}

/* ---- weights --------------------------------------------------------------------------------------------- */

/* Turns the chosen logits into their softmax: among themselves, or among all. */
static void weigh_by_softmax(const em_route *r, const em_kernels *kernels, const float *logits, float *weights) {
    const bool among_chosen = r->renormalise && r->least_sum == 0;
    const float *among = among_chosen ? weights : logits;
    const int32_t count = among_chosen ? r->top_k : r->num_experts;
    const float largest = by_logits(r) ? weights[0] : among[next_best(among, count, -1)];
    /* A NaN is chosen last but spoils a sum over all: then, as in the reference, every weight is NaN. */
    const float sum = sum_of_exponentials(kernels, among, count, largest);
    kernels->exponentials(weights, r->top_k, largest);
    for (int32_t k = 0; k < r->top_k; k++) weights[k] /= sum;
    if (r->least_sum == 0) return;
    float chosen = 0;
    for (int32_t k = 0; k < r->top_k; k++) chosen += weights[k];
    /* A NaN is no larger than anything; it stays, as in the reference. */
    const float divisor = chosen < r->least_sum ? r->least_sum : chosen;
    for (int32_t k = 0; k < r->top_k; k++) weights[k] /= divisor;
}

static void weigh_alone(const em_route *r, const em_kernels *kernels, float *weights) {
    score_alone(r, kernels, weights, r->top_k);
    if (!r->renormalise) return;
    float sum = 0;
    for (int32_t k = 0; k < r->top_k; k++) sum += weights[k];
    for (int32_t k = 0; k < r->top_k; k++) weights[k] /= sum + r->epsilon;
}

/* Turns the chosen logits into their shares, each among the experts that are not chosen before it and whose logits are near
 * the largest of those: the chosen expert, and others that are not far from it. */
static void weigh_by_sparsemixer(const em_route *r, const em_kernels *kernels, const float *logits,
                                 const int32_t *experts, float *weights) {
    const float reach = 2.0f * r->jitter;
    for (int32_t k = 0; k < r->top_k; k++) {
        float largest = -INFINITY, sum = 0, block[EXPONENTIALS_AT_ONCE];
        for (int32_t e = 0; e < r->num_experts; e++) {
            /* A NaN spoils every weight, as in the reference. */
            if (!is_among(experts, k, e) && (logits[e] > largest || isnan(logits[e]))) largest = logits[e];
        }
        int32_t count = 0;
        for (int32_t e = 0; e < r->num_experts; e++) {
            const float size = fabsf(logits[e]);
            const bool far = (largest - logits[e]) / (size > largest ? size : largest) > reach;
            if (is_among(experts, k, e) || (far && e != experts[k])) continue;
            block[count++] = logits[e];
            if (count < EXPONENTIALS_AT_ONCE) continue;
            sum += kernels->exponentials(block, count, largest);
            count = 0;
        }
        if (count) sum += kernels->exponentials(block, count, largest);
        kernels->exponentials(weights + k, 1, largest);
        weights[k] /= sum;
    }
}

static void route_token(const route_task *task, int64_t token) {
    const em_route *r = task->route;
    const em_kernels *kernels = task->run->kernels;
    const float *logits = r->logits + token * r->num_experts, *scores = logits;
    int32_t *experts = r->experts + token * r->top_k;
    float *weights = r->weights + token * r->top_k;
    if (task->scores) {
        float *own = task->scores + token * r->num_experts;
        score_choices(r, kernels, logits, own, task->groups + token * r->groups);
        scores = own;
    }
    if (r->slots) {
        choose_with_bonus(r, scores, experts);
    } else {
        for (int32_t k = 0; k < r->top_k; k++) {
            experts[k] = next_best(scores, r->num_experts, k ? experts[k - 1] : -1);
        }
    }
    for (int32_t k = 0; k < r->top_k; k++) weights[k] = logits[experts[k]];
    if (by_themselves(r)) {
        weigh_alone(r, kernels, weights);
    } else if (r->score == EM_SCORE_SPARSEMIXER) {
        weigh_by_sparsemixer(r, kernels, logits, experts, weights);
    } else {
        weigh_by_softmax(r, kernels, logits, weights);
    }
    for (int32_t k = 0; k < r->top_k; k++) weights[k] *= r->scale;
    for (int32_t k = 0; r->expert_scales && k < r->top_k; k++) weights[k] *= r->expert_scales[experts[k]];
    for (int32_t k = 0; r->passing && k < r->top_k; k++) {
        if (experts[k] >= r->num_experts - r->passing) experts[k] = EM_NO_EXPERT;
    }
}

static void route_tokens(void *context, int64_t begin, int64_t end, int32_t thread) {
    (void)thread;
    for (int64_t token = begin; token < end; token++) route_token(context, token);
}

static void lay_out(em_layout *layout, route_task *task, int32_t tokens) {
    const em_route *r = task->route;
    if (by_logits(r)) return;
    task->scores = em_lay_out(layout, (size_t)tokens * r->num_experts * sizeof(float));
    task->groups = em_lay_out(layout, (size_t)tokens * r->groups * sizeof(float));
}

size_t em_route_scratch_bytes(const em_route *route, int32_t tokens) {
    em_layout layout = {0};
    route_task task = {.route = route};
    lay_out(&layout, &task, tokens);
    return layout.bytes;
}

int32_t em_run_route(const em_route *route, const em_run *run) {
    em_layout layout = {.base = run->scratch};
    route_task task = {.route = route, .run = run};
    lay_out(&layout, &task, run->tokens);
    em_pool_for(run->pool, run->tokens, 8, route_tokens, &task);
    return EM_OK;
}

/* ---- experts that a table names ------------------------------------------------------------------------ */

static void look_up_tokens(void *context, int64_t begin, int64_t end, int32_t thread) {
    const route_task *task = context;
    const em_table_route *r = task->table;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        const float *row = r->table + (int64_t)r->ids[token] * r->top_k;
        int32_t *experts = r->experts + token * r->top_k;
        for (int32_t k = 0; k < r->top_k; k++) experts[k] = (int32_t)row[k];
        if (!r->logits) continue;
        float *weights = r->weights + token * r->top_k, sum = 0;
        for (int32_t k = 0; k < r->top_k; k++) weights[k] = r->logits[token * r->num_experts + experts[k]];
        roots_of_softplus(task->run->kernels, weights, r->top_k);
        for (int32_t k = 0; k < r->top_k; k++) sum += weights[k];
        for (int32_t k = 0; k < r->top_k; k++) weights[k] = weights[k] / (sum + r->epsilon) * r->scale;
    }
}

EM_NO_SCRATCH(table_route)

int32_t em_run_table_route(const em_table_route *route, const em_run *run) {
    for (int32_t t = 0; t < run->tokens; t++) {
        if (route->ids[t] < 0 || route->ids[t] >= route->vocab_size) return EM_BAD_TOKEN_ID;
        for (int32_t k = 0; k < route->top_k; k++) {
            const float expert = route->table[(int64_t)route->ids[t] * route->top_k + k];
            if (!(expert >= 0 && expert < (float)route->num_experts)) return EM_BAD_OPERATION;
        }
    }
    route_task task = {.table = route, .run = run};
    em_pool_for(run->pool, run->tokens, 64, look_up_tokens, &task);
    return EM_OK;
}
