/* StoreBlockKeys: each whole block of tokens gets a key, the mean of its tokens' rows.
 *
 * One thread writes the keys that a run completes: there is one for several tokens, as wide as a head. */
#include "recurrent.h"
#include "store.h"

#include <math.h>

static const float *input_at(const em_store_block_keys *c, int32_t first, int32_t row, int32_t back) {
    if (row - back >= first) return c->keys + (size_t)(row - back) * c->head_dim;
    const int32_t place = (c->positions[row] - back) % c->ring;
    return c->inputs + ((size_t)c->sequences[row] * c->ring + place) * c->head_dim;
}

/* Writes the key of the block that the token of a row completes, of a segment that begins at row `first`. */
static void write_key(const em_store_block_keys *c, const em_kernels *kernels, int32_t first, int32_t row) {
    const int32_t width = c->head_dim, half = c->rotated / 2, tokens = (int32_t)c->rate, position = c->positions[row];
    float key[EM_WIDEST_BLOCK_KEY] = {0};
    for (int32_t back = tokens - 1; back >= 0; back--) {
        const float *input = input_at(c, first, row, back);
        for (int32_t i = 0; i < width; i++) key[i] += input[i];
    }
    for (int32_t i = 0; i < width; i++) key[i] *= 1.0f / (float)tokens;
    const float factor = 1.0f / sqrtf(kernels->sum_squares(key, width) / (float)width + c->epsilon);
    for (int32_t i = 0; i < width; i++) key[i] = key[i] * factor * c->norm[i];
    const size_t angles = (size_t)(position - tokens + 1) * half;
    const float *cosine = c->cosine + angles, *sine = c->sine + angles;
    for (int32_t i = 0; i < half; i++) {
        const float a = key[i], b = key[half + i];
        key[i] = a * cosine[i] - b * sine[i];
        key[half + i] = b * cosine[i] + a * sine[i];
    }
    const int32_t page = c->pages[(size_t)c->sequences[row] * c->table_pages + position / EM_PAGE_TOKENS];
    const size_t to = (size_t)page * c->block_rows + position % EM_PAGE_TOKENS / tokens;
    em_store_columns(kernels, key, 0, width, width, c->block_keys, to);
}

EM_NO_SCRATCH(store_block_keys)

int32_t em_run_store_block_keys(const em_store_block_keys *c, const em_run *run) {
    const int32_t tokens = run->tokens, width = c->head_dim;
    if (c->rate < 1 || c->ring < c->rate - 1 || width > EM_WIDEST_BLOCK_KEY || c->rotated > width ||
        !em_is_cache_format(c->block_keys.format)) {
        return EM_BAD_OPERATION;
    }
    const int32_t status = em_check_places(c->positions, c->sequences, c->pages, tokens, c->sequence_count,
                                           c->table_pages, c->page_count);
    if (status != EM_OK) return status;
    for (int32_t t = 0; t < tokens; t++) {
        if (c->positions[t] >= c->context) return EM_BAD_POSITION;
    }
    for (int32_t first = 0; first < tokens;) {
        const int32_t end = first + em_segment_rows(c->positions, c->sequences, first, tokens, tokens);
        for (int32_t row = first; row < end; row++) {
            if ((c->positions[row] + 1) % c->rate == 0) write_key(c, run->kernels, first, row);
        }
        /* The ring holds the last rows only of a segment that is longer than it. */
        for (int32_t row = end - first > c->ring ? end - c->ring : first; row < end; row++) {
            const size_t place = (size_t)c->sequences[row] * c->ring + c->positions[row] % c->ring;
            memcpy(c->inputs + place * width, c->keys + (size_t)row * width, (size_t)width * sizeof(float));
        }
        first = end;
    }
    return EM_OK;
}
