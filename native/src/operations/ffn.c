/* Feed-forward layers: any number of them at once (ffn.h), and one by itself (GatedFfn, PlainFfn).
 *
 * The work has two halves, each one parallel loop over all FFNs at once, so that a token's few small experts still
 * occupy every thread:
 *
 *   up    item = 32 hidden columns of one FFN (two gate and two up panels, or two up panels without a gate): products,
 *         plus biases, the activation, and the quantisation of that group, whose 32 columns are complete;
 *   down  item = one panel of 16 output rows of one FFN, plus biases. */
#include "ffn.h"

#include <stdbool.h>
#include <string.h>

enum {
    /* A chunk of less work than this costs more to hand out than to do. */
    CHUNK_BYTES = 32 * 1024,
};

/* In the place of up's numbers, where an FFN has no gate. */
static const float ones[EM_PANEL_ROWS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

typedef struct ffn_task {
    const em_run *run;
    ffn_sizes sizes;
    ffn_memory memory;
    em_activations input;
    em_activations hidden; /* one row for each pair */
    em_activation activation;
    float *output;         /* (output rows, D) */
} ffn_task;

ffn_memory em_ffn_lay_out(em_layout *layout, ffn_sizes sizes, int32_t tokens, int32_t pairs, int32_t experts) {
    ffn_memory memory = {0};
    memory.ffns = em_lay_out(layout, (size_t)(experts < pairs ? experts : pairs) * sizeof(ffn));
    memory.input_rows = em_lay_out(layout, (size_t)pairs * sizeof(int32_t));
    memory.output_rows = em_lay_out(layout, (size_t)pairs * sizeof(int32_t));
    memory.starts = em_lay_out(layout, ((size_t)experts + 1) * sizeof(int32_t));
    memory.states = em_lay_out(layout, (size_t)experts);
    memory.wanted = em_lay_out(layout, (size_t)tokens);
    if (sizes.quantised_input) memory.input = em_lay_out_quantised(layout, tokens, sizes.hidden_size);
    if (sizes.quantised_hidden) memory.hidden = em_lay_out_quantised(layout, pairs, sizes.intermediate_size);
    if (sizes.float_hidden) {
        memory.float_hidden = em_lay_out(layout, (size_t)pairs * sizes.intermediate_size * sizeof(float));
    }
    return memory;
}

/* Splits items `begin` to `end`, counted over all FFNs with `per_ffn` items each, into one range for each FFN. */
static void each_ffn(const ffn_task *task, int64_t begin, int64_t end, int32_t per_ffn,
                     void (*go)(const ffn_task *, const ffn *, int32_t, int32_t)) {
    while (begin < end) {
        const int64_t number = begin / per_ffn, start = number * per_ffn;
        const int64_t stop = end < start + per_ffn ? end : start + per_ffn;
        go(task, &task->memory.ffns[number], (int32_t)(begin - start), (int32_t)(stop - start));
        begin = stop;
    }
}

/* ---- up ------------------------------------------------------------------------------------------------- */

/* Panels that make 16 hidden columns: gate's and up's, or up's alone. */
static int32_t panels_per_column_panel(const ffn_task *task) { return task->activation.gated ? 2 : 1; }

/* Panels that make a group of hidden columns. */
static int32_t panels_per_group(const ffn_task *task) {
    return panels_per_column_panel(task) * (EM_GROUP_COLUMNS / EM_PANEL_ROWS);
}

static void add_bias(float *products, const float *bias, int32_t count) {
    for (int32_t i = 0; i < count; i++) products[i] += bias[i];
}

/* The products of some pairs with panels of gate and up: `step` floats lie from a panel of one to its next. */
typedef struct up_products {
    float *gate; /* those of up, without a gate */
    float *up;
    int32_t step;
} up_products;

/* Turns the products of one pair with the panels of one group into the pair's hidden columns. */
static void finish_group(const ffn_task *task, const ffn *f, int32_t group, int32_t pair, up_products products) {
    const em_kernels *kernels = task->run->kernels;
    const int32_t start = group * EM_GROUP_COLUMNS, left = task->sizes.intermediate_size - start;
    const int32_t columns = left < EM_GROUP_COLUMNS ? left : EM_GROUP_COLUMNS;
    const bool gated = task->activation.gated;
    float hidden[EM_GROUP_COLUMNS];
    for (int32_t column = 0, at = 0; column < columns; column += EM_PANEL_ROWS, at += products.step) {
        float *first = products.gate + at, *up = products.up + at;
        if (f->biases.up) {
            const int32_t rows = columns - column < EM_PANEL_ROWS ? columns - column : EM_PANEL_ROWS;
            if (gated) add_bias(first, f->biases.gate + start + column, rows);
            add_bias(up, f->biases.up + start + column, rows);
        }
        kernels->activate[task->activation.function](&task->activation, first, gated ? up : ones, hidden + column,
                                                     EM_PANEL_ROWS);
    }
    if (em_is_quantised(f->plane.down.format)) {
        const size_t at = (size_t)pair * task->hidden.group_count + group;
        kernels->quantise(hidden, columns, task->memory.hidden.values + at * EM_GROUP_COLUMNS,
                          task->memory.hidden.groups + at);
    } else {
        float *row = task->memory.float_hidden + (size_t)pair * task->sizes.intermediate_size;
        memcpy(row + start, hidden, (size_t)columns * sizeof *hidden);
    }
}

/* Adds the products of pairs with panels of a second plane to those with the first. */
static void add_plane(const em_run *run, const em_matrix *matrix, int32_t panel, int32_t panels, const em_activations *x,
                      const int32_t *rows, int32_t count, float *products, size_t stride) {
    float own[EM_PRODUCTS_AT_ONCE];
    run->kernels->panels[matrix->format](matrix, panel, panels, x, rows, count, own, stride);
    for (int32_t i = 0; i < count; i++) {
        float *sums = products + (size_t)i * stride;
        const float *added = own + (size_t)i * stride;
        for (int32_t j = 0; j < panels * EM_PANEL_ROWS; j++) sums[j] += added[j];
    }
}

/* Computes the products of pairs with `panels` panels of an FFN's first matrices, which begin at those of `group`. Those of
 * a row lie `stride` floats from those of the next. */
static up_products multiply_up(const ffn_task *task, const ffn *f, int32_t group, int32_t panels, int32_t pair,
                               int32_t count, float *products, size_t stride) {
    const em_kernels *kernels = task->run->kernels;
    const int32_t *rows = task->memory.input_rows + pair;
    const int32_t panel = group * panels_per_group(task);
    const em_matrix *first = &f->plane.first, *up_apart = &f->plane.up_apart, *second = &f->second.first;
    if (up_apart->rows) {
        const int32_t each = panels / 2;
        float *up = products + (size_t)each * EM_PANEL_ROWS;
        kernels->panels[first->format](first, panel / 2, each, &task->input, rows, count, products, stride);
        kernels->panels[up_apart->format](up_apart, panel / 2, each, &task->input, rows, count, up, stride);
        return (up_products){products, up, EM_PANEL_ROWS};
    }
    kernels->panels[first->format](first, f->plane.first_panel + panel, panels, &task->input, rows, count, products,
                                   stride);
    if (second->rows) {
        add_plane(task->run, second, f->second.first_panel + panel, panels, &task->input, rows, count, products, stride);
    }
    const int32_t step = panels_per_column_panel(task) * EM_PANEL_ROWS;
    return (up_products){products, products + step - EM_PANEL_ROWS, step};
}

/* Computes groups `begin` to `end` of one FFN, as many at a time as the buffer of products holds. */
static void go_up_groups(const ffn_task *task, const ffn *f, int32_t begin, int32_t end) {
    const int32_t panel_count = panels_per_column_panel(task) * em_panel_count(task->sizes.intermediate_size);
    const int32_t per_group = panels_per_group(task);
    const int32_t rows_at_once = f->count < EM_ROWS_AT_ONCE ? f->count : EM_ROWS_AT_ONCE;
    const int32_t groups_at_once = em_panels_at_once(rows_at_once) / per_group;
    for (int32_t first = begin; first < end; first += groups_at_once) {
        const int32_t last = end - first < groups_at_once ? end : first + groups_at_once;
        const int32_t panels = (last * per_group < panel_count ? last * per_group : panel_count) - first * per_group;
        const size_t stride = em_products_stride(panels);
        for (int32_t done = 0; done < f->count; done += EM_ROWS_AT_ONCE) {
            const int32_t left = f->count - done, pair = f->first_pair + done;
            const int32_t count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
            float products[EM_PRODUCTS_AT_ONCE];
            const up_products all = multiply_up(task, f, first, panels, pair, count, products, stride);
            for (int32_t i = 0; i < count; i++) {
                up_products own = {all.gate + (size_t)i * stride, all.up + (size_t)i * stride, all.step};
                for (int32_t g = first; g < last; g++) {
                    finish_group(task, f, g, pair + i, own);
                    own.gate += all.step * (EM_GROUP_COLUMNS / EM_PANEL_ROWS);
                    own.up += all.step * (EM_GROUP_COLUMNS / EM_PANEL_ROWS);
                }
            }
        }
    }
}

static void go_up(void *context, int64_t begin, int64_t end, int32_t thread) {
    const ffn_task *task = context;
    (void)thread;
    each_ffn(task, begin, end, task->hidden.group_count, go_up_groups);
}

/* ---- down ----------------------------------------------------------------------------------------------- */

/* Computes panels `begin` to `end` of one FFN. */
static void go_down_panels(const ffn_task *task, const ffn *f, int32_t begin, int32_t end) {
    const ffn_sizes sizes = task->sizes;
    const int32_t rows_at_once = f->count < EM_ROWS_AT_ONCE ? f->count : EM_ROWS_AT_ONCE;
    const int32_t panels_at_once = em_panels_at_once(rows_at_once);
    for (int32_t panel = begin; panel < end; panel += panels_at_once) {
        const int32_t panels = end - panel < panels_at_once ? end - panel : panels_at_once;
        const int32_t row = panel * EM_PANEL_ROWS, width = panels * EM_PANEL_ROWS;
        const int32_t height = sizes.hidden_size - row < width ? sizes.hidden_size - row : width;
        const size_t stride = em_products_stride(panels);
        for (int32_t done = 0; done < f->count; done += EM_ROWS_AT_ONCE) {
            const int32_t left = f->count - done, pair = f->first_pair + done;
            const int32_t count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
            float products[EM_PRODUCTS_AT_ONCE];
            int32_t rows[EM_ROWS_AT_ONCE];
            for (int32_t i = 0; i < count; i++) rows[i] = pair + i;
            const em_matrix *down = &f->plane.down, *second = &f->second.down;
            task->run->kernels->panels[down->format](down, f->plane.down_panel + panel, panels, &task->hidden, rows,
                                                     count, products, stride);
            if (second->rows) {
                add_plane(task->run, second, f->second.down_panel + panel, panels, &task->hidden, rows, count, products,
                          stride);
            }
            for (int32_t i = 0; i < count; i++) {
                const size_t output_row = task->memory.output_rows[pair + i];
                float *output = task->output + output_row * sizes.hidden_size + row;
                memcpy(output, products + (size_t)i * stride, (size_t)height * sizeof *output);
                if (f->biases.down) add_bias(output, f->biases.down + row, height);
            }
        }
    }
}

static void go_down(void *context, int64_t begin, int64_t end, int32_t thread) {
    const ffn_task *task = context;
    (void)thread;
    each_ffn(task, begin, end, em_panel_count(task->sizes.hidden_size), go_down_panels);
}

/* ---- both ----------------------------------------------------------------------------------------------- */

/* Number of items in a chunk, if one item reads about `bytes` of weights for about `rows` activation rows. */
static int64_t chunk_of(size_t bytes, int32_t rows) {
    const int64_t work = (int64_t)bytes * rows;
    return (CHUNK_BYTES + work - 1) / work;
}

/* 0 of a matrix that is not there. */
static size_t panel_bytes_of(const em_matrix *matrix) {
    return matrix->rows ? em_panel_bytes(matrix->format, matrix->columns) : 0;
}

/* Bytes of the panels of gate and up that make a group of hidden columns. */
static size_t group_bytes_of(const ffn_task *task, const ffn *f) {
    const int32_t panels = panels_per_group(task);
    const size_t first = panel_bytes_of(&f->plane.first), apart = panel_bytes_of(&f->plane.up_apart);
    return apart ? panels / 2 * (first + apart) : panels * (first + panel_bytes_of(&f->second.first));
}

void em_ffn_quantise_input(const em_run *run, ffn_sizes sizes, ffn_memory memory, const float *input) {
    if (sizes.quantised_input) {
        em_quantise_rows(run, input, run->tokens, sizes.hidden_size, memory.wanted, memory.input);
    }
}

void em_ffn_run(const em_run *run, ffn_sizes sizes, ffn_memory memory, em_activation activation, const float *input,
                float *output, int32_t ffn_count, int32_t pairs) {
    if (ffn_count == 0) return;
    ffn_task task = {.run = run, .sizes = sizes, .memory = memory, .activation = activation, .output = output};
    task.input = (em_activations){input, memory.input.values, memory.input.groups, sizes.hidden_size,
                                  em_group_count(sizes.hidden_size)};
    task.hidden = (em_activations){memory.float_hidden, memory.hidden.values, memory.hidden.groups, sizes.intermediate_size,
                                   em_group_count(sizes.intermediate_size)};
    const int32_t rows_per_ffn = (pairs + ffn_count - 1) / ffn_count;
    size_t up_bytes = 0, down_bytes = 0; /* of an item of each FFN */
    for (int32_t i = 0; i < ffn_count; i++) {
        up_bytes += group_bytes_of(&task, &memory.ffns[i]);
        down_bytes += panel_bytes_of(&memory.ffns[i].plane.down) + panel_bytes_of(&memory.ffns[i].second.down);
    }
    em_pool_for(run->pool, (int64_t)ffn_count * task.hidden.group_count, chunk_of(up_bytes / ffn_count, rows_per_ffn),
                go_up, &task);
    em_pool_for(run->pool, (int64_t)ffn_count * em_panel_count(sizes.hidden_size),
                chunk_of(down_bytes / ffn_count, rows_per_ffn), go_down, &task);
}

void em_ffn_add_formats(ffn_sizes *sizes, int32_t gate_format, int32_t up_format, int32_t down_format) {
    if (em_is_quantised(gate_format) || em_is_quantised(up_format)) sizes->quantised_input = 1;
    if (em_is_quantised(down_format)) sizes->quantised_hidden = 1;
    else sizes->float_hidden = 1;
}

/* ---- one FFN -------------------------------------------------------------------------------------------- */

static ffn_sizes sizes_of(const ffn *f) {
    const ffn_plane *own = &f->plane;
    ffn_sizes sizes = {.hidden_size = own->first.columns, .intermediate_size = own->down.columns};
    const int32_t up_format = own->up_apart.rows ? own->up_apart.format : own->first.format;
    em_ffn_add_formats(&sizes, own->first.format, up_format, own->down.format);
    return sizes;
}

static size_t scratch_bytes_of_one(ffn f, int32_t tokens) {
    em_layout layout = {0};
    em_ffn_lay_out(&layout, sizes_of(&f), tokens, tokens, 1);
    return layout.bytes;
}

/* Runs an FFN over all rows of a run. */
static int32_t run_one(const em_run *run, ffn f, em_activation activation, const float *input, float *output) {
    em_layout layout = {.base = run->scratch};
    const ffn_sizes sizes = sizes_of(&f);
    const ffn_memory memory = em_ffn_lay_out(&layout, sizes, run->tokens, run->tokens, 1);
    for (int32_t t = 0; t < run->tokens; t++) memory.input_rows[t] = memory.output_rows[t] = t;
    memset(memory.wanted, 1, (size_t)run->tokens);
    f.count = run->tokens;
    memory.ffns[0] = f;
    em_ffn_quantise_input(run, sizes, memory, input);
    em_ffn_run(run, sizes, memory, activation, input, output, 1, run->tokens);
    return EM_OK;
}

static ffn gated_ffn(const em_gated_ffn *f) {
    const em_matrix first = f->gate_up.rows ? f->gate_up : f->apart.gate;
    return (ffn){.plane = {.first = first, .up_apart = f->apart.up, .down = f->down}, .biases = f->biases};
}

size_t em_gated_ffn_scratch_bytes(const em_gated_ffn *f, int32_t tokens) {
    return scratch_bytes_of_one(gated_ffn(f), tokens);
}

int32_t em_run_gated_ffn(const em_gated_ffn *f, const em_run *run) {
    return run_one(run, gated_ffn(f), f->activation, f->input, f->output);
}

static ffn plain_ffn(const em_plain_ffn *f) {
    return (ffn){.plane = {.first = f->up, .down = f->down}, .biases = f->biases};
}

size_t em_plain_ffn_scratch_bytes(const em_plain_ffn *f, int32_t tokens) {
    return scratch_bytes_of_one(plain_ffn(f), tokens);
}

int32_t em_run_plain_ffn(const em_plain_ffn *f, const em_run *run) {
    return run_one(run, plain_ffn(f), f->activation, f->input, f->output);
}
