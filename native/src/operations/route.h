/* The order of choices, which routers share: the larger number first, on a tie the lower index. */
#ifndef EDGEMOE_ROUTE_H
#define EDGEMOE_ROUTE_H

#include <math.h>
#include <stdbool.h>

#include "../operations.h"

/* A NaN comes after every number, as it does in the reference's sort. */
static inline bool comes_before(float a, float b) { return a > b || (isnan(b) && !isnan(a)); }

/* Whether element `a` comes before element `b`: the larger first, on a tie the lower index. */
static inline bool precedes(const float *values, int32_t a, int32_t b) {
    return comes_before(values[a], values[b]) || (!comes_before(values[b], values[a]) && a < b);
}

/* The best element that comes after `previous` (-1: the best of all). */
static inline int32_t next_best(const float *values, int32_t count, int32_t previous) {
    int32_t best = -1;
    for (int32_t e = 0; e < count; e++) {
        if (previous >= 0 && !precedes(values, previous, e)) continue;
        if (best < 0 || comes_before(values[e], values[best])) best = e;
    }
    return best;
}

#endif
