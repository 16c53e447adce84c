/* Retrieval by keys that are pairs of halves: threads share out the heads of all tokens, each of which scans its halves once
 * and keeps the best so far in order. Few of a thousand scores get past the least of these. */
#include "../operations.h"

#include "../../kernels/exponential.h"

typedef struct candidate {
    uint32_t rank;
    int32_t number;
} candidate;

typedef struct best {
    candidate all[EM_MOST_RETRIEVED];
    int32_t count, most;
} best;

/* A number whose order is that of scores; a NaN has the least. */
static uint32_t rank_of(float score) {
    if (score != score) return 0;
    const uint32_t bits = em_to_bits(score + 0.0f); /* a zero becomes positive */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static int comes_before(candidate a, candidate b) {
    return a.rank > b.rank || (a.rank == b.rank && a.number < b.number);
}

/* Puts a candidate in its place, if it is among the best. */
static void offer(best *b, candidate c) {
    if (b->count == b->most && !comes_before(c, b->all[b->count - 1])) return;
    int32_t place = b->count < b->most ? b->count++ : b->count - 1;
    for (; place > 0 && comes_before(c, b->all[place - 1]); place--) b->all[place] = b->all[place - 1];
    b->all[place] = c;
}

static void best_halves(best *b, const float *scores, int32_t count) {
    for (int32_t i = 0; i < count; i++) offer(b, (candidate){rank_of(scores[i]), i});
}

static void weigh(const em_retrieve_by_keys *r, const em_kernels *kernels, float *weights, int32_t count) {
    if (r->scoring == EM_SCORING_SOFTMAX) {
        const float total = kernels->exponentials(weights, count, weights[0]);
        for (int32_t i = 0; i < count; i++) weights[i] /= total;
        return;
    }
    for (int32_t i = 0; i < count; i++) {
        const float score = weights[i];
        weights[i] = r->scoring == EM_SCORING_RELU ? (score < 0.0f ? 0.0f : score) : 1.0f / (1.0f + em_exp(-score));
    }
}

typedef struct retrieve_task {
    const em_retrieve_by_keys *operation;
    const em_kernels *kernels;
} retrieve_task;

static void retrieve(void *context, int64_t begin, int64_t end, int32_t thread) {
    const retrieve_task *task = context;
    const em_retrieve_by_keys *r = task->operation;
    (void)thread;
    for (int64_t head = begin; head < end; head++) { /* of all tokens */
        const size_t start = (size_t)head * (size_t)r->keys;
        const float *const scores[] = {r->first + start, r->second + start};
        best halves[2], pairs = {.most = r->retrieved};
        for (int half = 0; half < 2; half++) {
            halves[half].count = 0, halves[half].most = r->retrieved;
            best_halves(&halves[half], scores[half], r->keys);
        }
        for (int32_t i = 0; i < r->retrieved; i++) {
            const int32_t first = halves[0].all[i].number;
            for (int32_t j = 0; j < r->retrieved; j++) {
                const int32_t second = halves[1].all[j].number;
                offer(&pairs, (candidate){rank_of(scores[0][first] + scores[1][second]), first * r->keys + second});
            }
        }
        int32_t *experts = r->experts + (size_t)head * (size_t)r->retrieved;
        float *weights = r->weights + (size_t)head * (size_t)r->retrieved;
        for (int32_t i = 0; i < r->retrieved; i++) {
            const int32_t number = pairs.all[i].number;
            experts[i] = number;
            weights[i] = scores[0][number / r->keys] + scores[1][number % r->keys];
        }
        weigh(r, task->kernels, weights, r->retrieved);
    }
}

EM_NO_SCRATCH(retrieve_by_keys)

int32_t em_run_retrieve_by_keys(const em_retrieve_by_keys *r, const em_run *run) {
    if (r->retrieved > EM_MOST_RETRIEVED || r->retrieved > r->keys) return EM_BAD_OPERATION;
    retrieve_task task = {r, run->kernels};
    em_pool_for(run->pool, (int64_t)run->tokens * r->heads, 1, retrieve, &task);
    return EM_OK;
}
