/* Causal attention: softmax taken online over blocks of keys.
 *
 * A block is a page of the cache: its positions begin at a multiple of 64, and a token's last block ends with itself, so
 * a token's result does not depend on how tokens are cut into runs. Threads share out (token, heads) pairs; heads that
 * read the same keys stay together unless there are too few pairs, so that a block is read from memory once. */
#include "../operations.h"

#include <math.h>
#include <string.h>

#include "../../kernels/exponential.h"

typedef struct attention_task {
    const em_attention *attention;
    const em_run *run;
    int32_t heads_together;
} attention_task;

/* The state of one head's online softmax over the blocks seen so far. */
typedef struct head_state {
    float largest;
    float sum;
} head_state;

/* The cache from row `row` of its (N * G * 64) rows on. */
static em_cached cached_rows(const em_attention *a, em_cache cache, size_t row) {
    static const uint8_t element_bytes[EM_CACHE_FORMATS] = {[EM_F32] = 4, [EM_F16] = 2, [EM_Q8] = 1};
    return (em_cached){
        .elements = (const uint8_t *)cache.elements + row * a->head_dim * element_bytes[cache.format],
        .scales = cache.format == EM_Q8 ? cache.scales + row * em_group_count(a->head_dim) : NULL,
    };
}

static void attend_block(const attention_task *task, head_state *state, const float *query, em_cached keys,
                         em_cached values, int32_t count, float *output) {
    const em_attention *a = task->attention;
    const em_kernels *kernels = task->run->kernels;
    float weights[EM_PAGE_TOKENS];
    kernels->scores[a->key_cache.format](query, keys, count, a->head_dim, a->scale, weights);
    float largest = state->largest;
    for (int32_t i = 0; i < count; i++) largest = weights[i] > largest ? weights[i] : largest;
    const float shrink = state->sum > 0 ? em_exp(state->largest - largest) : 0.0f;
    state->sum = state->sum * shrink + kernels->exponentials(weights, count, largest);
    state->largest = largest;
    kernels->mix[a->value_cache.format](weights, values, count, a->head_dim, shrink, output);
}

/* Attention of heads first .. first + heads_together - 1, all of one group, for one token. */
static void attend(const attention_task *task, int32_t token, int32_t first) {
    const em_attention *a = task->attention;
    const int32_t kv_head = first / (a->heads / a->kv_heads), end = a->positions[token] + 1;
    const int32_t *pages = a->pages + (size_t)a->sequences[token] * a->table_pages;
    const size_t row = ((size_t)token * a->heads + first) * a->head_dim;
    head_state states[EM_ROWS_AT_ONCE];
    for (int32_t h = 0; h < task->heads_together; h++) states[h] = (head_state){-INFINITY, 0.0f};
    memset(a->output + row, 0, (size_t)task->heads_together * a->head_dim * sizeof *a->output);
    for (int32_t start = 0; start < end; start += EM_PAGE_TOKENS) {
        const int32_t count = end - start < EM_PAGE_TOKENS ? end - start : EM_PAGE_TOKENS;
        const size_t first_row = ((size_t)pages[start / EM_PAGE_TOKENS] * a->kv_heads + kv_head) * EM_PAGE_TOKENS;
        const em_cached keys = cached_rows(a, a->key_cache, first_row);
        const em_cached values = cached_rows(a, a->value_cache, first_row);
        for (int32_t h = 0; h < task->heads_together; h++) {
            const size_t at = row + (size_t)h * a->head_dim;
            attend_block(task, &states[h], a->query + at, keys, values, count, a->output + at);
        }
    }
    for (int32_t h = 0; h < task->heads_together; h++) {
        float *output = a->output + row + (size_t)h * a->head_dim;
        for (int32_t i = 0; i < a->head_dim; i++) output[i] /= states[h].sum;
    }
}

static void attend_items(void *context, int64_t begin, int64_t end, int32_t thread) {
    const attention_task *task = context;
    const int64_t per_token = task->attention->heads / task->heads_together;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        attend(task, (int32_t)(item / per_token), (int32_t)(item % per_token) * task->heads_together);
    }
}

/* Checks that each row's sequence and position exist, and the pages of all that it sees. */
static int32_t check(const em_attention *a, int32_t tokens) {
    int32_t checked_sequence = -1, checked_blocks = 0;
    for (int32_t t = 0; t < tokens; t++) {
        const int32_t sequence = a->sequences[t], last = a->positions[t] / EM_PAGE_TOKENS;
        if (sequence < 0 || sequence >= a->sequence_count) return EM_BAD_POSITION;
        if (a->positions[t] < 0 || last >= a->table_pages) return EM_BAD_POSITION;
        if (sequence != checked_sequence) checked_blocks = 0;
        checked_sequence = sequence;
        const int32_t *pages = a->pages + (size_t)sequence * a->table_pages;
        for (; checked_blocks <= last; checked_blocks++) {
            if (pages[checked_blocks] < 0 || pages[checked_blocks] >= a->page_count) return EM_BAD_POSITION;
        }
    }
    return EM_OK;
}

/* The positions that all rows see together. */
static int64_t positions_seen(const em_attention *a, int32_t tokens) {
    int64_t seen = 0;
    for (int32_t t = 0; t < tokens; t++) seen += a->positions[t] + 1;
    return seen;
}

EM_NO_SCRATCH(attention)

int32_t em_run_attention(const em_attention *attention, const em_run *run) {
    if (!em_is_cache_format(attention->key_cache.format) || !em_is_cache_format(attention->value_cache.format)) {
        return EM_BAD_OPERATION;
    }
    const int32_t status = check(attention, run->tokens);
    if (status != EM_OK) return status;
    attention_task task = {attention, run, attention->heads / attention->kv_heads};
    const int64_t wanted = 2 * (int64_t)em_pool_threads(run->pool);
    /* Any divisor of the group is correct; halving is enough to occupy all threads. */
    while (task.heads_together > EM_ROWS_AT_ONCE ||
           (task.heads_together % 2 == 0 && (int64_t)run->tokens * attention->heads / task.heads_together < wanted)) {
        task.heads_together = task.heads_together % 2 == 0 ? task.heads_together / 2 : 1;
    }
    const int64_t items = (int64_t)run->tokens * attention->heads / task.heads_together;
    const int64_t mean_seen = positions_seen(attention, run->tokens) / run->tokens;
    const int64_t reads_per_item = mean_seen * attention->head_dim * task.heads_together;
    const int64_t chunk = reads_per_item < 8192 ? (8192 + reads_per_item - 1) / reads_per_item : 1;
    em_pool_for(run->pool, items, chunk, attend_items, &task);
    return EM_OK;
}
