/* Rows of the KV cache: where they lie, and how they are stored in its format. */
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

/* Rows from row `row` of a cache's rows on, which are `width` wide. */
static inline em_cached em_cached_rows(em_cache cache, int32_t width, size_t row) {
    static const uint8_t element_bytes[EM_CACHE_FORMATS] = {[EM_F32] = 4, [EM_F16] = 2, [EM_Q8] = 1};
    return (em_cached){
        .elements = (const uint8_t *)cache.elements + row * width * element_bytes[cache.format],
        .scales = cache.format == EM_Q8 ? cache.scales + row * em_group_count(width) : NULL,
        .row_width = width,
    };
}

/* Checks that the pages exist in which the blocks of `rate` tokens end that each row may see. */
static inline int32_t em_check_blocks(const int32_t *positions, const int32_t *sequences, const int32_t *pages,
                                      int32_t rate, int32_t tokens, int32_t sequence_count, int32_t table_pages,
                                      int32_t page_count) {
    for (int32_t t = 0; t < tokens; t++) {
        if (sequences[t] < 0 || sequences[t] >= sequence_count || positions[t] < 0) return EM_BAD_POSITION;
        const int64_t seen = ((int64_t)positions[t] + 1) / rate;
        if (t > 0 && sequences[t] == sequences[t - 1] && positions[t] == positions[t - 1] + 1 &&
            ((int64_t)positions[t] + 1) % rate) {
            continue; /* it sees what the row before sees */
        }
        for (int64_t row = 0; row < seen; row += rate < EM_PAGE_TOKENS ? EM_PAGE_TOKENS / rate : 1) {
            const int64_t block = ((row + 1) * rate - 1) / EM_PAGE_TOKENS;
            if (block >= table_pages) return EM_BAD_POSITION;
            const int32_t page = pages[(size_t)sequences[t] * table_pages + block];
            if (page < 0 || page >= page_count) return EM_BAD_POSITION;
        }
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
