/* SelectBlocks: which blocks of earlier tokens attention sees.
 *
 * The keys of the blocks that a run completes are written first, by one thread: there is one for several tokens, as wide
 * as a head. Then threads share out the pages of all rows, whose blocks they score, and then the rows. A row's scores lie
 * in a buffer of the caller; they are never below zero, so that their bits are ordered as they are, and the least that is
 * kept is found byte by byte. */
#include "recurrent.h"
#include "store.h"

#include "../../kernels/half.h"

#include <math.h>
#include <stdbool.h>

enum {
    /* A chunk of fewer products than this costs more to hand out than to do. */
    CHUNK_PRODUCTS = 8192,
    PAGES_AT_ONCE = 8,
};

typedef struct choose_task {
    const em_select_blocks *operation;
    const em_run *run;
    int32_t spans; /* of PAGES_AT_ONCE pages, up to the last one of the run */
} choose_task;

static int32_t block_tokens(const em_select_blocks *c) { return EM_PAGE_TOKENS / c->page_blocks; }

static const float *input_at(const em_select_blocks *c, int32_t first, int32_t row, int32_t back) {
    if (row - back >= first) return c->keys + (size_t)(row - back) * c->head_dim;
    const int32_t place = (c->positions[row] - back) % c->ring;
    return c->inputs + ((size_t)c->sequences[row] * c->ring + place) * c->head_dim;
}

/* Writes the key of the block that the token of a row completes, of a segment that begins at row `first`. */
static void write_key(const em_select_blocks *c, const em_kernels *kernels, int32_t first, int32_t row) {
    const int32_t width = c->head_dim, half = c->rotated / 2, tokens = block_tokens(c);
    const int32_t begin = c->positions[row] - tokens + 1;
    float key[EM_WIDEST_SELECTING_HEAD] = {0};
    for (int32_t back = tokens - 1; back >= 0; back--) {
        const float *input = input_at(c, first, row, back);
        for (int32_t i = 0; i < width; i++) key[i] += input[i];
    }
    for (int32_t i = 0; i < width; i++) key[i] *= 1.0f / (float)tokens;
    const float factor = 1.0f / sqrtf(kernels->sum_squares(key, width) / (float)width + c->epsilon);
    for (int32_t i = 0; i < width; i++) key[i] = key[i] * factor * c->norm[i];
    const float *cosine = c->cosine + (size_t)begin * half, *sine = c->sine + (size_t)begin * half;
    for (int32_t i = 0; i < half; i++) {
        const float a = key[i], b = key[half + i];
        key[i] = a * cosine[i] - b * sine[i];
        key[half + i] = b * cosine[i] + a * sine[i];
    }
    const int32_t page = c->pages[(size_t)c->sequences[row] * c->table_pages + begin / EM_PAGE_TOKENS];
    const size_t to = (size_t)page * c->page_blocks + begin % EM_PAGE_TOKENS / tokens;
    em_store_columns(kernels, key, 0, width, width, c->block_keys, to);
}

static void write_keys(const em_select_blocks *c, const em_run *run) {
    const int32_t tokens = block_tokens(c), width = c->head_dim;
    for (int32_t first = 0; first < run->tokens;) {
        const int32_t end = first + em_segment_rows(c->positions, c->sequences, first, run->tokens, run->tokens);
        for (int32_t row = first; row < end; row++) {
            if ((c->positions[row] + 1) % tokens == 0) write_key(c, run->kernels, first, row);
        }
        for (int32_t row = end - first > c->ring ? end - c->ring : first; row < end; row++) {
            const size_t place = (size_t)c->sequences[row] * c->ring + c->positions[row] % c->ring;
            memcpy(c->inputs + place * width, c->keys + (size_t)row * width, (size_t)width * sizeof(float));
        }
        first = end;
    }
}

static int32_t complete_blocks(const em_select_blocks *c, int32_t row) {
    return (c->positions[row] + 1) / block_tokens(c);
}

static float *scores_of(const em_select_blocks *c, int32_t row) {
    return c->scores + (size_t)row * c->table_pages * c->page_blocks;
}

/* The scores of blocks `begin` to `end` for a row; `begin` is the first of a page. */
static void score(const em_select_blocks *c, const em_kernels *kernels, int32_t row, int32_t begin, int32_t end) {
    static const uint8_t element_bytes[EM_CACHE_FORMATS] = {[EM_F32] = 4, [EM_F16] = 2, [EM_Q8] = 1};
    const int32_t width = c->head_dim, format = c->block_keys.format, most = c->page_blocks;
    const int32_t *pages = c->pages + (size_t)c->sequences[row] * c->table_pages;
    float products[EM_MOST_SELECTING_HEADS][EM_PAGE_TOKENS];
    em_attending heads[EM_MOST_SELECTING_HEADS];
    float *scores = scores_of(c, row);
    for (int32_t h = 0; h < c->heads; h++) {
        heads[h] = (em_attending){c->query + ((size_t)row * c->heads + h) * width, NULL, products[h], 0};
    }
    for (int32_t start = begin; start < end; start += most) {
        const int32_t here = end - start < most ? end - start : most;
        const size_t first = (size_t)pages[start / most] * most;
        const em_cached keys = {
            .elements = (const uint8_t *)c->block_keys.elements + first * width * element_bytes[format],
            .scales = format == EM_Q8 ? c->block_keys.scales + first * em_group_count(width) : NULL,
            .row_width = width,
        };
        kernels->scores[format](heads, c->heads, keys, here, width, 1.0f);
        for (int32_t i = 0; i < here; i++) {
            float sum = 0;
            for (int32_t h = 0; h < c->heads; h++) sum += products[h][i] > 0 ? products[h][i] : 0;
            scores[start + i] = sum;
        }
    }
}

static void score_spans(void *context, int64_t begin, int64_t end, int32_t thread) {
    const choose_task *task = context;
    const em_select_blocks *c = task->operation;
    const int32_t blocks = PAGES_AT_ONCE * c->page_blocks;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        const int32_t row = (int32_t)(item / task->spans), first = (int32_t)(item % task->spans) * blocks;
        const int32_t complete = complete_blocks(c, row), left = complete - first;
        if (complete <= c->kept || left <= 0) continue;
        score(c, task->run->kernels, row, first, first + (left < blocks ? left : blocks));
    }
}

/* The bits of the `kept`-th largest of numbers that are not negative, and how many of its equals are among those kept. */
static uint32_t least_kept(const float *scores, int32_t count, int64_t kept, int64_t *equals) {
    uint32_t found = 0, mask = 0;
    for (int32_t shift = 24; shift >= 0; shift -= 8) {
        int64_t counts[256] = {0};
        for (int32_t i = 0; i < count; i++) {
            const uint32_t bits = em_to_bits(scores[i]);
            if ((bits & mask) == found) counts[bits >> shift & 255]++;
        }
        int32_t digit = 255;
        while (counts[digit] < kept) kept -= counts[digit--];
        found |= (uint32_t)digit << shift;
        mask |= 255u << shift;
    }
    *equals = kept;
    return found;
}

static void choose_row(const em_select_blocks *c, int32_t row) {
    const int32_t tokens = block_tokens(c), complete = complete_blocks(c, row);
    const int32_t seen = (c->positions[row] + tokens) / tokens;
    int32_t *chosen = c->chosen + (size_t)row * c->table_pages;
    const float *scores = scores_of(c, row);
    const bool all = complete <= c->kept;
    int64_t equals = 0;
    const uint32_t least = all ? 0 : least_kept(scores, complete, c->kept, &equals);
    for (int32_t page = 0; page < c->table_pages; page++) {
        uint32_t bits = 0;
        for (int32_t b = 0; b < c->page_blocks; b++) {
            const int32_t block = page * c->page_blocks + b;
            if (block >= seen) break;
            bool sees = all || block >= complete;
            if (!sees) {
                const uint32_t own = em_to_bits(scores[block]);
                sees = own > least || (own == least && equals-- > 0);
            }
            bits |= (uint32_t)sees << b;
        }
        chosen[page] = (int32_t)bits;
    }
}

static void choose_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const choose_task *task = context;
    (void)thread;
    for (int64_t row = begin; row < end; row++) choose_row(task->operation, (int32_t)row);
}

EM_NO_SCRATCH(select_blocks)

int32_t em_run_select_blocks(const em_select_blocks *c, const em_run *run) {
    const bool fits = c->page_blocks >= 1 && c->page_blocks <= 32 && EM_PAGE_TOKENS % c->page_blocks == 0;
    if (!fits || c->heads > EM_MOST_SELECTING_HEADS || c->head_dim > EM_WIDEST_SELECTING_HEAD || c->kept < 1 ||
        c->rotated > c->head_dim || c->ring < block_tokens(c) - 1 || !em_is_cache_format(c->block_keys.format)) {
        return EM_BAD_OPERATION;
    }
    for (int32_t t = 0; t < run->tokens; t++) {
        if (c->sequences[t] < 0 || c->sequences[t] >= c->sequence_count) return EM_BAD_POSITION;
        if (c->positions[t] < 0 || c->positions[t] >= c->context) return EM_BAD_POSITION;
        const int32_t last = c->positions[t] / EM_PAGE_TOKENS;
        if (last >= c->table_pages) return EM_BAD_POSITION;
        const int goes_on = t > 0 && c->sequences[t] == c->sequences[t - 1] && c->positions[t] == c->positions[t - 1] + 1;
        const int32_t *pages = c->pages + (size_t)c->sequences[t] * c->table_pages;
        for (int32_t page = goes_on ? last : 0; page <= last; page++) {
            if (pages[page] < 0 || pages[page] >= c->page_count) return EM_BAD_POSITION;
        }
    }
    write_keys(c, run);
    int32_t longest = 0;
    for (int32_t t = 0; t < run->tokens; t++) {
        if (c->positions[t] > longest) longest = c->positions[t];
    }
    const int32_t pages = longest / EM_PAGE_TOKENS + 1;
    choose_task task = {c, run, (pages + PAGES_AT_ONCE - 1) / PAGES_AT_ONCE};
    if ((longest + 1) / block_tokens(c) > c->kept) {
        const int64_t products = (int64_t)PAGES_AT_ONCE * c->page_blocks * c->heads * c->head_dim;
        em_pool_for(run->pool, (int64_t)run->tokens * task.spans, CHUNK_PRODUCTS / products + 1, score_spans, &task);
    }
    em_pool_for(run->pool, run->tokens, CHUNK_PRODUCTS / ((int64_t)c->table_pages * c->page_blocks) + 1, choose_rows,
                &task);
    return EM_OK;
}
