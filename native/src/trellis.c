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

/* Rows (count, columns) as columns (columns, 16), with zeros for the rows that lack. */
static void turn(const float *rows, int32_t count, int32_t columns, float *turned) {
    memset(turned, 0, (size_t)columns * EM_PANEL_ROWS * sizeof *turned);
    for (int32_t r = 0; r < count; r++) {
        for (int32_t c = 0; c < columns; c++) turned[c * EM_PANEL_ROWS + r] = rows[(size_t)r * (size_t)columns + (size_t)c];
    }
}

/* The codes of row r of the panel: from the cheapest end back along the ways that were kept. */
static void trace(const em_trellis_panel *panel, int32_t r, int32_t chain, uint8_t *codes) {
    const em_trellis *t = panel->trellis;
    const int32_t k = t->step_bits, state_bits = em_trellis_state_bits(t), mask = (1 << k) - 1;
    const int32_t ways = em_trellis_word_ways(k), step_words = em_trellis_step_words(t);
    int32_t state = 0;
    for (int32_t s = 1; s < 1 << state_bits; s++) {
        if (panel->ends[s * EM_PANEL_ROWS + r] >> k < panel->ends[state * EM_PANEL_ROWS + r] >> k) state = s;
    }
    for (int32_t i = panel->columns / (EM_TRELLIS_CHAINS * t->step_weights) - 1; i >= 0; i--) {
        const size_t word = (size_t)(i * step_words + state / ways) * EM_PANEL_ROWS + (size_t)r;
        const int32_t way = (int32_t)((uint32_t)panel->words[word] >> (ways - 1 - state % ways) * k) & mask;
        codes[EM_TRELLIS_CHAINS * i + chain] = (uint8_t)(state & mask);
        state = way << (state_bits - k) | state >> k;
    }
}

int32_t em_trellis_search(const em_kernels *kernels, const em_trellis *trellis, const float *weights, const float *inverses,
                          const float *gains, const float *importance, int32_t rows, int32_t columns, uint8_t *codes,
                          void *scratch) {
    if (!fits(trellis, rows, columns)) return EM_BAD_ARGUMENT;
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
        turn(weights + (size_t)first * (size_t)columns, count, columns, turned_weights);
        turn(inverses + (size_t)first * (size_t)groups, count, groups, turned_inverses);
        turn(gains + (size_t)first * (size_t)groups, count, groups, turned_gains);
        for (int32_t chain = 0; chain < EM_TRELLIS_CHAINS; chain++) {
            kernels->search_trellis(&panel, chain);
            for (int32_t r = 0; r < count; r++) trace(&panel, r, chain, codes + (size_t)(first + r) * (size_t)row_codes);
        }
    }
    return EM_OK;
}
