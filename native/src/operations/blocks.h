/* Rows of the KV cache, and those of whole blocks of tokens among them. */
#ifndef EDGEMOE_BLOCKS_H
#define EDGEMOE_BLOCKS_H

#include "../operations.h"

/* Rows from row `row` of a cache's rows on, which are `width` wide. */
static inline em_cached em_cached_rows(em_cache cache, int32_t width, size_t row) {
    static const uint8_t element_bytes[EM_CACHE_FORMATS] = {[EM_F32] = 4, [EM_F16] = 2, [EM_Q8] = 1};
    return (em_cached){
        .elements = (const uint8_t *)cache.elements + row * width * element_bytes[cache.format],
        .scales = cache.format == EM_Q8 ? cache.scales + row * em_group_count(width) : NULL,
        .row_width = width,
    };
}

/* Which page of a sequence's tokens holds a block of `rate` tokens: that in which the block ends. */
static inline int32_t em_block_page(int64_t block, int64_t rate) {
    return (int32_t)(((block + 1) * rate - 1) / EM_PAGE_TOKENS);
}

/* Checks that each row's position has a place in the table, and the pages in which the blocks of `rate` tokens end that
 * it may see. */
static inline int32_t em_check_blocks(const int32_t *positions, const int32_t *sequences, const int32_t *pages,
                                      int32_t rate, int32_t tokens, int32_t sequence_count, int32_t table_pages,
                                      int32_t page_count) {
    for (int32_t t = 0; t < tokens; t++) {
        if (sequences[t] < 0 || sequences[t] >= sequence_count) return EM_BAD_POSITION;
        if (positions[t] < 0 || positions[t] / EM_PAGE_TOKENS >= table_pages) return EM_BAD_POSITION;
        const int64_t seen = ((int64_t)positions[t] + 1) / rate;
        /* A row that follows the one before sees one block more than that, or none. */
        const int goes_on = t > 0 && sequences[t] == sequences[t - 1] && positions[t] == positions[t - 1] + 1;
        if (goes_on && ((int64_t)positions[t] + 1) % rate) continue;
        for (int64_t row = goes_on ? seen - 1 : 0; row < seen; row += rate < EM_PAGE_TOKENS ? EM_PAGE_TOKENS / rate : 1) {
            const int32_t page = pages[(size_t)sequences[t] * table_pages + em_block_page(row, rate)];
            if (page < 0 || page >= page_count) return EM_BAD_POSITION;
        }
    }
    return EM_OK;
}

#endif
