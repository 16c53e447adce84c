/* The delta rule and the scans on one panel of a state, for any vectors; the same bits as generic.c.
 *
 * An <isa>.c defines VECTOR, FLOATS (of a vector) and the functions load, store, spread (one number to all), mul, add, sub, fused
 * (a * b + c) and fused_minus (c - a * b), and then includes this. A panel's row is EM_PANEL_ROWS / FLOATS vectors, and each
 * has four chains of sums at a time, so that the processor need not wait for one product before it begins the next.
 *
 * The first pass of the delta rule reads the state and the second one writes it: 8 KiB for keys of 128 channels, so that the panel stays in
 * the first-level cache over all rows of a call. */
#ifndef EDGEMOE_DELTA_VECTORS_H
#define EDGEMOE_DELTA_VECTORS_H

#include <stddef.h>

#include "../kernels.h"

enum { CHAINS = 4, VECTORS = EM_PANEL_ROWS / FLOATS };

#define EACH_VECTOR for (int32_t v = 0; v < VECTORS; v++)

static inline __attribute__((always_inline)) VECTOR fold(VECTOR chains[CHAINS][VECTORS], int32_t v) {
    return add(add(chains[0][v], chains[2][v]), add(chains[1][v], chains[3][v]));
}

static inline __attribute__((always_inline)) void clear(VECTOR chains[CHAINS][VECTORS]) {
    for (int32_t chain = 0; chain < CHAINS; chain++) EACH_VECTOR chains[chain][v] = spread(0);
}

static inline __attribute__((always_inline)) void read_row(const float *state, float key, VECTOR chain[VECTORS]) {
    EACH_VECTOR chain[v] = fused(spread(key), load(state + v * FLOATS), chain[v]);
}

static inline __attribute__((always_inline)) void write_row(float *state, float key, float query, VECTOR decay,
                                                            const VECTOR errors[VECTORS], VECTOR chain[VECTORS]) {
    EACH_VECTOR {
        const VECTOR row = fused(spread(key), errors[v], mul(decay, load(state + v * FLOATS)));
        store(state + v * FLOATS, row);
        chain[v] = fused(spread(query), row, chain[v]);
    }
}

/* Every row of the state decays, by its own factor if there are `decays`, and takes its share of what is added. */
static inline __attribute__((always_inline)) void write_rows(float *state, const float *key, const float *query,
                                                             const float *decays, float decay,
                                                             const VECTOR added[VECTORS], VECTOR chains[CHAINS][VECTORS],
                                                             int32_t width) {
    const VECTOR factor = spread(decay);
    int32_t i = 0;
    for (; i + CHAINS <= width; i += CHAINS) {
        for (int32_t c = 0; c < CHAINS; c++) {
            const VECTOR own = decays ? spread(decays[i + c]) : factor;
            write_row(state + (i + c) * EM_PANEL_ROWS, key[i + c], query[i + c], own, added, chains[c]);
        }
    }
    for (int32_t c = 0; i + c < width; c++) {
        const VECTOR own = decays ? spread(decays[i + c]) : factor;
        write_row(state + (i + c) * EM_PANEL_ROWS, key[i + c], query[i + c], own, added, chains[c]);
    }
}

static inline __attribute__((always_inline)) void scan(float *state, const em_scan_row *rows, int32_t row_count,
                                                       int32_t width) {
    for (int32_t r = 0; r < row_count; r++) {
        const em_scan_row *row = &rows[r];
        VECTOR chains[CHAINS][VECTORS], added[VECTORS];
        clear(chains);
        EACH_VECTOR added[v] = mul(spread(row->step), load(row->values + v * FLOATS));
        write_rows(state, row->key, row->query, NULL, row->decay, added, chains, width);
        EACH_VECTOR {
            store(row->output + v * FLOATS, fused(spread(row->skip), load(row->values + v * FLOATS), fold(chains, v)));
        }
    }
}

static inline __attribute__((always_inline)) void scan_channels(float *state, const em_channels_row *row, const float *skip,
                                                                int32_t width) {
    VECTOR chains[CHAINS][VECTORS], added[VECTORS];
    clear(chains);
    EACH_VECTOR added[v] = mul(load(row->steps + v * FLOATS), load(row->values + v * FLOATS));
    for (int32_t i = 0; i < width; i++) {
        VECTOR *chain = chains[i % CHAINS];
        const VECTOR key = spread(row->key[i]), query = spread(row->query[i]);
        EACH_VECTOR {
            const int32_t at = i * EM_PANEL_ROWS + v * FLOATS;
            const VECTOR kept = fused(key, added[v], mul(load(row->decays + at), load(state + at)));
            store(state + at, kept);
            chain[v] = fused(query, kept, chain[v]);
        }
    }
    EACH_VECTOR {
        const VECTOR sum = fold(chains, v);
        store(row->output + v * FLOATS, fused(load(skip + v * FLOATS), load(row->values + v * FLOATS), sum));
    }
}

static inline __attribute__((always_inline)) float read_key(const em_delta_row *row, int32_t i, int32_t by_row) {
    return by_row ? row->key[i] * row->decays[i] : row->key[i];
}

/* `by_row`, whether rows of the state have decays of their own, is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void delta_rows(float *state, const em_delta_row *rows, int32_t row_count,
                                                             int32_t width, int32_t by_row) {
    for (int32_t r = 0; r < row_count; r++) {
        const em_delta_row *row = &rows[r];
        const VECTOR decay = spread(row->decay);
        VECTOR chains[CHAINS][VECTORS], errors[VECTORS];
        clear(chains);
        int32_t i = 0;
        for (; i + CHAINS <= width; i += CHAINS) {
            for (int32_t c = 0; c < CHAINS; c++) {
                read_row(state + (i + c) * EM_PANEL_ROWS, read_key(row, i + c, by_row), chains[c]);
            }
        }
        for (int32_t c = 0; i + c < width; c++) {
            read_row(state + (i + c) * EM_PANEL_ROWS, read_key(row, i + c, by_row), chains[c]);
        }
        EACH_VECTOR {
            const VECTOR read = fold(chains, v), values = load(row->values + v * FLOATS);
            errors[v] = mul(spread(row->strength), by_row ? sub(values, read) : fused_minus(decay, read, values));
        }
        clear(chains);
        write_rows(state, row->key, row->query, by_row ? row->decays : NULL, row->decay, errors, chains, width);
        EACH_VECTOR store(row->output + v * FLOATS, fold(chains, v));
    }
}

static inline __attribute__((always_inline)) void delta(float *state, const em_delta_row *rows, int32_t row_count,
                                                        int32_t width) {
    if (rows->decays) {
        delta_rows(state, rows, row_count, width, 1);
    } else {
        delta_rows(state, rows, row_count, width, 0);
    }
}

#endif
