/* The feedback of errors within columns that are searched together, for any vectors; the same numbers with all of them.
 *
 * An <isa>.c defines FLOATS (16 numbers, one of each row) and load_floats, store_floats, spread, mul, add_floats and
 * sub_floats, and then includes this. Every sum has one order, and nothing is fused. */
#ifndef EDGEMOE_TRELLIS_FEED_H
#define EDGEMOE_TRELLIS_FEED_H

#include <stddef.h>

#include "panel.h"

#define INLINE static inline __attribute__((always_inline))

/* Takes from the targets of `count` columns, one behind the other, what the rests of a unit cost there. */
INLINE void take_off(float *targets, const float *rates, int64_t rate_floats, const FLOATS *rests, int32_t unit, int count) {
    FLOATS sums[4];
    for (int n = 0; n < count; n++) sums[n] = load_floats(targets + n * EM_PANEL_ROWS);
    for (int32_t j = 0; j < unit; j++, rates += rate_floats) {
        for (int n = 0; n < count; n++) sums[n] = sub_floats(sums[n], mul(rests[j], spread(rates[n])));
    }
    for (int n = 0; n < count; n++) store_floats(targets + n * EM_PANEL_ROWS, sums[n]);
}

INLINE void feed(const em_trellis_unit *of) {
    const int32_t unit = of->unit, block = unit * EM_TRELLIS_CHAINS, chain = of->chain;
    FLOATS rests[EM_TRELLIS_UNIT_MAX];
    for (int32_t i = 0; i < unit; i++) {
        const FLOATS target = load_floats(of->targets + (EM_TRELLIS_CHAINS * i + chain) * EM_PANEL_ROWS);
        const FLOATS error = sub_floats(target, load_floats(of->values + i * EM_PANEL_ROWS));
        for (int32_t j = i; j < unit; j++) {
            const FLOATS part = mul(error, spread(of->factor[i * unit + j]));
            rests[j] = i ? add_floats(rests[j], part) : part;
        }
    }
    for (int32_t j = 0; j < unit; j++) store_floats(of->rests + j * EM_PANEL_ROWS, rests[j]);
    /* Of the block itself the chains that come later, then the blocks behind it. */
    for (int32_t first = 0; first < block; first += EM_TRELLIS_CHAINS) {
        for (int32_t c = first + chain + 1; c < first + EM_TRELLIS_CHAINS; c++) {
            take_off(of->targets + c * EM_PANEL_ROWS, of->rates + c, EM_TRELLIS_CHAINS * of->rate_floats, rests, unit, 1);
        }
    }
    for (int32_t c = block; c < of->columns; c += 4) {
        take_off(of->targets + c * EM_PANEL_ROWS, of->rates + c, EM_TRELLIS_CHAINS * of->rate_floats, rests, unit, 4);
    }
}

#endif
