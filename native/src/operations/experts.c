/* The routed experts of a layer (Experts): FFNs, grouped by expert, whose records lie in slots of the arena.
 *
 * Experts whose records are still being read are computed as their reads end; all whose reads have ended by then are
 * computed together. */
#include <stdbool.h>
#include <string.h>

#include "../../kernels/sub1/layout.h"
#include "../pager.h"
#include "ffn.h"

/* The work left for an expert in a run, or in a wave of it. */
typedef enum expert_state {
    NOTHING = 0, /* none: not routed to, not in the arena, of another wave, or done */
    AWAITED = 1, /* all of it, once the pending read of its record ends */
    READY = 2,   /* all of it; its record is in the arena */
    BASE_READY = 3 /* all of it, with its base alone */
} expert_state;

/* Tokens of a chunk whose choices are passed on. */
enum { PASSED_ROWS = 8 };

/* Experts that have slots at the same time. */
typedef struct expert_wave {
    const int32_t *experts;
    int32_t count;
} expert_wave;

static ffn_sizes sizes_of_experts(const em_experts *e) {
    ffn_sizes sizes = {.hidden_size = e->hidden_size, .intermediate_size = e->layouts[0].intermediate_size};
    for (int32_t i = 0; i < e->layouts_count; i++) {
        em_ffn_add_formats(&sizes, e->layouts[i].gate_format, e->layouts[i].up_format, e->layouts[i].down_format);
    }
    return sizes;
}

/* The biases of an expert, one vector after the other, each filled up to whole panels. */
static em_ffn_biases biases_of(const em_expert_layout *layout, const uint8_t *record) {
    if (layout->biases_offset == 0) return (em_ffn_biases){NULL, NULL, NULL};
    const float *first = (const float *)(const void *)(record + layout->biases_offset);
    const size_t padded = (size_t)EM_PANEL_ROWS * em_panel_count(layout->intermediate_size);
    if (!layout->gated) return (em_ffn_biases){NULL, first, first + padded};
    return (em_ffn_biases){first, first + padded, first + 2 * padded};
}

/* The base plane of an expert: zeros where experts have none. */
static ffn_plane base_of(const em_experts *e, int32_t expert) {
    const em_matrix *first = &e->bases.first, *down = &e->bases.down;
    if (first->rows == 0) return (ffn_plane){0};
    return (ffn_plane){.first = *first,
                       .down = *down,
                       .first_panel = expert * (em_panel_count(first->rows) / e->num_experts),
                       .down_panel = expert * (em_panel_count(down->rows) / e->num_experts)};
}

/* The matrices and biases of an expert, where its layout says that they lie in its slot. Returns false for matrices in sub1
 * that are not as they must be: these say themselves how long they are, and where their panels lie. */
static bool find_ffn(const em_experts *e, int32_t expert, int32_t first, int32_t count, ffn *found) {
    const em_expert_layout *layout = &e->layouts[e->layout_of[expert]];
    const uint8_t *record = e->arena + (size_t)e->slots[expert] * (size_t)e->slot_bytes;
    const int32_t width = layout->intermediate_size;
    const bool apart = layout->up_offset != 0;
    const int32_t rows = layout->gated && !apart ? 2 * EM_PANEL_ROWS * em_panel_count(width) : width;
    const size_t room = (size_t)e->slot_bytes;
    size_t down = (size_t)layout->down_offset;
    if (layout->gate_format == EM_SUB1) {
        const size_t bytes = em_sub1_bytes(record, rows, layout->hidden_size, room);
        if (bytes == 0) return false;
        down = (bytes + EM_PANEL_ALIGNMENT - 1) / EM_PANEL_ALIGNMENT * EM_PANEL_ALIGNMENT;
    }
    if (down > room) return false;
    const size_t of_down = layout->down_format == EM_SUB1
        ? em_sub1_bytes(record + down, layout->hidden_size, width, room - down)
        : em_matrix_bytes(layout->down_format, layout->hidden_size, width);
    if (of_down == 0 || of_down > room - down) return false;
    const em_matrix none = {0};
    const em_matrix up = {record + layout->up_offset, layout->up_format, width, layout->hidden_size};
    const ffn_plane own = {.first = {record, layout->gate_format, rows, layout->hidden_size},
                           .up_apart = apart ? up : none,
                           .down = {record + down, layout->down_format, layout->hidden_size, width}};
    const ffn_plane base = base_of(e, expert);
    *found = (ffn){.plane = base.first.rows ? base : own,
                   .second = base.first.rows ? own : base,
                   .biases = biases_of(layout, record),
                   .first_pair = first,
                   .count = count};
    return true;
}

size_t em_experts_scratch_bytes(const em_experts *e, int32_t tokens) {
    em_layout layout = {0};
    em_ffn_lay_out(&layout, sizes_of_experts(e), tokens, tokens * e->top_k, e->num_experts);
    return layout.bytes;
}

/* `*passing`: whether a choice is of no expert. */
static int32_t check_experts(const em_experts *e, int32_t choices, bool *passing) {
    *passing = false;
    for (int32_t i = 0; i < choices; i++) {
        const int32_t expert = e->experts[i];
        if (expert == EM_NO_EXPERT) {
            *passing = true;
            continue;
        }
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
        if (expert == EM_NO_EXPERT || e->slots[expert] < 0) continue;
        memory.wanted[i / e->top_k] = 1;
        memory.states[expert] = READY;
    }
}

/* Sorts the (token, rank) pairs of the experts that are ready by expert; returns how many experts there are, or -1 where one
 * is not as it must be. */
static int32_t group_pairs(const em_experts *e, int32_t tokens, ffn_memory memory) {
    const int32_t choices = tokens * e->top_k;
    memset(memory.starts, 0, ((size_t)e->num_experts + 1) * sizeof *memory.starts);
    for (int32_t i = 0; i < choices; i++) {
        const int32_t expert = e->experts[i];
        if (expert != EM_NO_EXPERT) memory.starts[expert + 1] += memory.states[expert] >= READY;
    }
    int32_t ffn_count = 0;
    for (int32_t expert = 0; expert < e->num_experts; expert++) {
        const int32_t count = memory.starts[expert + 1];
        memory.starts[expert + 1] += memory.starts[expert];
        if (count == 0) continue;
        ffn *next = &memory.ffns[ffn_count++];
        if (memory.states[expert] == BASE_READY) {
            *next = (ffn){.plane = base_of(e, expert), .first_pair = memory.starts[expert], .count = count};
        } else if (!find_ffn(e, expert, memory.starts[expert], count, next)) {
            return -1;
        }
    }
    for (int32_t i = 0; i < choices; i++) {
        const int32_t expert = e->experts[i];
        if (expert == EM_NO_EXPERT || memory.states[expert] < READY) continue;
        const int32_t pair = memory.starts[expert]++;
        memory.input_rows[pair] = i / e->top_k;
        memory.output_rows[pair] = i;
    }
    return ffn_count;
}

/* Computes the experts that are ready. */
static int32_t run_ready(const em_experts *e, const em_run *run, ffn_memory memory) {
    const int32_t ffn_count = group_pairs(e, run->tokens, memory);
    if (ffn_count < 0) return EM_BAD_EXPERT;
    const int32_t pairs = ffn_count ? memory.ffns[ffn_count - 1].first_pair + memory.ffns[ffn_count - 1].count : 0;
    em_ffn_run(run, sizes_of_experts(e), memory, e->activation, e->input, e->output, ffn_count, pairs);
    for (int32_t i = 0; i < e->num_experts; i++) {
        if (memory.states[i] >= READY) memory.states[i] = NOTHING;
    }
    return EM_OK;
}

/* Checks what a record in sub1 says of itself, once after it landed. */
static int32_t check_record(const em_experts *e, int32_t expert) {
    const em_expert_layout *layout = &e->layouts[e->layout_of[expert]];
    bool *checked = em_pager_checked(e->paged.pager, expert);
    if (*checked || (layout->gate_format != EM_SUB1 && layout->down_format != EM_SUB1)) return EM_OK;
    const uint8_t *record = e->arena + (size_t)e->slots[expert] * (size_t)e->slot_bytes;
    const uint64_t room = (uint64_t)e->slot_bytes;
    const int32_t width = layout->intermediate_size;
    uint64_t down = (uint64_t)layout->down_offset, used;
    int32_t status = EM_OK;
    if (layout->gate_format == EM_SUB1) {
        const int32_t rows = layout->gated ? 2 * EM_PANEL_ROWS * em_panel_count(width) : width;
        status = em_sub1_check(record, room, rows, layout->hidden_size, &used);
        if (status == EM_OK) down = (used + EM_PANEL_ALIGNMENT - 1) / EM_PANEL_ALIGNMENT * EM_PANEL_ALIGNMENT;
    }
    if (status == EM_OK && layout->down_format == EM_SUB1) {
        status = down > room ? EM_BAD_RECORD
                             : em_sub1_check(record + down, room - down, layout->hidden_size, width, &used);
    }
    if (status != EM_OK) return em_pager_refuse(e->paged.pager, expert);
    *checked = true;
    return EM_OK;
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
        int32_t status = em_pager_land(e->paged.pager, expert, &landed);
        if (status == EM_OK && landed) status = check_record(e, expert);
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

/* Computes the experts of a wave: those whose records are there, then the others as they land. With `wanted`, those set
 * aside are computed beside the first of them, with their bases. */
static int32_t run_wave(const em_experts *e, const em_run *run, expert_wave wave, ffn_memory memory,
                        const uint8_t *wanted) {
    memset(memory.states, NOTHING, (size_t)e->num_experts);
    for (int32_t i = 0; wanted && i < e->num_experts; i++) {
        if (wanted[i] == EM_FROM_BASE) memory.states[i] = BASE_READY;
    }
    for (int32_t i = 0; i < wave.count; i++) memory.states[wave.experts[i]] = AWAITED;
    int32_t awaited, ready;
    int32_t status = take_arrivals(e, wave, memory, &awaited, &ready);
    while (status == EM_OK) {
        status = run_ready(e, run, memory);
        if (status != EM_OK || awaited == 0) break;
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
        if (e->experts[i] == EM_NO_EXPERT) continue;
        const uint8_t wish = wanted[e->experts[i]];
        if (wish == EM_NOT_WANTED) return EM_BAD_EXPERT; /* it was not fetched */
        if (wish == EM_FROM_BASE && e->bases.first.rows == 0) return EM_BAD_EXPERT;
        if (wish == EM_LEFT_OUT) memset(e->output + (size_t)i * e->hidden_size, 0, e->hidden_size * sizeof(float));
    }
    return EM_OK;
}

/* Passes on the input rows of choices that are of no expert. */
static void pass_on(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_experts *e = context;
    (void)thread;
    for (int64_t i = begin * e->top_k; i < end * e->top_k; i++) {
        if (e->experts[i] != EM_NO_EXPERT) continue;
        memcpy(e->output + i * e->hidden_size, e->input + i / e->top_k * e->hidden_size, e->hidden_size * sizeof(float));
    }
}

/* Computes the experts that were fetched, in waves where slots are too few for all. */
static int32_t run_paged(const em_experts *e, const em_run *run, ffn_memory memory) {
    em_pager *pager = e->paged.pager;
    memset(memory.wanted, 1, (size_t)run->tokens);
    em_ffn_quantise_input(run, sizes_of_experts(e), memory, e->input);
    expert_wave wave;
    const uint8_t *wanted = em_pager_wanted(pager);
    int32_t status = clear_left_out(e, run->tokens * e->top_k, wanted);
    while (status == EM_OK) {
        status = em_pager_next(pager, (int32_t)e->paged.layer, &wave.experts, &wave.count);
        if (status != EM_OK || (wave.count == 0 && !wanted)) break;
        status = run_wave(e, run, wave, memory, wanted);
        wanted = NULL;
        if (status == EM_OK || status == EM_BAD_RECORD) continue; /* the latter is blamed on a record already */
        const int32_t blamed = em_pager_blame(pager);
        status = blamed == EM_OK ? status : blamed;
    }
    em_pager_end(pager);
    return status;
}

int32_t em_run_experts(const em_experts *e, const em_run *run) {
    bool passing;
    if (check_experts(e, run->tokens * e->top_k, &passing) != EM_OK) return EM_BAD_EXPERT;
    em_layout layout = {.base = run->scratch};
    const ffn_sizes sizes = sizes_of_experts(e);
    const ffn_memory memory = em_ffn_lay_out(&layout, sizes, run->tokens, run->tokens * e->top_k, e->num_experts);
    if (passing) em_pool_for(run->pool, run->tokens, PASSED_ROWS, pass_on, (void *)(uintptr_t)e);
    if (!e->paged.pager) {
        begin_states(e, run->tokens, memory);
        em_ffn_quantise_input(run, sizes, memory, e->input);
        return run_ready(e, run, memory);
    }
    const uint64_t waited_ns = em_pager_waited_ns(e->paged.pager);
    const int32_t status = run_paged(e, run, memory);
    if (run->disk_ns) *run->disk_ns += em_pager_waited_ns(e->paged.pager) - waited_ns;
    return status;
}
