/* DeltaRule: the recurrent state of each head, decayed and corrected by one token after another.
 *
 * Rows that follow one another at neighbouring positions of one sequence are a segment. Segments are run in the order of
 * their rows. A column of a state depends on its own values and on what all columns share (query, key, decay, strength), so
 * threads share out key heads with the heads that use them, and, where these are few, the panels of columns of these; no
 * sum is ever split.
 *
 * A segment is cut into blocks of rows, for which queries and keys are brought to their lengths once and lie together. Each
 * panel of a state then takes all rows of the block: it stays in the first-level cache meanwhile, and is read and written
 * once for all of them. */
#include "recurrent.h"

#include <math.h>

#include "../../kernels/exponential.h"

enum {
    /* Three arrays of 32 KiB on the stack at most. */
    BLOCK_ROWS = 32,
};

typedef struct delta_task {
    const em_delta_rule *operation;
    const em_run *run;
    int32_t parts; /* of the panels of each head */
} delta_task;

/* What all panels of a head need of the rows of a block. */
typedef struct block {
    int32_t first, count;
    float queries[BLOCK_ROWS][EM_WIDEST_KEYS], keys[BLOCK_ROWS][EM_WIDEST_KEYS];
} block;

/* Rows of the block: to unit length, queries then divided by the root of their width. */
static void normalise(const delta_task *task, int32_t key_head, block *rows) {
    const em_delta_rule *d = task->operation;
    const int32_t width = d->head_dim;
    const float query_length = 1.0f / sqrtf((float)width);
    for (int32_t r = 0; r < rows->count; r++) {
        const int64_t row = rows->first + r, all = (int64_t)d->key_heads * width;
        const float *query = d->mixed + row * d->columns + (int64_t)key_head * width;
        const float *key = d->keys ? d->keys + row * all + (int64_t)key_head * width : query + all;
        const float of_query = 1.0f / sqrtf(task->run->kernels->sum_squares(query, width) + d->epsilon) * query_length;
        const float of_key = 1.0f / sqrtf(task->run->kernels->sum_squares(key, width) + d->epsilon);
        for (int32_t i = 0; i < width; i++) rows->queries[r][i] = query[i] * of_query;
        for (int32_t i = 0; i < width; i++) rows->keys[r][i] = key[i] * of_key;
    }
}

/* The decay that follows from a number, once its bias is added. */
static float decay_of(const em_delta_rule *d, int32_t head, float number) {
    if (d->lower_bound == 0) return em_exp(d->rate[head] * em_softplus(number));
    return em_exp(d->lower_bound * (1.0f / (1.0f + em_exp(d->rate[head] * number))));
}

/* Panels begin .. end - 1 of a head take the rows of a block. */
static void update_panels(const delta_task *task, const block *rows, int32_t head, int32_t begin, int32_t end) {
    const em_delta_rule *d = task->operation;
    const int32_t panels = em_panel_count(d->value_dim);
    const int32_t values_at = 2 * d->key_heads * d->head_dim, by_row = d->decays > d->heads;
    const float *values_of = d->values ? d->values : d->mixed + values_at;
    const int64_t columns = d->values ? (int64_t)d->heads * d->value_dim : d->columns;
    float decays[BLOCK_ROWS][EM_WIDEST_KEYS];
    float *state = d->states + ((size_t)d->sequences[rows->first] * d->heads + head) * panels * d->head_dim * EM_PANEL_ROWS;
    em_delta_row of_panel[BLOCK_ROWS];
    for (int32_t r = 0; r < rows->count; r++) {
        const int64_t at = (int64_t)(rows->first + r) * d->heads + head;
        of_panel[r] = (em_delta_row){.query = rows->queries[r],
                                     .key = rows->keys[r],
                                     .strength = 1.0f / (1.0f + em_exp(-d->strength[at]))};
        if (!by_row) {
            of_panel[r].decay = decay_of(d, head, d->decay_input[at] + d->decay_bias[head]);
            continue;
        }
        const float *inputs = d->decay_input + at * d->head_dim, *biases = d->decay_bias + (int64_t)head * d->head_dim;
        for (int32_t i = 0; i < d->head_dim; i++) decays[r][i] = decay_of(d, head, inputs[i] + biases[i]);
        of_panel[r].decays = decays[r];
    }
    for (int32_t panel = begin; panel < end; panel++) {
        const int32_t column = panel * EM_PANEL_ROWS, left = d->value_dim - column;
        /* The last panel may have fewer columns than the kernel takes. */
        float values[BLOCK_ROWS][EM_PANEL_ROWS], outputs[BLOCK_ROWS][EM_PANEL_ROWS];
        for (int32_t r = 0; r < rows->count; r++) {
            const int64_t row = rows->first + r;
            const float *from = values_of + row * columns + head * d->value_dim + column;
            float *to = d->output + (row * d->heads + head) * d->value_dim + column;
            of_panel[r].values = em_panel_values(from, left, values[r]);
            of_panel[r].output = left < EM_PANEL_ROWS ? outputs[r] : to;
        }
        float *own = state + (size_t)panel * d->head_dim * EM_PANEL_ROWS;
        /* Before its first position a sequence has no state, whatever lies there. */
        if (d->positions[rows->first] == 0) memset(own, 0, (size_t)d->head_dim * EM_PANEL_ROWS * sizeof *own);
        task->run->kernels->delta(own, of_panel, rows->count, d->head_dim);
        for (int32_t r = 0; left < EM_PANEL_ROWS && r < rows->count; r++) {
            float *to = d->output + ((int64_t)(rows->first + r) * d->heads + head) * d->value_dim + column;
            memcpy(to, outputs[r], (size_t)left * sizeof *to);
        }
    }
}

static void update_items(void *context, int64_t begin, int64_t end, int32_t thread) {
    const delta_task *task = context;
    const em_delta_rule *d = task->operation;
    const int32_t together = d->heads / d->key_heads, panels = em_panel_count(d->value_dim);
    block rows;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        const int32_t key_head = (int32_t)(item / task->parts), part = (int32_t)(item % task->parts);
        const int32_t from = panels * part / task->parts, to = panels * (part + 1) / task->parts;
        for (int32_t first = 0; first < task->run->tokens; first += rows.count) {
            rows.first = first;
            rows.count = em_segment_rows(d->positions, d->sequences, first, task->run->tokens, BLOCK_ROWS);
            normalise(task, key_head, &rows);
            for (int32_t h = 0; h < together; h++) {
                const int32_t head = d->in_turn ? h * d->key_heads + key_head : key_head * together + h;
                update_panels(task, &rows, head, from, to);
            }
        }
    }
}

EM_NO_SCRATCH(delta_rule)

int32_t em_run_delta_rule(const em_delta_rule *delta, const em_run *run) {
    if (delta->head_dim > EM_WIDEST_KEYS) return EM_BAD_OPERATION;
    const int32_t status = em_check_rows(delta->positions, delta->sequences, delta->sequence_count, run->tokens);
    if (status != EM_OK) return status;
    const int32_t threads = em_pool_threads(run->pool), panels = em_panel_count(delta->value_dim);
    delta_task task = {delta, run, em_parts_of_panels(panels, delta->key_heads, threads)};
    const int64_t items = (int64_t)delta->key_heads * task.parts;
    const int64_t products = 4 * (int64_t)run->tokens * delta->heads * panels * EM_PANEL_ROWS * delta->head_dim / items;
    em_pool_for(run->pool, items, (EM_CHUNK_PRODUCTS + products - 1) / products, update_items, &task);
    return EM_OK;
}
