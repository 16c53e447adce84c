/* What a run gives to each operation, and the operations. */
#ifndef EDGEMOE_OPERATIONS_H
#define EDGEMOE_OPERATIONS_H

#include "../kernels/kernels.h"
#include "layout.h"
#include "pool.h"

typedef struct em_run {
    const em_kernels *kernels;
    em_pool *pool;
    uint8_t *scratch;
    int32_t tokens;
    uint64_t *disk_ns; /* grows by what an operation waits for records; NULL: nobody asks */
} em_run;

/* What each operation has in src/operations: a run, which returns a status, and the bytes of scratch that a run of `tokens`
 * tokens needs. Those are computed before there are any buffers, from sizes alone. */
#define EM_DECLARE(kind, name)                                   \
    int32_t em_run_##name(const em_##name *name, const em_run *run); \
    size_t em_##name##_scratch_bytes(const em_##name *name, int32_t tokens);
EM_OPERATIONS(EM_DECLARE)
#undef EM_DECLARE

#define EM_NO_SCRATCH(name)                                                   \
    size_t em_##name##_scratch_bytes(const em_##name *name, int32_t tokens) { \
        (void)name, (void)tokens;                                             \
        return 0;                                                             \
    }

/* ---- activations in scratch, shared by linear layers and FFNs ------------------------------------------ */

/* Activations of `rows` rows for weights of the formats in use; quantised arrays only if some are quantised. */
typedef struct em_quantised {
    int8_t *values;
    em_group *groups;
} em_quantised;

em_quantised em_lay_out_quantised(em_layout *layout, int32_t rows, int32_t columns);

/* Quantises the rows whose `wanted` byte is not zero (NULL: all), with the pool if there are many. */
void em_quantise_rows(const em_run *run, const float *input, int32_t rows, int32_t columns, const uint8_t *wanted,
                      em_quantised quantised);

/* Activation rows, panels, and products of rows and panels that a task holds at a time: they bound its arrays on the
 * stack. A kernel copies its activation rows once for all panels of a call, so that more panels are better. */
enum { EM_ROWS_AT_ONCE = 32, EM_PANELS_AT_ONCE = 127, EM_PRODUCTS_AT_ONCE = EM_ROWS_AT_ONCE * 17 * EM_PANEL_ROWS };

/* Floats from the products of one activation row to those of the next: an odd number of cache lines, since rows that
 * lie a power of two apart share few lines of the first-level cache. */
static inline size_t em_products_stride(int32_t panels) { return (size_t)(panels | 1) * EM_PANEL_ROWS; }

/* The most panels whose products with `rows` activation rows, at most EM_ROWS_AT_ONCE, a task has room for. */
static inline int32_t em_panels_at_once(int32_t rows) {
    const int32_t fit = EM_PRODUCTS_AT_ONCE / EM_PANEL_ROWS / rows, odd = fit % 2 ? fit : fit - 1;
    return odd < EM_PANELS_AT_ONCE ? odd : EM_PANELS_AT_ONCE;
}

#endif
