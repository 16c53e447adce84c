/* Matrices that share an input: the input is quantised once, then threads share out the panels of all parts. */
#include "../operations.h"

enum {
    /* A chunk of less work than this costs more to hand out than to do. */
    CHUNK_BYTES = 32 * 1024,
};

typedef struct linear_task {
    const em_linear *linear;
    const em_run *run;
    em_activations input;
} linear_task;

static int any_quantised(const em_linear *linear) {
    for (int32_t i = 0; i < linear->part_count; i++) {
        if (em_is_quantised(linear->parts[i].matrix.format)) return 1;
    }
    return 0;
}

size_t em_linear_scratch_bytes(const em_linear *linear, int32_t tokens) {
    em_layout layout = {0};
    if (any_quantised(linear)) em_lay_out_quantised(&layout, tokens, linear->parts[0].matrix.columns);
    return layout.bytes;
}

/* What becomes of the products of `count` tokens, from `first` on, with one panel. */
static void finish(const linear_task *task, const em_linear_part *part, int32_t panel, int32_t first, int32_t count,
                   float (*products)[EM_PANEL_ROWS]) {
    const int32_t rows = part->matrix.rows, row = panel * EM_PANEL_ROWS;
    const int32_t height = rows - row < EM_PANEL_ROWS ? rows - row : EM_PANEL_ROWS;
    const float scale = task->linear->scale;
    for (int32_t t = 0; t < count; t++) {
        float *output = part->output + (size_t)(first + t) * rows + row;
        for (int32_t i = 0; i < height; i++) {
            const float with_bias = part->bias ? products[t][i] + part->bias[row + i] : products[t][i];
            output[i] = task->linear->accumulate ? output[i] + with_bias * scale : with_bias * scale;
        }
    }
}

static void multiply_panel(const linear_task *task, const em_linear_part *part, int32_t panel) {
    const em_matrix *matrix = &part->matrix;
    const uint8_t *data = matrix->data + (size_t)panel * em_panel_bytes(matrix->format, matrix->columns);
    for (int32_t first = 0; first < task->run->tokens; first += EM_ROWS_AT_ONCE) {
        const int32_t left = task->run->tokens - first;
        const int32_t count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
        float products[EM_ROWS_AT_ONCE][EM_PANEL_ROWS];
        int32_t rows[EM_ROWS_AT_ONCE];
        for (int32_t i = 0; i < count; i++) rows[i] = first + i;
        task->run->kernels->panel[matrix->format](data, &task->input, rows, count, products);
        finish(task, part, panel, first, count, products);
    }
}

static void multiply(void *context, int64_t begin, int64_t end, int32_t thread) {
    const linear_task *task = context;
    (void)thread;
    int64_t before = 0; /* panels of the parts before this one */
    for (int32_t i = 0; i < task->linear->part_count; i++) {
        const em_linear_part *part = &task->linear->parts[i];
        const int64_t panels = em_panel_count(part->matrix.rows);
        for (int64_t item = begin > before ? begin : before; item < end && item < before + panels; item++) {
            multiply_panel(task, part, (int32_t)(item - before));
        }
        before += panels;
    }
}

int32_t em_run_linear(const em_linear *linear, const em_run *run) {
    const int32_t columns = linear->parts[0].matrix.columns;
    linear_task task = {linear, run, {.floats = linear->input, .columns = columns}};
    task.input.group_count = em_group_count(columns);
    if (any_quantised(linear)) {
        em_layout layout = {.base = run->scratch};
        const em_quantised quantised = em_lay_out_quantised(&layout, run->tokens, columns);
        em_quantise_rows(run, linear->input, run->tokens, columns, NULL, quantised);
        task.input.values = quantised.values;
        task.input.groups = quantised.groups;
    }
    int64_t panels = 0, bytes = 0;
    for (int32_t i = 0; i < linear->part_count; i++) {
        const em_matrix *matrix = &linear->parts[i].matrix;
        panels += em_panel_count(matrix->rows);
        bytes += em_panel_count(matrix->rows) * (int64_t)em_panel_bytes(matrix->format, columns);
    }
    const int64_t work_bytes_per_panel = bytes / panels * run->tokens + 1;
    em_pool_for(run->pool, panels, (CHUNK_BYTES + work_bytes_per_panel - 1) / work_bytes_per_panel, multiply, &task);
    return EM_OK;
}
