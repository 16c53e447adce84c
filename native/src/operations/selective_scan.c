/* SelectiveScan: the recurrent state of each head, decayed and added to by one token after another.
 *
 * Segments, blocks of rows and panels are those of the delta rule (delta_rule.c): a column of a state depends on its own
 * values and on what all columns share (B, C, decay, step), so threads share out heads, and panels of heads where these are
 * few; a panel takes all rows of a block while it stays in the first-level cache; no sum is ever split. */
#include "recurrent.h"

#include <math.h>

#include "../../kernels/exponential.h"

enum {
    BLOCK_ROWS = 32,
};

typedef struct scan_task {
    const em_selective_scan *operation;
    const em_run *run;
    int32_t parts; /* of the panels of each head */
} scan_task;

/* Panels begin .. end - 1 of a head take `count` rows from `first` on, which follow one another in a sequence. */
static void update_panels(const scan_task *task, int32_t head, int32_t first, int32_t count, int32_t begin, int32_t end) {
    const em_selective_scan *s = task->operation;
    const int32_t panels = em_panel_count(s->value_dim), inputs = s->heads * s->value_dim;
    const int32_t group = head / (s->heads / s->groups), of_groups = s->groups * s->head_dim;
    /* Where a row has its inputs, B and C; without steps C comes first. */
    const int32_t values_at = s->step ? 0 : 2 * of_groups, keys_at = s->step ? inputs : of_groups;
    const int32_t queries_at = s->step ? inputs + of_groups : 0;
    const size_t panel_floats = (size_t)s->head_dim * EM_PANEL_ROWS;
    float *state = s->states + ((size_t)s->sequences[first] * s->heads + head) * panels * panel_floats;
    em_scan_row rows[BLOCK_ROWS];
    for (int32_t r = 0; r < count; r++) {
        const float *mixed = s->mixed + (int64_t)(first + r) * s->columns;
        const int64_t at = (int64_t)(first + r) * s->heads + head;
        const float step = s->step ? em_softplus(s->step[at] + s->step_bias[head]) : 1.0f;
        rows[r] = (em_scan_row){.key = mixed + keys_at + group * s->head_dim,
                                .query = mixed + queries_at + group * s->head_dim,
                                .decay = em_exp(s->rate[head] * step),
                                .step = step,
                                .skip = s->skip ? s->skip[head] : 0.0f};
    }
    for (int32_t panel = begin; panel < end; panel++) {
        const int32_t column = panel * EM_PANEL_ROWS, left = s->value_dim - column;
        /* The last panel may have fewer columns than the kernel takes. */
        float values[BLOCK_ROWS][EM_PANEL_ROWS], outputs[BLOCK_ROWS][EM_PANEL_ROWS];
        for (int32_t r = 0; r < count; r++) {
            const float *from = s->mixed + (int64_t)(first + r) * s->columns + values_at + head * s->value_dim + column;
            float *to = s->output + ((int64_t)(first + r) * s->heads + head) * s->value_dim + column;
            rows[r].values = em_panel_values(from, left, values[r]);
            rows[r].output = left < EM_PANEL_ROWS ? outputs[r] : to;
        }
        float *own = state + (size_t)panel * panel_floats;
        /* Before its first position a sequence has no state, whatever lies there. */
        if (s->positions[first] == 0) memset(own, 0, panel_floats * sizeof *own);
        task->run->kernels->scan(own, rows, count, s->head_dim);
        for (int32_t r = 0; left < EM_PANEL_ROWS && r < count; r++) {
            float *to = s->output + ((int64_t)(first + r) * s->heads + head) * s->value_dim + column;
            memcpy(to, outputs[r], (size_t)left * sizeof *to);
        }
    }
}

static void update_items(void *context, int64_t begin, int64_t end, int32_t thread) {
    const scan_task *task = context;
    const em_selective_scan *s = task->operation;
    const int32_t panels = em_panel_count(s->value_dim), tokens = task->run->tokens;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        const int32_t head = (int32_t)(item / task->parts), part = (int32_t)(item % task->parts);
        const int32_t from = panels * part / task->parts, to = panels * (part + 1) / task->parts;
        for (int32_t first = 0, count; first < tokens; first += count) {
            count = em_segment_rows(s->positions, s->sequences, first, tokens, BLOCK_ROWS);
            update_panels(task, head, first, count, from, to);
        }
    }
}

EM_NO_SCRATCH(selective_scan)

int32_t em_run_selective_scan(const em_selective_scan *scan, const em_run *run) {
    const int32_t status = em_check_rows(scan->positions, scan->sequences, scan->sequence_count, run->tokens);
    if (status != EM_OK) return status;
    const int32_t threads = em_pool_threads(run->pool), panels = em_panel_count(scan->value_dim);
    scan_task task = {scan, run, em_parts_of_panels(panels, scan->heads, threads)};
    const int64_t items = (int64_t)scan->heads * task.parts;
    const int64_t products = 2 * (int64_t)run->tokens * scan->heads * panels * EM_PANEL_ROWS * scan->head_dim / items;
    em_pool_for(run->pool, items, (EM_CHUNK_PRODUCTS + products - 1) / products, update_items, &task);
    return EM_OK;
}
