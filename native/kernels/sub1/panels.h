/* The products of panels in the code sub1 with activation rows. An including file says before how groups are decoded, and
 * how products are added to sums, minus before plus, of EM_SUB1_ROWS rows at most:
 *
 *   static void decode(em_sub1_panel *panel, int32_t first, int32_t groups, uint8_t *lines);
 *   static void add_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int32_t count,
 *                        int32_t first, int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]);
 *
 * Groups are decoded once for all rows, a few at a time, so that lines stay in the first-level cache. */
#ifndef EDGEMOE_SUB1_PANELS_H
#define EDGEMOE_SUB1_PANELS_H

#include <math.h>

#include "layout.h"

enum { EM_SUB1_ROWS = 32 };

/* A panel that no encoder makes, as it contradicts itself, has weights of zero: nothing outside it is read. */
static void em_sub1_products(const em_matrix *matrix, int32_t number, const em_activations *x, const int32_t *rows,
                             int32_t count, float *out, size_t out_stride) {
    _Alignas(64) uint8_t lines[EM_SUB1_GROUPS * EM_SUB1_LINES_BYTES];
    float sums[EM_SUB1_ROWS][2 * EM_PANEL_ROWS] = {{0}}, half_minus[EM_PANEL_ROWS] = {0}, plus[EM_PANEL_ROWS] = {0};
    em_sub1_panel panel;
    if (em_sub1_open(matrix, number, &panel)) {
        em_sub1_levels(&panel, half_minus, plus);
        for (int32_t first = 0; first < x->group_count; first += EM_SUB1_GROUPS) {
            const int32_t left = x->group_count - first, groups = left < EM_SUB1_GROUPS ? left : EM_SUB1_GROUPS;
            decode(&panel, first, groups, lines);
            add_rows(lines, x, rows, count, first, groups, sums);
        }
    }
    for (int32_t i = 0; i < count; i++) {
        for (int row = 0; row < EM_PANEL_ROWS; row++) {
            const float of_plus = plus[row] * sums[i][EM_PANEL_ROWS + row];
            out[(size_t)i * out_stride + (size_t)row] = fmaf(half_minus[row], sums[i][row], of_plus);
        }
    }
}

#define EM_DEFINE_SUB1_PANELS(isa)                                                                                  \
    void em_panels_sub1_##isa(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x, \
                              const int32_t *rows, int32_t count, float *out, size_t out_stride) {                  \
        for (int32_t p = 0; p < panel_count; p++) {                                                                 \
            for (int32_t i = 0; i < count; i += EM_SUB1_ROWS) {                                                     \
                const int32_t now = count - i < EM_SUB1_ROWS ? count - i : EM_SUB1_ROWS;                            \
                float *to = out + (size_t)i * out_stride + (size_t)p * EM_PANEL_ROWS;                               \
                em_sub1_products(matrix, first + p, x, rows + i, now, to, out_stride);                              \
            }                                                                                                       \
        }                                                                                                           \
    }

#endif
