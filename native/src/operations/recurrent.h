/* What the operations with a fixed state for each sequence have in common: rows in segments, states in panels.
 *
 * Rows that follow one another at neighbouring positions of one sequence are a segment. */
#ifndef EDGEMOE_RECURRENT_H
#define EDGEMOE_RECURRENT_H

#include "../operations.h"

#include <string.h>

enum {
    /* A chunk of fewer products than this costs more to hand out than to do. */
    EM_CHUNK_PRODUCTS = 8192,
};

/* The number of rows from `first` on that are one segment, at most `most`. */
static inline int32_t em_segment_rows(const int32_t *positions, const int32_t *sequences, int32_t first, int32_t tokens,
                                      int32_t most) {
    int32_t row = first + 1;
    while (row < tokens && row - first < most && sequences[row] == sequences[first] &&
           positions[row] == positions[row - 1] + 1) {
        row++;
    }
    return row - first;
}

/* Whether every row has a sequence with a state, and a position. */
static inline int32_t em_check_rows(const int32_t *positions, const int32_t *sequences, int32_t sequence_count,
                                    int32_t tokens) {
    for (int32_t t = 0; t < tokens; t++) {
        if (sequences[t] < 0 || sequences[t] >= sequence_count || positions[t] < 0) return EM_BAD_POSITION;
    }
    return EM_OK;
}

/* How many parts the panels of a head are shared out in: one, unless heads are few. */
static inline int32_t em_parts_of_panels(int32_t panels, int32_t heads, int32_t threads) {
    int32_t parts = 1;
    while (parts < panels && (int64_t)parts * heads < 2 * (int64_t)threads) parts++;
    return parts;
}

/* The values of a panel of `columns` columns: those at `from`, or, where these are fewer than a kernel takes, a copy with
 * zeros after them in `room` (EM_PANEL_ROWS). */
static inline const float *em_panel_values(const float *from, int32_t columns, float *room) {
    if (columns >= EM_PANEL_ROWS) return from;
    memset(room, 0, EM_PANEL_ROWS * sizeof *room);
    memcpy(room, from, (size_t)columns * sizeof *room);
    return room;
}

#endif
