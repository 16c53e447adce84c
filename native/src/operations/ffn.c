/* Gated feed-forward layers: one of them (GatedFfn) or many, grouped by expert (Experts).
 *
 * A pair is one activation row that goes through one FFN. Pairs lie expert by expert, so that each expert's weights
 * are read once per run for all its tokens. The work has two halves, each one parallel loop over all FFNs at once,
 * so that a token's few small experts still occupy every thread:
 *
 *   up    item = 32 hidden columns of one FFN (two gate and two up panels): products, plus biases, the activation,
 *         and the quantisation of that group, whose 32 columns are complete;
 *   down  item = one panel of 16 output rows of one FFN, plus biases.
 *
 * Experts whose records are still being read are computed as their reads end; all whose reads have ended by then are
 * computed together. */
#include <stdbool.h>
#include <string.h>

#include "../operations.h"
#include "../pager.h"

enum {
    /* A chunk of less work than this costs more to hand out than to do. */
    CHUNK_BYTES = 32 * 1024,
    PANELS_PER_GROUP = 2 * EM_GROUP_COLUMNS / EM_PANEL_ROWS, /* gate and up */
};

/* FFNs of a run have the same widths; each has formats of its own. */
typedef struct ffn {
    em_matrix gate_up;
    em_matrix down;
    em_ffn_biases biases; /* NULL if there are none */
    int32_t first; /* number of its first pair */
    int32_t count;
} ffn;

/* The widths of all FFNs of an operation, and what their products take, whichever of them run. */
typedef struct ffn_sizes {
    int32_t hidden_size;
    int32_t intermediate_size;
    uint8_t quantised_input;  /* some gate and up are quantised */
    uint8_t quantised_hidden; /* some down is quantised */
    uint8_t float_hidden;     /* some down is not */
} ffn_sizes;

/* The buffers that lie in scratch. */
typedef struct ffn_memory {
    ffn *ffns;
    int32_t *input_rows;  /* input row of each pair */
    int32_t *output_rows; /* output row of each pair */
    int32_t *starts;      /* first pair of each expert, and the end of the last */
    uint8_t *states;      /* expert_state of each expert */
    uint8_t *wanted;      /* whether any FFN of this run reads the input row */
    em_quantised input;
    em_quantised hidden;
    float *float_hidden;
} ffn_memory;

typedef struct ffn_task {
    const em_run *run;
    ffn_sizes sizes;
    ffn_memory memory;
    em_activations input;
    em_activations hidden; /* one row for each pair */
    em_activation activation;
    float *output;         /* (output rows, D) */
} ffn_task;

static ffn_memory lay_out(em_layout *layout, ffn_sizes sizes, int32_t tokens, int32_t pairs, int32_t experts) {
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

static void add_bias(float *products, const float *bias, int32_t count) {
    for (int32_t i = 0; i < count; i++) products[i] += bias[i];
}

/* Turns the products of one pair with the gate and up panels of one group into the pair's hidden columns. */
static void finish_group(const ffn_task *task, const ffn *f, int32_t group, int32_t pair, float *products) {
    const em_kernels *kernels = task->run->kernels;
    const int32_t start = group * EM_GROUP_COLUMNS, left = task->sizes.intermediate_size - start;
    const int32_t columns = left < EM_GROUP_COLUMNS ? left : EM_GROUP_COLUMNS;
    float hidden[EM_GROUP_COLUMNS];
    for (int32_t column = 0; column < columns; column += EM_PANEL_ROWS) {
        float *gate = products + 2 * column, *up = gate + EM_PANEL_ROWS;
        if (f->biases.gate) {
            const int32_t rows = columns - column < EM_PANEL_ROWS ? columns - column : EM_PANEL_ROWS;
            add_bias(gate, f->biases.gate + start + column, rows);
            add_bias(up, f->biases.up + start + column, rows);
        }
        kernels->activate[task->activation.function](&task->activation, gate, up, hidden + column, EM_PANEL_ROWS);
    }
    if (em_is_quantised(f->down.format)) {
        const size_t at = (size_t)pair * task->hidden.group_count + group;
        kernels->quantise(hidden, columns, task->memory.hidden.values + at * EM_GROUP_COLUMNS,
                          task->memory.hidden.groups + at);
    } else {
        float *row = task->memory.float_hidden + (size_t)pair * task->sizes.intermediate_size;
        memcpy(row + start, hidden, (size_t)columns * sizeof *hidden);
    }
}

/* Computes groups `begin` to `end` of one FFN, as many at a time as the buffer of products holds. */
static void go_up_groups(const ffn_task *task, const ffn *f, int32_t begin, int32_t end) {
    const int32_t panel_count = 2 * em_panel_count(task->sizes.intermediate_size);
    const int32_t rows_at_once = f->count < EM_ROWS_AT_ONCE ? f->count : EM_ROWS_AT_ONCE;
    const int32_t groups_at_once = em_panels_at_once(rows_at_once) / PANELS_PER_GROUP;
    for (int32_t first = begin; first < end; first += groups_at_once) {
        const int32_t last = end - first < groups_at_once ? end : first + groups_at_once;
        const int32_t panel = first * PANELS_PER_GROUP;
        const int32_t panels = (last * PANELS_PER_GROUP < panel_count ? last * PANELS_PER_GROUP : panel_count) - panel;
        const size_t stride = em_products_stride(panels);
        for (int32_t done = 0; done < f->count; done += EM_ROWS_AT_ONCE) {
            const int32_t left = f->count - done, pair = f->first + done;
            const int32_t count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
            float products[EM_PRODUCTS_AT_ONCE];
            task->run->kernels->panels[f->gate_up.format](&f->gate_up, panel, panels, &task->input,
                                                          task->memory.input_rows + pair, count, products,
                                                          stride);
            for (int32_t i = 0; i < count; i++) {
                float *row = products + (size_t)i * stride;
                for (int32_t g = first; g < last; g++) {
                    finish_group(task, f, g, pair + i, row + (size_t)(g - first) * 2 * EM_GROUP_COLUMNS);
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
            const int32_t left = f->count - done, pair = f->first + done;
            const int32_t count = left < EM_ROWS_AT_ONCE ? left : EM_ROWS_AT_ONCE;
            float products[EM_PRODUCTS_AT_ONCE];
            int32_t rows[EM_ROWS_AT_ONCE];
            for (int32_t i = 0; i < count; i++) rows[i] = pair + i;
            task->run->kernels->panels[f->down.format](&f->down, panel, panels, &task->hidden, rows, count, products,
                                                       stride);
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

static size_t panel_bytes_of(const em_matrix *matrix) { return em_panel_bytes(matrix->format, matrix->columns); }

/* Quantises the wanted input rows, if the weights are quantised. */
static void quantise_input(const em_run *run, ffn_sizes sizes, ffn_memory memory, const float *input) {
    if (sizes.quantised_input) {
        em_quantise_rows(run, input, run->tokens, sizes.hidden_size, memory.wanted, memory.input);
    }
}

/* Runs the FFNs of `memory` over `pairs` pairs; their rows must be filled in and their input quantised. */
static void run_ffns(const em_run *run, ffn_sizes sizes, ffn_memory memory, em_activation activation,
                     const float *input, float *output, int32_t ffn_count, int32_t pairs) {
    if (ffn_count == 0) return;
    ffn_task task = {.run = run, .sizes = sizes, .memory = memory, .activation = activation, .output = output};
    task.input = (em_activations){input, memory.input.values, memory.input.groups, sizes.hidden_size,
                                  em_group_count(sizes.hidden_size)};
    task.hidden = (em_activations){memory.float_hidden, memory.hidden.values, memory.hidden.groups, sizes.intermediate_size,
                                   em_group_count(sizes.intermediate_size)};
    const int32_t rows_per_ffn = (pairs + ffn_count - 1) / ffn_count;
    size_t up_bytes = 0, down_bytes = 0; /* of an item of each FFN */
    for (int32_t i = 0; i < ffn_count; i++) {
        up_bytes += PANELS_PER_GROUP * panel_bytes_of(&memory.ffns[i].gate_up);
        down_bytes += panel_bytes_of(&memory.ffns[i].down);
    }
    em_pool_for(run->pool, (int64_t)ffn_count * task.hidden.group_count, chunk_of(up_bytes / ffn_count, rows_per_ffn),
                go_up, &task);
    em_pool_for(run->pool, (int64_t)ffn_count * em_panel_count(sizes.hidden_size),
                chunk_of(down_bytes / ffn_count, rows_per_ffn), go_down, &task);
}

/* ---- one FFN -------------------------------------------------------------------------------------------- */

static void add_formats(ffn_sizes *sizes, int32_t gate_up_format, int32_t down_format) {
    if (em_is_quantised(gate_up_format)) sizes->quantised_input = 1;
    if (em_is_quantised(down_format)) sizes->quantised_hidden = 1;
    else sizes->float_hidden = 1;
}

static ffn_sizes sizes_of_gated_ffn(const em_gated_ffn *f) {
    ffn_sizes sizes = {.hidden_size = f->gate_up.columns, .intermediate_size = f->down.columns};
    add_formats(&sizes, f->gate_up.format, f->down.format);
    return sizes;
}

size_t em_gated_ffn_scratch_bytes(const em_gated_ffn *f, int32_t tokens) {
    em_layout layout = {0};
    lay_out(&layout, sizes_of_gated_ffn(f), tokens, tokens, 1);
    return layout.bytes;
}

int32_t em_run_gated_ffn(const em_gated_ffn *f, const em_run *run) {
    em_layout layout = {.base = run->scratch};
    const ffn_memory memory = lay_out(&layout, sizes_of_gated_ffn(f), run->tokens, run->tokens, 1);
    for (int32_t t = 0; t < run->tokens; t++) memory.input_rows[t] = memory.output_rows[t] = t;
    memset(memory.wanted, 1, (size_t)run->tokens);
    memory.ffns[0] = (ffn){f->gate_up, f->down, f->biases, 0, run->tokens};
    quantise_input(run, sizes_of_gated_ffn(f), memory, f->input);
    run_ffns(run, sizes_of_gated_ffn(f), memory, f->activation, f->input, f->output, 1, run->tokens);
    return EM_OK;
}

/* ---- many ----------------------------------------------------------------------------------------------- */

/* The work left for an expert in a run, or in a wave of it. */
typedef enum expert_state {
    NOTHING = 0, /* none: not routed to, not in the arena, of another wave, or done */
    AWAITED = 1, /* all of it, once the pending read of its record ends */
    READY = 2    /* all of it; its record is in the arena */
} expert_state;

/* Experts that have slots at the same time. */
typedef struct expert_wave {
    const int32_t *experts;
    int32_t count;
} expert_wave;

static ffn_sizes sizes_of_experts(const em_experts *e) {
    ffn_sizes sizes = {.hidden_size = e->hidden_size, .intermediate_size = e->layouts[0].intermediate_size};
    for (int32_t i = 0; i < e->layouts_count; i++) {
        add_formats(&sizes, e->layouts[i].gate_up_format, e->layouts[i].down_format);
    }
    return sizes;
}

/* The biases of an expert, one vector after the other, each filled up to whole panels. */
static em_ffn_biases biases_of(const em_expert_layout *layout, const uint8_t *record) {
    if (layout->biases_offset == 0) return (em_ffn_biases){NULL, NULL, NULL};
    const float *gate = (const float *)(const void *)(record + layout->biases_offset);
    const size_t padded = (size_t)EM_PANEL_ROWS * em_panel_count(layout->intermediate_size);
    return (em_ffn_biases){gate, gate + padded, gate + 2 * padded};
}

/* The matrices and biases of an expert, where its layout says that they lie in its slot. */
static ffn ffn_of(const em_experts *e, int32_t expert, int32_t first, int32_t count) {
    const em_expert_layout *layout = &e->layouts[e->layout_of[expert]];
    const uint8_t *record = e->arena + (size_t)e->slots[expert] * (size_t)e->slot_bytes;
    const int32_t gate_up_rows = 2 * EM_PANEL_ROWS * em_panel_count(layout->intermediate_size);
    return (ffn){.gate_up = {record, layout->gate_up_format, gate_up_rows, layout->hidden_size},
                 .down = {record + layout->down_offset, layout->down_format, layout->hidden_size, layout->intermediate_size},
                 .biases = biases_of(layout, record),
                 .first = first,
                 .count = count};
}

size_t em_experts_scratch_bytes(const em_experts *e, int32_t tokens) {
    em_layout layout = {0};
    lay_out(&layout, sizes_of_experts(e), tokens, tokens * e->top_k, e->num_experts);
    return layout.bytes;
}

static int32_t check_experts(const em_experts *e, int32_t choices) {
    for (int32_t i = 0; i < choices; i++) {
        const int32_t expert = e->experts[i];
        if (expert < 0 || expert >= e->num_experts || e->slots[expert] >= e->slot_count) return EM_BAD_EXPERT;
        if (e->layout_of[expert] >= e->layouts_count) return EM_BAD_EXPERT;
    }
    return EM_OK;
}

/* Sets the state of every expert, and which input rows are wanted, at the beginning of a run without a pager. */
static void begin_states(const em_experts *e, int32_t tokens, ffn_memory memory) {
    memset(memory.states, NOTHING, (size_t)e->num_experts);
    memset(memory.wanted, 0, (size_t)tokens);
    for (int32_t i = 0; i < tokens * e->top_k; i++) {
        const int32_t expert = e->experts[i];
        if (e->slots[expert] < 0) continue;
        memory.wanted[i / e->top_k] = 1;
        memory.states[expert] = READY;
    }
}

/* Sorts the (token, rank) pairs of the experts that are ready by expert; returns how many experts there are. */
static int32_t group_pairs(const em_experts *e, int32_t tokens, ffn_memory memory) {
    const int32_t choices = tokens * e->top_k;
    memset(memory.starts, 0, ((size_t)e->num_experts + 1) * sizeof *memory.starts);
    for (int32_t i = 0; i < choices; i++) memory.starts[e->experts[i] + 1] += memory.states[e->experts[i]] == READY;
    int32_t ffn_count = 0;
    for (int32_t expert = 0; expert < e->num_experts; expert++) {
        const int32_t count = memory.starts[expert + 1];
        memory.starts[expert + 1] += memory.starts[expert];
        if (count == 0) continue;
        memory.ffns[ffn_count++] = ffn_of(e, expert, memory.starts[expert], count);
    }
    for (int32_t i = 0; i < choices; i++) {
        const int32_t expert = e->experts[i];
        if (memory.states[expert] != READY) continue;
        const int32_t pair = memory.starts[expert]++;
        memory.input_rows[pair] = i / e->top_k;
        memory.output_rows[pair] = i;
    }
    return ffn_count;
}

/* Computes the experts that are ready. */
static void run_ready(const em_experts *e, const em_run *run, ffn_memory memory) {
    const int32_t ffn_count = group_pairs(e, run->tokens, memory);
    const int32_t pairs = ffn_count ? memory.ffns[ffn_count - 1].first + memory.ffns[ffn_count - 1].count : 0;
    run_ffns(run, sizes_of_experts(e), memory, e->activation, e->input, e->output, ffn_count, pairs);
    for (int32_t i = 0; i < e->num_experts; i++) {
        if (memory.states[i] == READY) memory.states[i] = NOTHING;
    }
}

/* Marks awaited experts of a wave whose reads have ended as ready. `*ready` becomes their number, `*awaited` the number of
 * those still awaited. Stops at the first read that failed and returns its status. */
static int32_t take_arrivals(const em_experts *e, expert_wave wave, ffn_memory memory, int32_t *awaited,
                             int32_t *ready) {
    *awaited = *ready = 0;
    for (int32_t i = 0; i < wave.count; i++) {
        const int32_t expert = wave.experts[i];
        if (memory.states[expert] != AWAITED) continue;
        bool landed;
        const int32_t status = em_pager_land(e->paged.pager, expert, &landed);
        if (status != EM_OK) return status;
        if (landed) memory.states[expert] = READY;
        ++*(landed ? ready : awaited);
    }
    return EM_OK;
}

/* Waits until the record of an awaited expert lands. */
static int32_t await_arrival(const em_experts *e, expert_wave wave, ffn_memory memory) {
    enum { EXPERTS_AT_ONCE = 256 };
    int32_t awaited[EXPERTS_AT_ONCE], count = 0;
    for (int32_t i = 0; i < wave.count && count < EXPERTS_AT_ONCE; i++) {
        if (memory.states[wave.experts[i]] == AWAITED) awaited[count++] = wave.experts[i];
    }
    return em_pager_await(e->paged.pager, awaited, count);
}

/* Computes the experts of a wave: those whose records are there, then the others as they land. */
static int32_t run_wave(const em_experts *e, const em_run *run, expert_wave wave, ffn_memory memory) {
    memset(memory.states, NOTHING, (size_t)e->num_experts);
    for (int32_t i = 0; i < wave.count; i++) memory.states[wave.experts[i]] = AWAITED;
    int32_t awaited, ready;
    int32_t status = take_arrivals(e, wave, memory, &awaited, &ready);
    while (status == EM_OK) {
        run_ready(e, run, memory);
        if (awaited == 0) break;
        status = take_arrivals(e, wave, memory, &awaited, &ready);
        if (status == EM_OK && ready == 0) {
            status = await_arrival(e, wave, memory);
            if (status == EM_OK) status = take_arrivals(e, wave, memory, &awaited, &ready);
        }
    }
    return status;
}

/* Writes zeros to the rows of experts that were left out: their weights are 0, and 0 times what an earlier layer left there
 * might not be. */
static int32_t clear_left_out(const em_experts *e, int32_t choices, const uint8_t *wanted) {
    for (int32_t i = 0; i < choices; i++) {
        const uint8_t wish = wanted[e->experts[i]];
        if (wish == EM_NOT_WANTED) return EM_BAD_EXPERT; /* it was not fetched */
        if (wish == EM_LEFT_OUT) memset(e->output + (size_t)i * e->hidden_size, 0, e->hidden_size * sizeof(float));
    }
    return EM_OK;
}

/* Computes the experts that were fetched, in waves where slots are too few for all. */
static int32_t run_paged(const em_experts *e, const em_run *run, ffn_memory memory) {
    em_pager *pager = e->paged.pager;
    memset(memory.wanted, 1, (size_t)run->tokens);
    quantise_input(run, sizes_of_experts(e), memory, e->input);
    expert_wave wave;
    int32_t status = clear_left_out(e, run->tokens * e->top_k, em_pager_wanted(pager));
    while (status == EM_OK) {
        status = em_pager_next(pager, (int32_t)e->paged.layer, &wave.experts, &wave.count);
        if (status != EM_OK || wave.count == 0) break;
        status = run_wave(e, run, wave, memory);
        if (status == EM_OK) continue;
        const int32_t blamed = em_pager_blame(pager);
        status = blamed == EM_OK ? status : blamed;
    }
    em_pager_end(pager);
    return status;
}

int32_t em_run_experts(const em_experts *e, const em_run *run) {
    if (check_experts(e, run->tokens * e->top_k) != EM_OK) return EM_BAD_EXPERT;
    em_layout layout = {.base = run->scratch};
    const ffn_sizes sizes = sizes_of_experts(e);
    const ffn_memory memory = lay_out(&layout, sizes, run->tokens, run->tokens * e->top_k, e->num_experts);
    if (!e->paged.pager) {
        begin_states(e, run->tokens, memory);
        quantise_input(run, sizes, memory, e->input);
        run_ready(e, run, memory);
        return EM_OK;
    }
    const uint64_t waited_ns = em_pager_waited_ns(e->paged.pager);
    const int32_t status = run_paged(e, run, memory);
    if (run->disk_ns) *run->disk_ns += em_pager_waited_ns(e->paged.pager) - waited_ns;
    return status;
}
