/* The codes of rows of weights in a trellis format: the cheapest path through each chain, and the codes along it; with errors
 * fed back, of 8 steps after the other. */
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

/* Rows (count, columns), `row_floats` apart, as columns (columns, 16), with zeros for the rows that lack. Line by line of 64
 * bytes, as all lines of many rows at once would be too much for the first-level cache. */
static void turn(const float *rows, size_t row_floats, int32_t count, int32_t columns, float *turned) {
    for (int32_t first = 0; first < columns; first += EM_PANEL_ROWS) {
        const int32_t width = columns - first < EM_PANEL_ROWS ? columns - first : EM_PANEL_ROWS;
        for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
            const float *row = rows + (size_t)r * row_floats + first;
            for (int32_t c = 0; c < width; c++) turned[(first + c) * EM_PANEL_ROWS + r] = r < count ? row[c] : 0;
        }
    }
}

/* The costs of states before the first step: none of the state that a row's chain begins with; 0 without `starts`. */
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
        const size_t to = (size_t)first * (size_t)groups;
        turn(weights + (size_t)first * (size_t)columns, (size_t)columns, count, columns, turned_weights);
        turn(inverses + to, (size_t)groups, count, groups, turned_inverses);
        turn(gains + to, (size_t)groups, count, groups, turned_gains);
        for (int32_t chain = 0; chain < EM_TRELLIS_CHAINS; chain++) {
            begin(&panel, NULL, count, chain);
            kernels->search_trellis(&panel, chain);
            trace(&panel, count, chain, codes + (size_t)first * (size_t)row_codes, row_codes);
        }
    }
    return EM_OK;
}

/* ---- feedback of errors -------------------------------------------------------------------------------- */

static int32_t block_columns(const em_trellis *t) { return EM_TRELLIS_BLOCK_STEPS * EM_TRELLIS_CHAINS * t->step_weights; }

static bool can_feed_back(const em_trellis *t, const em_trellis_fed *fed) {
    if (!fits(t, fed->rows, fed->columns) || fed->kept <= 0 || fed->kept > fed->columns || fed->ahead < 0) return false;
    return fed->kept % block_columns(t) == 0 && fed->ahead % block_columns(t) == 0;
}

/* The columns of one search at most. */
static int32_t searched_columns(const em_trellis *t, const em_trellis_fed *fed) {
    return fed->ahead < fed->columns ? block_columns(t) + fed->ahead : fed->columns;
}

/* What 16 rows have in scratch: numbers of columns (columns, 16) and of groups, what a search leaves, and a unit. */
typedef struct fed_panel {
    float *targets, *inverses, *gains, *steps;
    int32_t *ends, *words;
    float *values, *rests;
    uint8_t *codes;
} fed_panel;

/* Their places; returns the bytes of all. */
static size_t place(const em_trellis *t, const em_trellis_fed *fed, uint8_t *scratch, fed_panel *panel) {
    const size_t groups = (size_t)(fed->columns / EM_GROUP_COLUMNS), searched = (size_t)searched_columns(t, fed);
    const size_t floats[] = {(size_t)fed->columns, groups, groups, groups, EM_TRELLIS_STATES_MAX,
                             word_count(t, (int32_t)searched) / EM_PANEL_ROWS, EM_TRELLIS_UNIT_MAX, EM_TRELLIS_UNIT_MAX};
    float *at[8] = {NULL};
    size_t bytes = 0;
    for (int i = 0; i < 8; i++) {
        if (scratch) at[i] = (float *)(void *)(scratch + bytes);
        bytes += floats[i] * EM_PANEL_ROWS * sizeof(float);
    }
    if (scratch) {
        *panel = (fed_panel){at[0], at[1], at[2], at[3], (int32_t *)at[4], (int32_t *)at[5], at[6], at[7], scratch + bytes};
    }
    return bytes + searched / (size_t)t->step_weights * EM_PANEL_ROWS;
}

uint64_t em_trellis_feedback_scratch_bytes(const em_trellis *trellis, const em_trellis_fed *fed) {
    return can_feed_back(trellis, fed) ? place(trellis, fed, NULL, NULL) : 0;
}

/* Appends a unit's codes to a row's chain and to its codes; returns the weights in `values`, 16 floats from one to the next. */
static void append(const em_trellis *t, const uint8_t *found, int32_t chain, const float *steps, uint8_t *state, uint8_t *codes,
                   float *values) {
    const int32_t k = t->step_bits, state_bits = em_trellis_state_bits(t), window_mask = (1 << (state_bits + k)) - 1;
    int32_t window = *state & ((1 << state_bits) - 1);
    for (int32_t i = 0; i < EM_TRELLIS_BLOCK_STEPS; i++) {
        const uint8_t code = found[EM_TRELLIS_CHAINS * i + chain];
        codes[EM_TRELLIS_CHAINS * i + chain] = code;
        window = (window << k | code) & window_mask;
        for (int32_t v = 0; v < t->step_weights; v++) {
            const int32_t n = i * t->step_weights + v, group = EM_TRELLIS_CHAINS * n / EM_GROUP_COLUMNS;
            const float level = t->levels[v * t->level_count + t->numbers[window * t->step_weights + v]];
            values[n * EM_PANEL_ROWS] = level * steps[group * EM_PANEL_ROWS];
        }
    }
    *state = (uint8_t)(window & ((1 << state_bits) - 1));
}

/* One chain of the block at column `block`, of `count` rows from row `first` on. */
static void feed_unit(const em_kernels *kernels, const em_trellis *t, const em_trellis_fed *fed, const fed_panel *own,
                      int32_t first, int32_t count, int32_t block, int32_t chain, uint8_t *states, uint8_t *codes,
                      float *rests) {
    const int32_t width = block_columns(t), unit = width / EM_TRELLIS_CHAINS, left = fed->columns - block;
    const int32_t searched = width + fed->ahead < left ? width + fed->ahead : left, row_codes = searched / t->step_weights;
    const size_t column = (size_t)block * EM_PANEL_ROWS, group = (size_t)(block / EM_GROUP_COLUMNS) * EM_PANEL_ROWS;
    const em_trellis_panel panel = {
        .trellis = t,
        .columns = searched,
        .weights = own->targets + column,
        .inverses = own->inverses + group,
        .gains = own->gains + group,
        .importance = fed->importance + block,
        .words = own->words,
        .ends = own->ends,
    };
    begin(&panel, states + (size_t)first * EM_TRELLIS_CHAINS, count, chain);
    kernels->search_trellis(&panel, chain);
    trace(&panel, count, chain, own->codes, row_codes);
    const size_t kept_codes = (size_t)(fed->kept / t->step_weights);
    memset(own->values, 0, (size_t)unit * EM_PANEL_ROWS * sizeof *own->values);
    for (int32_t r = 0; r < count; r++) {
        const size_t row = (size_t)(first + r);
        append(t, own->codes + (size_t)r * (size_t)row_codes, chain, own->steps + group + r,
               states + row * EM_TRELLIS_CHAINS + chain, codes + row * kept_codes + block / t->step_weights, own->values + r);
    }
    const em_trellis_unit of_unit = {
        .targets = own->targets + column,
        .values = own->values,
        .rests = own->rests,
        .factor = fed->factors + (size_t)(block / unit + chain) * (size_t)(unit * unit),
        .rates = fed->rates + (int64_t)(block + chain) * fed->rate_floats + block,
        .rate_floats = fed->rate_floats,
        .unit = unit,
        .chain = chain,
        .columns = left,
    };
    kernels->feed_trellis(&of_unit);
    for (int32_t r = 0; r < count; r++) {
        float *to = rests + (size_t)(first + r) * (size_t)fed->kept + block + chain;
        for (int32_t i = 0; i < unit; i++) to[EM_TRELLIS_CHAINS * i] = own->rests[i * EM_PANEL_ROWS + r];
    }
}

int32_t em_trellis_feed_back(const em_kernels *kernels, const em_trellis *trellis, const em_trellis_fed *fed, uint8_t *states,
                             uint8_t *codes, float *rests, void *scratch) {
    if (!can_feed_back(trellis, fed)) return EM_BAD_ARGUMENT;
    const int32_t groups = fed->columns / EM_GROUP_COLUMNS;
    fed_panel panel;
    place(trellis, fed, scratch, &panel);
    for (int32_t first = 0; first < fed->rows; first += EM_PANEL_ROWS) {
        const int32_t count = fed->rows - first < EM_PANEL_ROWS ? fed->rows - first : EM_PANEL_ROWS;
        const size_t to = (size_t)first * (size_t)groups;
        turn(fed->targets + (int64_t)first * fed->target_floats, (size_t)fed->target_floats, count, fed->columns, panel.targets);
        turn(fed->inverses + to, (size_t)groups, count, groups, panel.inverses);
        turn(fed->gains + to, (size_t)groups, count, groups, panel.gains);
        turn(fed->steps + to, (size_t)groups, count, groups, panel.steps);
        for (int32_t block = 0; block < fed->kept; block += block_columns(trellis)) {
            for (int32_t chain = 0; chain < EM_TRELLIS_CHAINS; chain++) {
                feed_unit(kernels, trellis, fed, &panel, first, count, block, chain, states, codes, rests);
            }
        }
    }
    return EM_OK;
}
