/* How blocks of GGUF's IQ1, IQ2 and IQ3 types land (edgemoe/kernels/grid_rows.py says where their numbers stand). */
#ifndef EDGEMOE_LANDING_GRID_H
#define EDGEMOE_LANDING_GRID_H

#include <stdbool.h>

#include "edgemoe.h"

/* Lands `rows` rows of `columns` columns, of blocks of `block_bytes` bytes, as one panel of a format with a grid, which are
 * at most 16; what is missing of it is the grid's first entry with a scale of zero. False where a scale is not finite. */
bool em_land_grid_rows(int32_t format, int32_t columns, int32_t block_bytes, int32_t rows, const uint8_t *from,
                       uint8_t *panel);

#endif
