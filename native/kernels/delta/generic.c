/* The delta rule on one panel of a state, in plain C. */
#include <math.h>

#include "../kernels.h"

enum { CHAINS = 4 };

static inline float fold(float chains[CHAINS][EM_PANEL_ROWS], int32_t c) {
    return (chains[0][c] + chains[2][c]) + (chains[1][c] + chains[3][c]);
}

void em_delta_generic(float *state, const em_delta_row *rows, int32_t row_count, int32_t width) {
    for (int32_t r = 0; r < row_count; r++) {
        const em_delta_row *row = &rows[r];
        float chains[CHAINS][EM_PANEL_ROWS] = {{0}}, errors[EM_PANEL_ROWS];
        for (int32_t i = 0; i < width; i++) {
            float *chain = chains[i % CHAINS];
            for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
                chain[c] = fmaf(row->key[i], state[i * EM_PANEL_ROWS + c], chain[c]);
            }
        }
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
            errors[c] = row->strength * fmaf(-row->decay, fold(chains, c), row->values[c]);
            for (int32_t chain = 0; chain < CHAINS; chain++) chains[chain][c] = 0;
        }
        for (int32_t i = 0; i < width; i++) {
            float *chain = chains[i % CHAINS];
            for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
                float *element = &state[i * EM_PANEL_ROWS + c];
                *element = fmaf(row->key[i], errors[c], row->decay * *element);
                chain[c] = fmaf(row->query[i], *element, chain[c]);
            }
        }
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) row->output[c] = fold(chains, c);
    }
}
