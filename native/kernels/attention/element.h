/* One element of a cache, of which vectors take whole runs; meant for files kernels/attention/<isa>.c. */
#ifndef EDGEMOE_ELEMENT_H
#define EDGEMOE_ELEMENT_H

#include "../half.h"
#include "../kernels.h"

static inline size_t em_scale_index(em_cached rows, size_t row, int32_t column) {
    return row * (size_t)em_group_count(rows.row_width) + (size_t)(column / EM_GROUP_COLUMNS);
}

static inline float em_cached_element(em_cached rows, size_t row, int32_t column, int format) {
    const size_t at = row * (size_t)rows.row_width + (size_t)column;
    if (format == EM_F32) return ((const float *)rows.elements)[at];
    if (format == EM_F16) return em_half_to_float(((const uint16_t *)rows.elements)[at]);
    const float scale = em_half_to_float(rows.scales[em_scale_index(rows, row, column)]);
    return (float)((const int8_t *)rows.elements)[at] * scale;
}

#endif
