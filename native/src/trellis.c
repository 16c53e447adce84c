/* The codes of rows of weights in a trellis format: the cheapest path through each chain, and the codes along it. */
#include <stdbool.h>
#include <string.h>

#include "../kernels/trellis/panel.h"

static bool is_trellis(const em_trellis *t) {
    static const int32_t known[][3] = {{4, 1, 1}, {3, 1, 1}, {2, 1, 2}, {1, 1, 4}, {3, 2, 1}, {3, 4, 1}};
    bool found = false;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        found |= t->step_bits == known[i][0] && t->step_weights == known[i][1] && t->lag == known[i][2];
    }
    if (!found || t->level_count < 1 || t->level_count > EM_TRELLIS_LEVELS_MAX) return false;
    const float room = t->step_bits == 1 ? 0x1p26f : 0x1p28f; /* of a step; see kernels/trellis/search.h */
    return t->dearest >= 0 && t->dearest * (float)((1 << t->step_bits) * t->step_weights) <= room;
}

static size_t word_count(const em_trellis *t, int32_t columns) {
    return (size_t)(columns / (EM_TRELLIS_CHAINS * t->step_weights) * em_trellis_step_words(t)) * EM_PANEL_ROWS;
}

/* In floats, as those of the words and ends are as large. */
static size_t scratch_floats(const em_trellis *t, int32_t columns) {
    const size_t groups = (size_t)(columns / EM_GROUP_COLUMNS);
    return ((size_t)columns + 2 * groups + EM_TRELLIS_STATES_MAX) * EM_PANEL_ROWS + word_count(t, columns);
}

static bool fits(const em_trellis *t, int32_t rows, int32_t columns) {
    return rows >= 0 && columns > 0 && is_trellis(t) && columns % (EM_GROUP_COLUMNS * t->step_weights) == 0;
}

uint64_t em_trellis_scratch_bytes(const em_trellis *trellis, int32_t columns) {
    return fits(trellis, 0, columns) ? scratch_floats(trellis, columns) * sizeof(float) : 0;
}

/* Rows (count, columns) as columns (columns, 16), with zeros for the rows that lack. Line by line of 64 bytes, as all lines of
 * many rows at once would be too much for the first-level cache. */
static void turn(const float *rows, int32_t count, int32_t columns, float *turned) {
    for (int32_t first = 0; first < columns; first += EM_PANEL_ROWS) {
        const int32_t width = columns - first < EM_PANEL_ROWS ? columns - first : EM_PANEL_ROWS;
        for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
            const float *row = rows + (size_t)r * (size_t)columns + first;
            for (int32_t c = 0; c < width; c++) turned[(first + c) * EM_PANEL_ROWS + r] = r < count ? row[c] : 0;
        }
    }
}

/* The columns of one chain of such rows; what lies between them stays as it is. */
static void turn_chain(const float *rows, int32_t count, int32_t columns, int32_t chain, float *turned) {
    for (int32_t c = chain; c < columns; c += EM_TRELLIS_CHAINS) {
        for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
            turned[c * EM_PANEL_ROWS + r] = r < count ? rows[(size_t)r * (size_t)columns + (size_t)c] : 0;
        }
    }
}

/* The costs of states before the first step: none of the state that a row's chain begins with. */
static void begin(const em_trellis_panel *panel, const uint8_t *starts, int32_t count, int32_t chain) {
    const int32_t state_bits = em_trellis_state_bits(panel->trellis), kept_bits = state_bits - panel->trellis->step_bits;
    for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
        const int32_t start = starts && r < count ? starts[r * EM_TRELLIS_CHAINS + chain] & ((1 << state_bits) - 1) : 0;
        for (int32_t s = 0; s < 1 << state_bits; s++) {
            panel->ends[s * EM_PANEL_ROWS + r] = (s == start ? 0 : EM_TRELLIS_NEVER) + (s >> kept_bits);
        }
    }
}

/* The codes of the first `count` rows, row by row `row_codes` apart: from the cheapest ends back along the ways that were
 * kept, one step of all rows after the other, as each waits for its word. */
static void trace(const em_trellis_panel *panel, int32_t count, int32_t chain, uint8_t *codes, int32_t row_codes) {
    const em_trellis *t = panel->trellis;
    const int32_t k = t->step_bits, state_bits = em_trellis_state_bits(t), mask = (1 << k) - 1;
    const int32_t way_bits = em_trellis_way_bits(k), step_words = em_trellis_step_words(t);
    int32_t states[EM_PANEL_ROWS] = {0};
    for (int32_t s = 1; s < 1 << state_bits; s++) {
        const int32_t *ends = panel->ends;
        for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
            if (ends[s * EM_PANEL_ROWS + r] >> k < ends[states[r] * EM_PANEL_ROWS + r] >> k) states[r] = s;
        }
    }
    for (int32_t i = panel->columns / (EM_TRELLIS_CHAINS * t->step_weights) - 1; i >= 0; i--) {
        const int32_t *words = panel->words + (size_t)(i * step_words) * EM_PANEL_ROWS;
        for (int32_t r = 0; r < count; r++) {
            const int32_t state = states[r], place = ~state & ((1 << way_bits) - 1);
            const uint32_t word = (uint32_t)words[(state >> way_bits) * EM_PANEL_ROWS + r];
            codes[(size_t)r * (size_t)row_codes + (size_t)(EM_TRELLIS_CHAINS * i + chain)] = (uint8_t)(state & mask);
            states[r] = (int32_t)(word >> place * k & (uint32_t)mask) << (state_bits - k) | state >> k;
        }
    }
}

int32_t em_trellis_search(const em_kernels *kernels, const em_trellis *trellis, const float *weights, const float *inverses,
                          const float *gains, const float *importance, int32_t rows, int32_t columns, const uint8_t *starts,
                          int32_t only_chain, uint8_t *codes, void *scratch) {
    if (!fits(trellis, rows, columns) || only_chain < -1 || only_chain >= EM_TRELLIS_CHAINS) return EM_BAD_ARGUMENT;
    const int32_t first_chain = only_chain < 0 ? 0 : only_chain;
    const int32_t end_chain = only_chain < 0 ? EM_TRELLIS_CHAINS : only_chain + 1;
    const int32_t groups = columns / EM_GROUP_COLUMNS, row_codes = columns / trellis->step_weights;
    float *turned_weights = scratch;
    float *turned_inverses = turned_weights + (size_t)columns * EM_PANEL_ROWS;
    float *turned_gains = turned_inverses + (size_t)groups * EM_PANEL_ROWS;
    int32_t *ends = (int32_t *)(turned_gains + (size_t)groups * EM_PANEL_ROWS);
    const em_trellis_panel panel = {
        .trellis = trellis,
        .columns = columns,
        .weights = turned_weights,
        .inverses = turned_inverses,
        .gains = turned_gains,
        .importance = importance,
        .words = ends + EM_TRELLIS_STATES_MAX * EM_PANEL_ROWS,
        .ends = ends,
    };
    for (int32_t first = 0; first < rows; first += EM_PANEL_ROWS) {
        const int32_t count = rows - first < EM_PANEL_ROWS ? rows - first : EM_PANEL_ROWS;
        const float *own = weights + (size_t)first * (size_t)columns;
        if (only_chain < 0) turn(own, count, columns, turned_weights);
        else turn_chain(own, count, columns, only_chain, turned_weights);
        turn(inverses + (size_t)first * (size_t)groups, count, groups, turned_inverses);
        turn(gains + (size_t)first * (size_t)groups, count, groups, turned_gains);
        for (int32_t chain = first_chain; chain < end_chain; chain++) {
            begin(&panel, starts ? starts + (size_t)first * EM_TRELLIS_CHAINS : NULL, count, chain);
            kernels->search_trellis(&panel, chain);
            trace(&panel, count, chain, codes + (size_t)first * (size_t)row_codes, row_codes);
        }
    }
    return EM_OK;
}
