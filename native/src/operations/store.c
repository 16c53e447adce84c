/* Storing in the KV cache: keys and values of each head, or one latent row for all heads. */
#include "store.h"

enum {
    /* A chunk of fewer numbers than this costs more to hand out than to do. */
    CHUNK_NUMBERS = 8192,
    LATENT_AT_ONCE = 8 * EM_GROUP_COLUMNS,
};

typedef struct store_task {
    const void *operation;
    const em_run *run;
} store_task;

static int32_t run_rows(const void *operation, const em_run *run, em_task *rows, int64_t row_count, int64_t width) {
    store_task task = {operation, run};
    em_pool_for(run->pool, row_count, (CHUNK_NUMBERS + width - 1) / width, rows, &task);
    return EM_OK;
}

/* ---- keys and values ---------------------------------------------------------------------------------- */

static void store_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const store_task *task = context;
    const em_store_kv *s = task->operation;
    const em_kernels *kernels = task->run->kernels;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const int64_t token = row / s->kv_heads, head = row % s->kv_heads;
        const int32_t position = s->positions[token];
        const int32_t *pages = s->pages + (size_t)s->sequences[token] * s->table_pages;
        const size_t page = (size_t)pages[position / EM_PAGE_TOKENS];
        const size_t to = (page * s->kv_heads + head) * EM_PAGE_TOKENS + position % EM_PAGE_TOKENS;
        em_store_columns(kernels, s->keys + row * s->head_dim, 0, s->head_dim, s->head_dim, s->key_cache, to);
        em_store_columns(kernels, s->values + row * s->value_dim, 0, s->value_dim, s->value_dim, s->value_cache, to);
    }
}

EM_NO_SCRATCH(store_kv)

int32_t em_run_store_kv(const em_store_kv *store, const em_run *run) {
    if (!em_is_cache_format(store->key_cache.format) || !em_is_cache_format(store->value_cache.format)) {
        return EM_BAD_OPERATION;
    }
    const int32_t status = em_check_places(store->positions, store->sequences, store->pages, run->tokens,
                                           store->sequence_count, store->table_pages, store->page_count);
    if (status != EM_OK) return status;
    return run_rows(store, run, store_rows, (int64_t)run->tokens * store->kv_heads, store->head_dim);
}

/* ---- latent rows -------------------------------------------------------------------------------------- */

/* A group of 8 bits may have elements of both parts, so they are put together, some whole groups at a time. */
static void store_latent_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const store_task *task = context;
    const em_store_latent *s = task->operation;
    (void)thread;
    for (int64_t token = begin; token < end; token++) {
        const int32_t position = s->positions[token];
        const int32_t *pages = s->pages + (size_t)s->sequences[token] * s->table_pages;
        const size_t to = (size_t)pages[position / EM_PAGE_TOKENS] * EM_PAGE_TOKENS + position % EM_PAGE_TOKENS;
        const float *latent = s->latent + token * s->value_dim, *rotary = s->rotary + token * s->rotated;
        for (int32_t start = 0; start < s->head_dim; start += LATENT_AT_ONCE) {
            const int32_t left = s->head_dim - start, count = left < LATENT_AT_ONCE ? left : LATENT_AT_ONCE;
            float both[LATENT_AT_ONCE];
            for (int32_t i = 0; i < count; i++) {
                const int32_t column = start + i;
                both[i] = column < s->value_dim ? latent[column] : rotary[column - s->value_dim];
            }
            em_store_columns(task->run->kernels, both, start, count, s->head_dim, s->latent_cache, to);
        }
    }
}

EM_NO_SCRATCH(store_latent)

int32_t em_run_store_latent(const em_store_latent *store, const em_run *run) {
    if (!em_is_cache_format(store->latent_cache.format)) return EM_BAD_OPERATION;
    const int32_t status = em_check_places(store->positions, store->sequences, store->pages, run->tokens,
                                           store->sequence_count, store->table_pages, store->page_count);
    if (status != EM_OK) return status;
    return run_rows(store, run, store_latent_rows, run->tokens, store->head_dim);
}
