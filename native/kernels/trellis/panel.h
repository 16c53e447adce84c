/* What a search for the codes of 16 rows reads and leaves behind. */
#ifndef EDGEMOE_TRELLIS_PANEL_H
#define EDGEMOE_TRELLIS_PANEL_H

#include "../kernels.h"

enum {
    EM_TRELLIS_CHAINS = 4,
    EM_TRELLIS_BLOCK_STEPS = 8,
    EM_TRELLIS_UNIT_MAX = 32, /* columns of a unit */
    EM_TRELLIS_STATES_MAX = 128,
    EM_TRELLIS_WINDOWS_MAX = 256,
    EM_TRELLIS_LEVELS_MAX = 256,
    EM_TRELLIS_STEP_WEIGHTS_MAX = 4,
    EM_TRELLIS_NEVER = 1 << 30, /* the cost of a state that no stream begins with */
};

/* Targets further from 0 than this count as this far. */
#define EM_TRELLIS_FARTHEST 128.0f

struct em_trellis_panel {
    const em_trellis *trellis;
    int32_t columns;
    const float *weights;    /* (columns, 16) */
    const float *inverses;   /* (columns / 32, 16): what makes targets of weights */
    const float *gains;      /* (columns / 32, 16), and */
    const float *importance; /* (columns): their product multiplies squared errors */
    int32_t *words;          /* (steps of a chain, words of a step, 16): the ways that were cheapest */
    int32_t *ends;           /* (states, 16): the costs of the states before a chain's first step, then after its last */
};

/* A unit of 16 rows whose codes are chosen, and the columns from its block's first one on. */
struct em_trellis_unit {
    float *targets;      /* (columns, 16) */
    const float *values; /* (unit, 16): what the unit's weights are now */
    float *rests;        /* (unit, 16): what is left of errors: of a column, those of its own and of earlier ones */
    const float *factor; /* (unit, unit), upper triangular: the rest of a column, by the errors of each */
    const float *rates;  /* (unit, columns), `rate_floats` from row to row: what a rest takes from a target */
    int64_t rate_floats;
    int32_t unit, chain, columns;
};

/* Bits of the stream that later windows see. */
static inline int32_t em_trellis_state_bits(const em_trellis *t) { return 4 + t->step_bits * (t->lag - 1); }

/* The logarithm of the number of ways into states that a word holds, of k bits each; the first is the highest. */
static inline int32_t em_trellis_way_bits(int32_t step_bits) { return step_bits == 1 ? 5 : step_bits == 2 ? 4 : 3; }

/* Words of all states. */
static inline int32_t em_trellis_step_words(const em_trellis *t) {
    return 1 << (em_trellis_state_bits(t) - em_trellis_way_bits(t->step_bits));
}

#endif
