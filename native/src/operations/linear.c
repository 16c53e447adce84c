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
    for (int32_t i = 0; i < linear->parts_count; i++) {
        if (em_is_quantised(linear->parts[i].matrix.format)) return 1;
    }
    return 0;
}

size_t em_linear_scratch_bytes(const em_linear *linear, int32_t tokens) {
    em_layout layout = {0};
    if (any_quantised(linear)) em_lay_out_quantised(&layout, tokens, linear->parts[0].matrix.columns);
    return layout.bytes;
}

/* Writes the outputs from the products of `count` tokens, from `first` on, with `panels` panels: bias, scale, sum. */
static void finish(const linear_task *task, const em_linear_part *part, int32_t panel, int32_t panels, int32_t first,
                   int32_t count, const float *products) {
    const int32_t rows = part->matrix.rows, row = panel * EM_PANEL_ROWS;
    const int32_t width = panels * EM_PANEL_ROWS, height = rows - row < width ? rows - row : width;
    const float scale = task->linear->scale;
    for (int32_t t = 0; t < count; t++, products += em_products_stride(panels)) {
        float *output = part->output + (size_t)(first + t) * rows + row;
        for (int32_t i = 0; i < height; i++) {
            const float with_bias = part->bias ? products[i] + part->bias[row + i] : products[i];
            output[i] = task->linear->accumulate ? output[i] + with_bias * scale : with_bias * scale;
        }
    }
}

/* Multiplies panels `begin` to `end` of one part, as many at a time as the buffer of products holds. */
static void multiply_panels(const linear_task *task, const em_linear_part *part, int32_t begin, int32_t end) {
    const em_matrix *matrix = &part->matrix;
    const int32_t rows_at_once = task->run->tokens < EM_ROWS_AT_ONCE ? task->run->tokens : EM_ROWS_AT_ONCE;
    const int32_t panels_at_once = em_panels_at_once(rows_at_once);
    for (int32_t panel = begin; panel < end; panel += panels_at_once) {
        const int32_t panels = end - panel < panels_at_once ? end - panel : panels_at_once;
        for (int32_t first = 0; first < task->run->tokens; first += EM_ROWS_AT_ONCE) {
            const int32_t left = task->run->tokens - first;
            const int32_t count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
            float products[EM_PRODUCTS_AT_ONCE];
            int32_t rows[EM_ROWS_AT_ONCE];
            for (int32_t i = 0; i < count; i++) rows[i] = first + i;
            task->run->kernels->panels[matrix->format](matrix, panel, panels, &task->input, rows, count, products,
                                                       em_products_stride(panels));
            finish(task, part, panel, panels, first, count, products);
        }
    }
}

static void multiply(void *context, int64_t begin, int64_t end, int32_t thread) {
    const linear_task *task = context;
    (void)thread;
    int64_t before = 0; /* number of panels in the parts before this one */
    for (int32_t i = 0; i < task->linear->parts_count; i++) {
        const em_linear_part *part = &task->linear->parts[i];
        const int64_t after = before + em_panel_count(part->matrix.rows);
        const int64_t from = begin > before ? begin : before, to = end < after ? end : after;
        if (from < to) multiply_panels(task, part, (int32_t)(from - before), (int32_t)(to - before));
        before = after;
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
    for (int32_t i = 0; i < linear->parts_count; i++) {
        const em_matrix *matrix = &linear->parts[i].matrix;
        panels += em_panel_count(matrix->rows);
        bytes += em_panel_count(matrix->rows) * (int64_t)em_panel_bytes(matrix->format, columns);
    }
    const int64_t work_bytes_per_panel = bytes / panels * run->tokens + 1;
    em_pool_for(run->pool, panels, (CHUNK_BYTES + work_bytes_per_panel - 1) / work_bytes_per_panel, multiply, &task);
    return EM_OK;
}
