/* The search for the codes of a chain (Viterbi), for any vectors; the same costs with all of them.
 *
 * An <isa>.c defines INTS and FLOATS (16 numbers, one of each row) and the functions load_floats, load_ints,
 * spread, mul, add_floats, smaller_float, larger_float, none_larger (in any row), truncate (floats to ints), store_ints,
 * spread_int, add, sub, smaller, both (and), either (or) and shift_left, and then includes this.
 *
 * A state is what later windows see of the stream: the last bits of the window but k. A step goes from each state with each
 * code through a window to a state; of the 2^k ways into a state the cheapest is kept. Costs are integers, multiples of 2^k;
 * the lowest k bits of a state's cost hold those oldest bits of the state that no later state has: so a minimum of costs
 * says which way it came. What is kept of a step is that number for each state, several in a word.
 *
 * Costs are relative to that of state 0 before each step. As many steps as make any state of a stream cost at most
 * 3 * 2^28, or in n1, where they are seven, 7 * 2^26 (em_trellis.dearest says what one weight may cost): no sum
 * overflows, up or down, whichever state streams begin with, and none that begins with another one is ever cheapest. */
#ifndef EDGEMOE_TRELLIS_SEARCH_H
#define EDGEMOE_TRELLIS_SEARCH_H

#include <stdbool.h>
#include <stddef.h>

#include "panel.h"

#define INLINE static inline __attribute__((always_inline))

/* (level - 2 * target) * level + constant, times the penalty, which both have. */
INLINE FLOATS cost_of(float level, FLOATS penalty, FLOATS linear, FLOATS constant) {
    const FLOATS own = spread(level);
    return add_floats(mul(add_floats(mul(penalty, own), linear), own), constant);
}

/* The cost of each level for one weight: penalty * ((target - level)^2 - the smallest such square), at most `dearest`.
 *
 * Between the first and the last level no cost is above the larger one of theirs, but for a rounding: where twice of that is
 * not above `dearest`, none is. */
INLINE void fill_costs(INTS *costs, const float *levels, int32_t level_count, FLOATS target, FLOATS penalty, float dearest,
                       int32_t k) {
    target = smaller_float(larger_float(target, spread(-EM_TRELLIS_FARTHEST)), spread(EM_TRELLIS_FARTHEST));
    const FLOATS nearest = smaller_float(larger_float(target, spread(levels[0])), spread(levels[level_count - 1]));
    /* (level - 2 * target) * level + (2 * target - nearest) * nearest */
    const FLOATS most = spread(dearest), linear = mul(penalty, mul(target, spread(-2)));
    const FLOATS rest = add_floats(mul(target, spread(2)), mul(nearest, spread(-1)));
    const FLOATS constant = mul(penalty, mul(rest, nearest));
    const FLOATS first = cost_of(levels[0], penalty, linear, constant);
    const FLOATS last = cost_of(levels[level_count - 1], penalty, linear, constant);
    if (none_larger(larger_float(first, last), spread(dearest / 2))) {
        for (int32_t n = 0; n < level_count; n++) {
            costs[n] = shift_left(truncate(cost_of(levels[n], penalty, linear, constant)), k);
        }
        return;
    }
    for (int32_t n = 0; n < level_count; n++) {
        costs[n] = shift_left(truncate(smaller_float(cost_of(levels[n], penalty, linear, constant), most)), k);
    }
}

/* One step of all states. `places` are byte offsets of the costs of windows' levels, in the order in which they are read here.
 * k, step_weights and state_bits are constants wherever this is inlined. */
INLINE void take_step(const INTS *before, INTS *after, const INTS *costs, const uint16_t *places, int32_t *words, int32_t k,
                      int32_t step_weights, int32_t state_bits) {
    const int32_t codes = 1 << k, kept_bits = state_bits - k, ways = 1 << em_trellis_way_bits(k);
    const int32_t alike = codes < ways ? codes : ways; /* states that are reached from the same ones */
    const INTS low = spread_int(codes - 1), base = before[0];
    const bool few = codes <= 4; /* then they stay in registers, which a compiler cannot know of `before` beside `after` */
    INTS kept[4];
    for (int32_t first = 0; first < 1 << state_bits; first += ways) {
        INTS word = spread_int(0);
        for (int32_t group = first; group < first + ways; group += alike) {
            const INTS *from = before + (group >> k);
            for (int32_t oldest = 0; few && oldest < codes; oldest++) kept[oldest] = from[oldest << kept_bits];
            for (int32_t state = group; state < group + alike; state++) {
                INTS best = spread_int(INT32_MAX);
                for (int32_t oldest = 0; oldest < codes; oldest++) {
                    INTS cost = few ? kept[oldest] : from[oldest << kept_bits];
                    for (int32_t v = 0; v < step_weights; v++) {
                        cost = add(cost, *(const INTS *)((const char *)costs + *places++));
                    }
                    best = smaller(best, cost);
                }
                const INTS way = both(best, low);
                after[state] = add(sub(best, way), sub(spread_int(state >> kept_bits), base));
                word = either(shift_left(word, k), way);
            }
        }
        store_ints(words, word);
        words += EM_PANEL_ROWS;
    }
}

INLINE void fill_places(const em_trellis *trellis, uint16_t *places, int32_t k, int32_t step_weights, int32_t state_bits) {
    for (int32_t state = 0; state < 1 << state_bits; state++) {
        for (int32_t oldest = 0; oldest < 1 << k; oldest++) {
            const int32_t window = oldest << state_bits | state;
            for (int32_t v = 0; v < step_weights; v++) {
                const int32_t level = trellis->numbers[window * step_weights + v] + v * trellis->level_count;
                *places++ = (uint16_t)(level * (int32_t)sizeof(INTS));
            }
        }
    }
}

INLINE void search_panel(const em_trellis_panel *panel, int32_t chain, int32_t k, int32_t step_weights, int32_t state_bits) {
    const em_trellis *trellis = panel->trellis;
    const int32_t states = 1 << state_bits, levels = trellis->level_count;
    const int32_t steps = panel->columns / (EM_TRELLIS_CHAINS * step_weights);
    const size_t step_words = (size_t)em_trellis_step_words(trellis) * EM_PANEL_ROWS;
    INTS costs[EM_TRELLIS_STEP_WEIGHTS_MAX * EM_TRELLIS_LEVELS_MAX], metrics[2][EM_TRELLIS_STATES_MAX];
    uint16_t places[EM_TRELLIS_WINDOWS_MAX * EM_TRELLIS_STEP_WEIGHTS_MAX];
    fill_places(trellis, places, k, step_weights, state_bits);
    for (int32_t s = 0; s < states; s++) metrics[0][s] = load_ints(panel->ends + s * EM_PANEL_ROWS);
    for (int32_t i = 0; i < steps; i++) {
        for (int32_t v = 0; v < step_weights; v++) {
            const int32_t column = EM_TRELLIS_CHAINS * (i * step_weights + v) + chain;
            const size_t group = (size_t)(column / EM_GROUP_COLUMNS) * EM_PANEL_ROWS;
            const FLOATS weight = load_floats(panel->weights + (size_t)column * EM_PANEL_ROWS);
            const FLOATS target = mul(weight, load_floats(panel->inverses + group));
            const FLOATS penalty = mul(load_floats(panel->gains + group), spread(panel->importance[column]));
            fill_costs(costs + v * levels, trellis->levels + v * levels, levels, target, penalty, trellis->dearest, k);
        }
        take_step(metrics[i & 1], metrics[~i & 1], costs, places, panel->words + (size_t)i * step_words, k, step_weights,
                  state_bits);
    }
    for (int32_t s = 0; s < states; s++) store_ints(panel->ends + s * EM_PANEL_ROWS, metrics[steps & 1][s]);
}

INLINE void search(const em_trellis_panel *panel, int32_t chain) {
    switch (panel->trellis->step_bits * 10 + panel->trellis->step_weights) {
    case 41: search_panel(panel, chain, 4, 1, 4); break;
    case 31: search_panel(panel, chain, 3, 1, 4); break;
    case 21: search_panel(panel, chain, 2, 1, 6); break;
    case 11: search_panel(panel, chain, 1, 1, 7); break;
    case 32: search_panel(panel, chain, 3, 2, 4); break;
    case 34: search_panel(panel, chain, 3, 4, 4); break;
    default: break;
    }
}

#endif
