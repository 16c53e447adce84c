/* Rows on their way into the KV cache: where they go, and in which format. */
#ifndef EDGEMOE_STORE_H
#define EDGEMOE_STORE_H

#include "../operations.h"

#include <string.h>

/* Checks that each row's sequence and position exist, and the page of the position. */
static inline int32_t em_check_places(const int32_t *positions, const int32_t *sequences, const int32_t *pages,
                                      int32_t tokens, int32_t sequence_count, int32_t table_pages, int32_t page_count) {
    for (int32_t t = 0; t < tokens; t++) {
        const int32_t sequence = sequences[t], block = positions[t] / EM_PAGE_TOKENS;
        if (sequence < 0 || sequence >= sequence_count) return EM_BAD_POSITION;
        if (positions[t] < 0 || block >= table_pages) return EM_BAD_POSITION;
        const int32_t page = pages[(size_t)sequence * table_pages + block];
        if (page < 0 || page >= page_count) return EM_BAD_POSITION;
    }
    return EM_OK;
}

/* Stores columns start .. start + count - 1 of row `to` of a cache's rows, which are `width` wide; start is a multiple
 * of a group. */
static inline void em_store_columns(const em_kernels *kernels, const float *values, int32_t start, int32_t count,
                                    int32_t width, em_cache cache, size_t to) {
    const size_t at = to * width + start;
    if (cache.format == EM_F32) {
        memcpy((float *)cache.elements + at, values, (size_t)count * sizeof(float));
    } else if (cache.format == EM_F16) {
        kernels->to_half(values, (uint16_t *)cache.elements + at, count);
    } else {
        const size_t group = to * em_group_count(width) + start / EM_GROUP_COLUMNS;
        kernels->to_q8(values, (int8_t *)cache.elements + at, cache.scales + group, count);
    }
}

#endif
