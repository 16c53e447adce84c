/* The sum of neurons that each token retrieved (Neurons).
 *
 * Threads first share out neurons, whose answers they compute, and then columns of the output, to which they add the neurons'
 * output weights in order. So no sum is split, and none depends on where a neuron's page lies. */
#include <string.h>

#include "../operations.h"
#include "../row_pager.h"

enum {
    COLUMNS_AT_ONCE = 256,
    ANSWERS_AT_ONCE = 16,
    /* A chunk of fewer products than this costs more to hand out than to do. */
    CHUNK_PRODUCTS = 8192,
};

typedef struct neurons_task {
    const em_neurons *operation;
    const em_run *run;
    float *answers; /* (tokens, top_k) */
    int32_t first;  /* token */
    int32_t spans;  /* of COLUMNS_AT_ONCE columns in a row */
} neurons_task;

static size_t element_bytes(const em_neurons *n) { return n->layout.element == EM_ELEMENT_F32 ? 4 : 2; }

static int32_t cache_format(const em_neurons *n) { return n->layout.element == EM_ELEMENT_F32 ? EM_F32 : EM_F16; }

/* The input weights of a neuron, which its output weights follow. */
static const uint8_t *neuron_at(const em_neurons *n, int32_t expert) {
    const int64_t number = n->first + expert, per_page = n->layout.neurons_per_page;
    const size_t slot = (size_t)n->slots[number / per_page];
    return n->arena + slot * (size_t)n->slot_bytes + (size_t)(number % per_page * n->layout.neuron_bytes);
}

static void answer(void *context, int64_t begin, int64_t end, int32_t thread) {
    static const float ones[ANSWERS_AT_ONCE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const neurons_task *task = context;
    const em_neurons *n = task->operation;
    const em_kernels *kernels = task->run->kernels;
    const size_t before = (size_t)task->first * (size_t)n->top_k;
    (void)thread;
    for (int64_t at = begin; at < end; at += ANSWERS_AT_ONCE) {
        const int32_t count = (int32_t)(end - at < ANSWERS_AT_ONCE ? end - at : ANSWERS_AT_ONCE);
        float *answers = task->answers + at;
        for (int32_t i = 0; i < count; i++) {
            const size_t choice = before + (size_t)at + (size_t)i;
            const em_attending row = {.query = n->input + choice / (size_t)n->top_k * (size_t)n->hidden_size,
                                      .weights = answers + i};
            const em_cached weights = {.elements = neuron_at(n, n->experts[choice]), .row_width = n->hidden_size};
            kernels->scores[cache_format(n)](&row, 1, weights, 1, n->hidden_size, 1.0f);
        }
        kernels->activate[n->activation.function](&n->activation, answers, ones, answers, count);
        for (int32_t i = 0; i < count; i++) answers[i] = answers[i] * n->weights[before + (size_t)at + (size_t)i] * n->scale;
    }
}

static void add_columns(void *context, int64_t begin, int64_t end, int32_t thread) {
    const neurons_task *task = context;
    const em_neurons *n = task->operation;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        const int32_t own = (int32_t)(item / task->spans), column = (int32_t)(item % task->spans) * COLUMNS_AT_ONCE;
        const int32_t left = n->hidden_size - column, width = left < COLUMNS_AT_ONCE ? left : COLUMNS_AT_ONCE;
        const size_t token = (size_t)task->first + (size_t)own;
        float sums[COLUMNS_AT_ONCE];
        memset(sums, 0, sizeof sums);
        for (int32_t k = 0; k < n->top_k; k++) {
            const em_attending row = {.output = sums, .weights = task->answers + (size_t)own * n->top_k + k, .factor = 1};
            const size_t start = ((size_t)n->hidden_size + (size_t)column) * element_bytes(n);
            const em_cached weights = {.elements = neuron_at(n, n->experts[token * (size_t)n->top_k + (size_t)k]) + start,
                                       .row_width = width};
            task->run->kernels->mix[cache_format(n)](&row, 1, weights, 1, width);
        }
        float *output = n->output + token * (size_t)n->hidden_size + column;
        for (int32_t i = 0; i < width; i++) output[i] = n->accumulate ? output[i] + sums[i] : sums[i];
    }
}

size_t em_neurons_scratch_bytes(const em_neurons *n, int32_t tokens) {
    return (size_t)tokens * (size_t)n->top_k * sizeof(float);
}

/* Whether each expert has a neuron, and each neuron's page a slot or somebody to ask for it. */
static int32_t check_neurons(const em_neurons *n, int64_t choices) {
    for (int64_t i = 0; i < choices; i++) {
        if (n->experts[i] < 0 || n->experts[i] >= n->count) return EM_BAD_EXPERT;
        const int32_t slot = n->slots[(n->first + n->experts[i]) / n->layout.neurons_per_page];
        if (slot >= n->slot_count || (slot < 0 && !n->paged.pager)) return EM_BAD_EXPERT;
    }
    return EM_OK;
}

int32_t em_run_neurons(const em_neurons *n, const em_run *run) {
    em_row_pager *pager = n->paged.pager;
    int32_t status = check_neurons(n, (int64_t)run->tokens * n->top_k), at_once = run->tokens;
    if (pager && status == EM_OK) {
        const int32_t fit = n->slot_count / n->top_k;
        if (fit < 1) return EM_FULL;
        at_once = fit < at_once ? fit : at_once;
    }
    neurons_task task = {.operation = n, .run = run, .answers = (float *)(void *)run->scratch};
    task.spans = (n->hidden_size + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE;
    while (status == EM_OK && task.first < run->tokens) {
        const int32_t left = run->tokens - task.first, count = left < at_once ? left : at_once;
        const int64_t choices = (int64_t)count * n->top_k;
        if (pager) {
            const uint64_t waited_ns = em_row_pager_waited_ns(pager);
            status = em_row_pager_fetch(pager, n->experts + (size_t)task.first * (size_t)n->top_k, choices, n->first);
            if (run->disk_ns) *run->disk_ns += em_row_pager_waited_ns(pager) - waited_ns;
            if (status != EM_OK) return status;
        }
        em_pool_for(run->pool, choices, CHUNK_PRODUCTS / n->hidden_size + 1, answer, &task);
        const int64_t chunk = CHUNK_PRODUCTS / ((int64_t)COLUMNS_AT_ONCE * n->top_k) + 1;
        em_pool_for(run->pool, (int64_t)count * task.spans, chunk, add_columns, &task);
        task.first += count;
    }
    return status;
}
