/* A matrix for each head: the input is quantised once, then threads share out the panels of all heads.
 *
 * The matrices lie one after the other as one. Where a head's rows do not begin with a panel, the panel that it shares
 * with its neighbour is multiplied with the inputs of both, and each takes its own rows of the product. */
#include "../operations.h"

#include <string.h>

enum {
    /* A chunk of less work than this costs more to hand out than to do. */
    CHUNK_BYTES = 32 * 1024,
};

typedef struct head_task {
    const em_head_linear *heads;
    const em_run *run;
    em_activations input; /* a row for each token and head */
    int64_t panels_each;  /* of a head, at most */
} head_task;

size_t em_head_linear_scratch_bytes(const em_head_linear *heads, int32_t tokens) {
    em_layout layout = {0};
    if (em_is_quantised(heads->matrix.format)) {
        em_lay_out_quantised(&layout, tokens * heads->heads, heads->matrix.columns);
    }
    return layout.bytes;
}

/* Copies a head's rows out of the products of `count` tokens, from `first` on, with panels from `panel` on. */
static void finish(const em_head_linear *h, int32_t head, int32_t panel, int32_t panels, int32_t first, int32_t count,
                   const float *products) {
    const int32_t start = panel * EM_PANEL_ROWS, own = head * h->rows;
    const int32_t from = own > start ? own : start, panels_end = start + panels * EM_PANEL_ROWS;
    const int32_t to = own + h->rows < panels_end ? own + h->rows : panels_end;
    for (int32_t t = 0; t < count; t++, products += em_products_stride(panels)) {
        float *output = h->output + ((size_t)(first + t) * h->heads + head) * h->head_dim;
        memcpy(output + (from - own), products + (from - start), (size_t)(to - from) * sizeof *output);
    }
}

/* Multiplies panels of the whole matrix, `begin` to `end`, with the inputs of one head. */
static void multiply_panels(const head_task *task, int32_t head, int32_t begin, int32_t end) {
    const em_head_linear *h = task->heads;
    const em_matrix *matrix = &h->matrix;
    const int32_t tokens = task->run->tokens, rows_at_once = tokens < EM_ROWS_AT_ONCE ? tokens : EM_ROWS_AT_ONCE;
    const int32_t panels_at_once = em_panels_at_once(rows_at_once);
    for (int32_t panel = begin; panel < end; panel += panels_at_once) {
        const int32_t panels = end - panel < panels_at_once ? end - panel : panels_at_once;
        for (int32_t first = 0; first < tokens; first += EM_ROWS_AT_ONCE) {
            const int32_t left = tokens - first, count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
            float products[EM_PRODUCTS_AT_ONCE];
            int32_t rows[EM_ROWS_AT_ONCE];
            for (int32_t i = 0; i < count; i++) rows[i] = (first + i) * h->heads + head;
            task->run->kernels->panels[matrix->format](matrix, panel, panels, &task->input, rows, count, products,
                                                       em_products_stride(panels));
            finish(h, head, panel, panels, first, count, products);
        }
    }
}

/* The channels that pass as they are, behind the product. */
static void pass(const em_head_linear *h, int32_t head, int32_t tokens) {
    for (int32_t t = 0; t < tokens; t++) {
        const size_t at = (size_t)t * h->heads + head;
        memcpy(h->output + at * h->head_dim + h->rows, h->passed + at * h->rotated,
               (size_t)h->rotated * sizeof *h->output);
    }
}

static void multiply(void *context, int64_t begin, int64_t end, int32_t thread) {
    const head_task *task = context;
    const em_head_linear *h = task->heads;
    (void)thread;
    for (int64_t item = begin; item < end;) {
        const int32_t head = (int32_t)(item / task->panels_each);
        const int64_t next = (head + 1) * task->panels_each, stop = end < next ? end : next;
        const int32_t first = head * h->rows / EM_PANEL_ROWS, last = em_panel_count((head + 1) * h->rows);
        const int32_t from = first + (int32_t)(item - head * task->panels_each);
        const int32_t to = first + (int32_t)(stop - head * task->panels_each);
        if (h->passed && from == first) pass(h, head, task->run->tokens);
        multiply_panels(task, head, from, to < last ? to : last);
        item = stop;
    }
}

int32_t em_run_head_linear(const em_head_linear *heads, const em_run *run) {
    const em_matrix *matrix = &heads->matrix;
    head_task task = {heads, run, {.floats = heads->input, .columns = matrix->columns}, 0};
    task.input.group_count = em_group_count(matrix->columns);
    if (em_is_quantised(matrix->format)) {
        em_layout layout = {.base = run->scratch};
        const int32_t rows = run->tokens * heads->heads;
        const em_quantised quantised = em_lay_out_quantised(&layout, rows, matrix->columns);
        em_quantise_rows(run, heads->input, rows, matrix->columns, NULL, quantised);
        task.input.values = quantised.values;
        task.input.groups = quantised.groups;
    }
    task.panels_each = em_panel_count(heads->rows) + (heads->rows % EM_PANEL_ROWS != 0);
    const int64_t bytes = (int64_t)em_panel_bytes(matrix->format, matrix->columns) * run->tokens + 1;
    em_pool_for(run->pool, heads->heads * task.panels_each, (CHUNK_BYTES + bytes - 1) / bytes, multiply, &task);
    return EM_OK;
}
