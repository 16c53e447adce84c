/* The router's choice, in the steps of native/src/operations/route.c: an item is a token. */
#define SCORE_SOFTMAX 0
#define SCORE_SIGMOID 1
#define SCORE_SPARSEMIXER 2
#define SCORE_SQRT_SOFTPLUS 3
#define EXPONENTIALS_AT_ONCE 64

INLINE i32 is_nan(float x) { return (bits_of(x) & 0x7fffffff) > 0x7f800000; }

/* A NaN comes after every number. */
INLINE i32 comes_before(float a, float b) { return a > b || (is_nan(b) && !is_nan(a)); }

/* Whether element `a` comes before element `b`: the larger first, on a tie the lower index. */
INLINE i32 precedes(GLOBAL const float *values, i32 a, i32 b) {
    return comes_before(values[a], values[b]) || (!comes_before(values[b], values[a]) && a < b);
}

/* The best element that comes after `previous` (-1: the best of all). */
INLINE i32 next_best(GLOBAL const float *values, i32 count, i32 previous) {
    i32 best = -1;
    for (i32 e = 0; e < count; e++) {
        if (previous >= 0 && !precedes(values, previous, e)) continue;
        if (best < 0 || comes_before(values[e], values[best])) best = e;
    }
    return best;
}

INLINE float sum_of_exponentials(GLOBAL const float *values, i32 count, float largest) {
    float sum = 0.0f;
    for (i32 start = 0; start < count; start += EXPONENTIALS_AT_ONCE) {
        const i32 here = count - start < EXPONENTIALS_AT_ONCE ? count - start : EXPONENTIALS_AT_ONCE;
        float lanes[LANES] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 i = 0; i < here; i++) lanes[i % LANES] += exponential(values[start + i] - largest);
        sum = sum + fold_own_lanes(lanes);
    }
    return sum;
}

/* The score that depends on a logit alone. */
INLINE float score_alone(float logit, i32 score) { return score == SCORE_SIGMOID ? sigmoid(logit) : root(softplus(logit)); }

/* Sets the scores of all groups to -infinity but those of the largest sums of their largest scores, one or two. */
INLINE void drop_groups(GLOBAL float *scores, GLOBAL float *sums, i32 groups, i32 size, i32 kept_groups, i32 group_best) {
    for (i32 group = 0; group < groups; group++) {
        GLOBAL const float *own = scores + group * size;
        const i32 first = next_best(own, size, -1);
        sums[group] = group_best == 1 ? own[first] : own[first] + own[next_best(own, size, first)];
    }
    i32 last = -1;
    for (i32 kept = 0; kept < kept_groups; kept++) last = next_best(sums, groups, last);
    for (i32 group = 0; group < groups; group++) {
        if (!precedes(sums, last, group)) continue;
        for (i32 i = 0; i < size; i++) scores[group * size + i] = MINUS_INFINITY;
    }
}

INLINE void weigh_by_softmax(GLOBAL const float *logits, GLOBAL float *weights, i32 count, i32 top_k, i32 among_chosen,
                             float least_sum) {
    GLOBAL const float *among = among_chosen ? weights : logits;
    const i32 of = among_chosen ? top_k : count;
    const float largest = among[next_best(among, of, -1)], sum = sum_of_exponentials(among, of, largest);
    for (i32 k = 0; k < top_k; k++) weights[k] = exponential(weights[k] - largest) / sum;
    if (least_sum == 0.0f) return;
    float chosen = 0.0f;
    for (i32 k = 0; k < top_k; k++) chosen = chosen + weights[k];
    const float divisor = chosen < least_sum ? least_sum : chosen;
    for (i32 k = 0; k < top_k; k++) weights[k] = weights[k] / divisor;
}

INLINE i32 is_among(GLOBAL const i32 *experts, i32 count, i32 expert) {
    for (i32 i = 0; i < count; i++) {
        if (experts[i] == expert) return 1;
    }
    return 0;
}

INLINE void weigh_by_sparsemixer(GLOBAL const float *logits, GLOBAL const i32 *experts, GLOBAL float *weights, i32 count,
                                 i32 top_k, float reach) {
    for (i32 k = 0; k < top_k; k++) {
        float largest = MINUS_INFINITY, sum = 0.0f;
        float lanes[LANES] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 e = 0; e < count; e++) {
            if (!is_among(experts, k, e) && (logits[e] > largest || is_nan(logits[e]))) largest = logits[e];
        }
        i32 taken = 0;
        for (i32 e = 0; e < count; e++) {
            const float size = magnitude(logits[e]);
            const i32 far = (largest - logits[e]) / (size > largest ? size : largest) > reach;
            if (is_among(experts, k, e) || (far && e != experts[k])) continue;
            lanes[taken % LANES] += exponential(logits[e] - largest);
            taken++;
            if (taken < EXPONENTIALS_AT_ONCE) continue;
            sum = sum + fold_own_lanes(lanes);
            for (i32 l = 0; l < LANES; l++) lanes[l] = 0.0f;
            taken = 0;
        }
        if (taken) sum = sum + fold_own_lanes(lanes);
        weights[k] = exponential(weights[k] - largest) / sum;
    }
}

INLINE void route(GLOBAL const float *logits, GLOBAL const float *choice_bias, GLOBAL const float *expert_scales,
                  GLOBAL i32 *experts, GLOBAL float *weights, GLOBAL float *scores, GLOBAL float *sums, i32 count, i32 top_k,
                  i32 groups, i32 kept_groups, i32 group_best, i32 score, i32 by_logit, i32 renormalise, i32 has_bias,
                  i32 has_scales, i32 passing, float epsilon, float scale, float least_sum, float reach, i32 item) {
    const i32 alone = score == SCORE_SIGMOID || score == SCORE_SQRT_SOFTPLUS;
    logits += (u64)item * (u64)count;
    scores += (u64)item * (u64)count;
    experts += (u64)item * (u64)top_k;
    weights += (u64)item * (u64)top_k;
    if (!by_logit && !alone && (has_bias || groups > 1)) {
        const float largest = logits[next_best(logits, count, -1)], sum = sum_of_exponentials(logits, count, largest);
        for (i32 e = 0; e < count; e++) scores[e] = exponential(logits[e] - largest) / sum;
    } else {
        for (i32 e = 0; e < count; e++) scores[e] = !by_logit && alone ? score_alone(logits[e], score) : logits[e];
    }
    for (i32 e = 0; has_bias && e < count; e++) scores[e] = scores[e] + choice_bias[e];
    if (groups > 1) drop_groups(scores, sums + (u64)item * (u64)groups, groups, count / groups, kept_groups, group_best);
    for (i32 k = 0; k < top_k; k++) {
        experts[k] = next_best(scores, count, k ? experts[k - 1] : -1);
        weights[k] = logits[experts[k]];
    }
    if (alone) {
        float sum = 0.0f;
        for (i32 k = 0; k < top_k; k++) {
            weights[k] = score_alone(weights[k], score);
            sum = sum + weights[k];
        }
        for (i32 k = 0; renormalise && k < top_k; k++) weights[k] = weights[k] / (sum + epsilon);
    } else if (score == SCORE_SPARSEMIXER) {
        weigh_by_sparsemixer(logits, experts, weights, count, top_k, reach);
    } else {
        weigh_by_softmax(logits, weights, count, top_k, renormalise && least_sum == 0.0f, least_sum);
    }
    for (i32 k = 0; k < top_k; k++) {
        weights[k] = weights[k] * scale;
        if (has_scales) weights[k] = weights[k] * expert_scales[experts[k]];
        if (experts[k] >= count - passing) experts[k] = -1;
    }
}

/* The experts that a table has for a token's id. */
INLINE void table_route(GLOBAL const i32 *ids, GLOBAL const float *table, GLOBAL const float *logits, GLOBAL i32 *experts,
                        GLOBAL float *weights, i32 count, i32 top_k, i32 has_logits, float epsilon, float scale, i32 item) {
    table += (u64)ids[item] * (u64)top_k;
    experts += (u64)item * (u64)top_k;
    weights += (u64)item * (u64)top_k;
    float sum = 0.0f;
    for (i32 k = 0; k < top_k; k++) {
        experts[k] = (i32)table[k];
        if (!has_logits) continue;
        weights[k] = score_alone(logits[(u64)item * (u64)count + (u64)experts[k]], SCORE_SQRT_SOFTPLUS);
        sum = sum + weights[k];
    }
    for (i32 k = 0; has_logits && k < top_k; k++) weights[k] = weights[k] / (sum + epsilon) * scale;
}
