/* Compress: whole blocks of tokens become rows of the cache.
 *
 * First threads share out blocks of channels: each goes through the rows in order, sums up what ends at a row, and puts
 * the row into the ring, as short convolutions do (recurrent.h), so that no thread reads what another one writes. Then
 * they share out the sums, which are normalised, rotated and stored as whole rows. */
#include "recurrent.h"
#include "store.h"

#include <math.h>

enum {
    BLOCK_CHANNELS = 64,
};

typedef struct compress_task {
    const em_compress *operation;
    const em_run *run;
    float *sums; /* (T, W): those of rows at which a block ends */
} compress_task;

static float *ring_row(const em_compress *c, int32_t sequence, int32_t position) {
    return c->inputs + ((size_t)sequence * c->ring + position % c->ring) * 2 * c->parts * c->head_dim;
}

static int ends_block(const em_compress *c, int32_t row) { return c->positions[row] % c->rate == c->rate - 1; }

/* Gates plus bias of `count` channels of a row, from `channel` of its parts on. */
static void biased_gates(const em_compress *c, int32_t row, int32_t channel, int32_t count, float *gates) {
    const int32_t width = c->parts * c->head_dim;
    const float *own = c->gates + (int64_t)row * width + channel;
    const float *bias = c->bias + (int64_t)(c->positions[row] % c->rate) * width + channel;
    for (int32_t i = 0; i < count; i++) gates[i] = own[i] + bias[i];
}

/* The sum that ends at a row of a segment that begins at row `first`, of `count` channels from `start` on: over the
 * tokens in order, of weights that are exponentials of the distances to the largest. */
static void sum_up(const compress_task *task, int32_t first, int32_t row, int32_t start, int32_t count) {
    const em_compress *c = task->operation;
    const int32_t tokens = c->rate * c->parts, width = c->parts * c->head_dim;
    float largest[BLOCK_CHANNELS], total[BLOCK_CHANNELS] = {0}, gates[BLOCK_CHANNELS];
    float *sum = task->sums + (int64_t)row * c->head_dim + start;
    for (int32_t i = 0; i < count; i++) largest[i] = -INFINITY, sum[i] = 0;
    for (int32_t pass = 0; pass < 2; pass++) {
        for (int32_t token = 0; token < tokens; token++) {
            const int32_t back = tokens - 1 - token, position = c->positions[row] - back, own = row - back;
            /* Of two parts the first is for the block after the token's, the second for its own. */
            const int32_t channel = token / c->rate * (c->parts - 1) * c->head_dim + start;
            if (position < 0) continue;
            const float *kept = own >= first ? NULL : ring_row(c, c->sequences[row], position) + channel;
            if (kept) {
                memcpy(gates, kept + width, (size_t)count * sizeof *gates);
            } else {
                biased_gates(c, own, channel, count, gates);
            }
            if (pass == 0) {
                for (int32_t i = 0; i < count; i++) largest[i] = gates[i] > largest[i] ? gates[i] : largest[i];
                continue;
            }
            const float *values = kept ? kept : c->values + (int64_t)own * width + channel;
            for (int32_t i = 0; i < count; i++) gates[i] -= largest[i];
            task->run->kernels->exponentials(gates, count, 0);
            for (int32_t i = 0; i < count; i++) total[i] += gates[i], sum[i] += gates[i] * values[i];
        }
    }
    for (int32_t i = 0; i < count; i++) sum[i] /= total[i];
}

/* Puts `count` channels of a row, from `start` on, into the ring. */
static void keep(const em_compress *c, int32_t row, int32_t start, int32_t count) {
    const int32_t width = c->parts * c->head_dim;
    float *kept = ring_row(c, c->sequences[row], c->positions[row]);
    for (int32_t part = 0; part < c->parts; part++) {
        const int32_t channel = part * c->head_dim + start;
        memcpy(kept + channel, c->values + (int64_t)row * width + channel, (size_t)count * sizeof *kept);
        biased_gates(c, row, channel, count, kept + width + channel);
    }
}

static void sum_channels(void *context, int64_t begin, int64_t end, int32_t thread) {
    const compress_task *task = context;
    const em_compress *c = task->operation;
    const int32_t tokens = task->run->tokens;
    (void)thread;
    for (int64_t number = begin; number < end; number++) {
        const int32_t start = (int32_t)number * BLOCK_CHANNELS, left = c->head_dim - start;
        const int32_t count = left < BLOCK_CHANNELS ? left : BLOCK_CHANNELS;
        for (int32_t first = 0; first < tokens;) {
            const int32_t stop = first + em_segment_rows(c->positions, c->sequences, first, tokens, tokens);
            for (int32_t row = first; row < stop; row++) {
                if (ends_block(c, row)) sum_up(task, first, row, start, count);
            }
            /* The ring holds the last rows only of a segment that is longer than it. */
            for (int32_t row = stop - first > c->ring ? stop - c->ring : first; row < stop; row++) {
                keep(c, row, start, count);
            }
            first = stop;
        }
    }
}

static void finish_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const compress_task *task = context;
    const em_compress *c = task->operation;
    const em_kernels *kernels = task->run->kernels;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        if (!ends_block(c, (int32_t)row)) continue;
        float *sums = task->sums + row * c->head_dim, *turned = sums + c->head_dim - c->rotated;
        const int32_t position = c->positions[row], block = position / EM_PAGE_TOKENS;
        const float mean = kernels->sum_squares(sums, c->head_dim) / (float)c->head_dim;
        const float factor = 1.0f / sqrtf(mean + c->epsilon);
        for (int32_t i = 0; i < c->head_dim; i++) sums[i] = sums[i] * factor * c->norm[i];
        const int64_t angles = (int64_t)(position - c->rate + 1) * (c->rotated / 2);
        for (int32_t i = 0; i < c->rotated / 2; i++) {
            const float a = turned[2 * i], b = turned[2 * i + 1];
            const float cosine = c->cosine[angles + i], sine = c->sine[angles + i];
            turned[2 * i] = a * cosine - b * sine;
            turned[2 * i + 1] = b * cosine + a * sine;
        }
        const int32_t page = c->pages[(size_t)c->sequences[row] * c->table_pages + block];
        const size_t to = (size_t)page * c->block_rows + position % EM_PAGE_TOKENS / c->rate;
        em_store_columns(kernels, sums, 0, c->head_dim, c->head_dim, c->compressed, to);
    }
}

size_t em_compress_scratch_bytes(const em_compress *compress, int32_t tokens) {
    return (size_t)tokens * compress->head_dim * sizeof(float);
}

int32_t em_run_compress(const em_compress *c, const em_run *run) {
    if (c->parts < 1 || c->parts > 2 || c->rate < 1 || !em_is_cache_format(c->compressed.format)) return EM_BAD_OPERATION;
    const int32_t status = em_check_places(c->positions, c->sequences, c->pages, run->tokens, c->sequence_count,
                                           c->table_pages, c->page_count);
    if (status != EM_OK) return status;
    int64_t ends = 0;
    for (int32_t t = 0; t < run->tokens; t++) {
        if (c->positions[t] >= c->context) return EM_BAD_POSITION;
        ends += ends_block(c, t);
    }
    compress_task task = {c, run, (float *)(void *)run->scratch};
    const int64_t blocks = (c->head_dim + BLOCK_CHANNELS - 1) / BLOCK_CHANNELS;
    const int64_t products = (run->tokens + ends * c->rate * c->parts * 8) * BLOCK_CHANNELS;
    em_pool_for(run->pool, blocks, (EM_CHUNK_PRODUCTS + products - 1) / products, sum_channels, &task);
    if (ends > 0) em_pool_for(run->pool, run->tokens, 8, finish_rows, &task);
    return EM_OK;
}
