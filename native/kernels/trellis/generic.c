/* The search for codes of trellis formats, and the feedback of errors, in plain C. */
#include <stdbool.h>
#include <stdint.h>

#include "panel.h"

typedef struct ints {
    int32_t at[EM_PANEL_ROWS];
} INTS;

typedef struct floats {
    float at[EM_PANEL_ROWS];
} FLOATS;

/* A function of two vectors, lane by lane. */
#define LANEWISE(type, name, expression)                                                                              \
    static inline type name(type a, type b) {                                                                         \
        for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = expression;                                                 \
        return a;                                                                                                     \
    }

LANEWISE(FLOATS, mul, a.at[r] * b.at[r])
LANEWISE(FLOATS, add_floats, a.at[r] + b.at[r])
LANEWISE(FLOATS, sub_floats, a.at[r] - b.at[r])
LANEWISE(FLOATS, smaller_float, a.at[r] < b.at[r] ? a.at[r] : b.at[r])
LANEWISE(FLOATS, larger_float, a.at[r] > b.at[r] ? a.at[r] : b.at[r])
LANEWISE(INTS, add, a.at[r] + b.at[r])
LANEWISE(INTS, sub, a.at[r] - b.at[r])
LANEWISE(INTS, smaller, a.at[r] < b.at[r] ? a.at[r] : b.at[r])
LANEWISE(INTS, both, a.at[r] & b.at[r])
LANEWISE(INTS, either, a.at[r] | b.at[r])

static inline bool none_larger(FLOATS a, FLOATS b) {
    bool none = true;
    for (int r = 0; r < EM_PANEL_ROWS; r++) none &= a.at[r] <= b.at[r];
    return none;
}

static inline FLOATS load_floats(const float *at) {
    FLOATS a;
    for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = at[r];
    return a;
}

static inline INTS load_ints(const int32_t *at) {
    INTS a;
    for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = at[r];
    return a;
}

static inline FLOATS spread(float number) {
    FLOATS a;
    for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = number;
    return a;
}

static inline INTS truncate(FLOATS floats) {
    INTS a;
    for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = (int32_t)floats.at[r];
    return a;
}

static inline void store_ints(int32_t *at, INTS a) {
    for (int r = 0; r < EM_PANEL_ROWS; r++) at[r] = a.at[r];
}

static inline void store_floats(float *at, FLOATS a) {
    for (int r = 0; r < EM_PANEL_ROWS; r++) at[r] = a.at[r];
}

static inline INTS spread_int(int32_t number) {
    INTS a;
    for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = number;
    return a;
}

static inline INTS shift_left(INTS a, int32_t bits) {
    for (int r = 0; r < EM_PANEL_ROWS; r++) a.at[r] = (int32_t)((uint32_t)a.at[r] << bits);
    return a;
}

#include "feed.h"
#include "search.h"

void em_search_trellis_generic(const em_trellis_panel *panel, int32_t chain) { search(panel, chain); }

void em_feed_trellis_generic(const em_trellis_unit *unit) { feed(unit); }
