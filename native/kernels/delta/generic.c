/* The delta rule and the scans on one panel of a state, in plain C. */
#include <math.h>
#include <stddef.h>

#include "../kernels.h"

enum { CHAINS = 4 };

static inline float fold(float chains[CHAINS][EM_PANEL_ROWS], int32_t c) {
    return (chains[0][c] + chains[2][c]) + (chains[1][c] + chains[3][c]);
}

/* Every row of the state decays, by its own factor if there are `decays`, and takes its share of what is added; returns the
 * chains of sums of query times state. */
static inline void write_rows(float *state, const float *key, const float *query, const float *decays, float decay,
                              const float added[EM_PANEL_ROWS], float chains[CHAINS][EM_PANEL_ROWS], int32_t width) {
    for (int32_t i = 0; i < width; i++) {
        float *chain = chains[i % CHAINS];
        const float factor = decays ? decays[i] : decay;
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
            float *element = &state[i * EM_PANEL_ROWS + c];
            *element = fmaf(key[i], added[c], factor * *element);
            chain[c] = fmaf(query[i], *element, chain[c]);
        }
    }
}

void em_delta_generic(float *state, const em_delta_row *rows, int32_t row_count, int32_t width) {
    for (int32_t r = 0; r < row_count; r++) {
        const em_delta_row *row = &rows[r];
        float chains[CHAINS][EM_PANEL_ROWS] = {{0}}, errors[EM_PANEL_ROWS];
        for (int32_t i = 0; i < width; i++) {
            float *chain = chains[i % CHAINS];
            const float key = row->decays ? row->key[i] * row->decays[i] : row->key[i];
            for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
                chain[c] = fmaf(key, state[i * EM_PANEL_ROWS + c], chain[c]);
            }
        }
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
            const float read = fold(chains, c), value = row->values[c];
            errors[c] = row->strength * (row->decays ? value - read : fmaf(-row->decay, read, value));
            for (int32_t chain = 0; chain < CHAINS; chain++) chains[chain][c] = 0;
        }
        write_rows(state, row->key, row->query, row->decays, row->decay, errors, chains, width);
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) row->output[c] = fold(chains, c);
    }
}

void em_scan_generic(float *state, const em_scan_row *rows, int32_t row_count, int32_t width) {
    for (int32_t r = 0; r < row_count; r++) {
        const em_scan_row *row = &rows[r];
        float chains[CHAINS][EM_PANEL_ROWS] = {{0}}, added[EM_PANEL_ROWS];
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) added[c] = row->step * row->values[c];
        write_rows(state, row->key, row->query, NULL, row->decay, added, chains, width);
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) row->output[c] = fmaf(row->skip, row->values[c], fold(chains, c));
    }
}

void em_channels_generic(float *state, const em_channels_row *row, const float *skip, int32_t width) {
    float chains[CHAINS][EM_PANEL_ROWS] = {{0}}, added[EM_PANEL_ROWS];
    for (int32_t c = 0; c < EM_PANEL_ROWS; c++) added[c] = row->steps[c] * row->values[c];
    for (int32_t i = 0; i < width; i++) {
        float *chain = chains[i % CHAINS];
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
            const int32_t at = i * EM_PANEL_ROWS + c;
            state[at] = fmaf(row->key[i], added[c], row->decays[at] * state[at]);
            chain[c] = fmaf(row->query[i], state[at], chain[c]);
        }
    }
    for (int32_t c = 0; c < EM_PANEL_ROWS; c++) row->output[c] = fmaf(skip[c], row->values[c], fold(chains, c));
}
