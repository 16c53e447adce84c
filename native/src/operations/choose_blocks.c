/* ChooseBlocks: of the blocks of tokens that each row may see, those of largest score.
 *
 * Threads first share out the pages of some rows, whose blocks they score, and then the rows, which each choose by
 * themselves. Where a row sees no more blocks than it may choose, none is scored. */
#include "blocks.h"

#include "../../kernels/half.h"

enum {
    /* A chunk of fewer products than this costs more to hand out than to do. */
    CHUNK_PRODUCTS = 8192,
    PAGES_AT_ONCE = 8,
};

typedef struct choose_task {
    const em_choose_blocks *operation;
    const em_run *run;
    int64_t stride;
    int32_t first;  /* of the rows at once */
    int32_t spans;  /* of PAGES_AT_ONCE pages in a row */
} choose_task;

/* The blocks that end no later than a row. */
static int32_t complete_blocks(const em_choose_blocks *c, int32_t row) {
    return (int32_t)(((int64_t)c->positions[row] + 1) / c->rate);
}

static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

/* The scores of `count` blocks from block `block` on, which is the first of its page. */
static void score_page(const choose_task *task, int32_t row, int32_t block, int32_t count, float *scores) {
    const em_choose_blocks *c = task->operation;
    const int32_t number = c->pages[(size_t)c->sequences[row] * c->table_pages + em_block_page(block, c->rate)];
    const em_cached keys = em_cached_rows(c->keys, c->head_dim, (size_t)number * c->block_rows);
    float products[EM_ROWS_AT_ONCE][EM_PAGE_TOKENS];
    em_attending heads[EM_ROWS_AT_ONCE];
    for (int32_t k = 0; k < count; k++) scores[k] = 0;
    for (int32_t first = 0; first < c->heads; first += EM_ROWS_AT_ONCE) {
        const int32_t together = smaller(c->heads - first, EM_ROWS_AT_ONCE);
        for (int32_t h = 0; h < together; h++) {
            const size_t at = (size_t)row * c->heads + first + h;
            heads[h] = (em_attending){.query = c->query + at * c->head_dim, .weights = products[h]};
        }
        task->run->kernels->scores[c->keys.format](heads, together, keys, count, c->head_dim, c->scale);
        for (int32_t h = 0; h < together; h++) {
            const float share = c->shares ? c->shares[(size_t)row * c->heads + first + h] : 1.0f;
            for (int32_t k = 0; k < count; k++) scores[k] += share * (products[h][k] > 0 ? products[h][k] : 0.0f);
        }
    }
}

static void score_pages(void *context, int64_t begin, int64_t end, int32_t thread) {
    const choose_task *task = context;
    const em_choose_blocks *c = task->operation;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        const int32_t own = (int32_t)(item / task->spans), row = task->first + own;
        const int32_t complete = complete_blocks(c, row);
        if (complete <= c->most) continue;
        const int32_t start = (int32_t)(item % task->spans) * PAGES_AT_ONCE;
        for (int32_t page = start; page < start + PAGES_AT_ONCE && page * c->block_rows < complete; page++) {
            const int32_t block = page * c->block_rows, count = smaller(c->block_rows, complete - block);
            score_page(task, row, block, count, c->scores + own * task->stride + block);
        }
    }
}

/* A number whose order is that of scores. */
static uint32_t rank_of(float score) {
    const uint32_t bits = em_to_bits(score + 0.0f); /* a zero becomes positive */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The rank of the `most`-th largest score of more than so many, digit by digit; `left` becomes how many of that very
 * rank are among the largest. */
static uint32_t least_rank(const float *scores, int32_t count, int64_t most, int64_t *left) {
    uint32_t rank = 0, known = 0;
    *left = most;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t counts[256] = {0};
        for (int32_t i = 0; i < count; i++) {
            const uint32_t own = rank_of(scores[i]);
            if ((own & known) == rank) counts[own >> shift & 255u]++;
        }
        uint32_t digit = 255;
        for (; digit > 0 && counts[digit] < *left; digit--) *left -= counts[digit];
        rank |= digit << shift;
        known |= 255u << shift;
    }
    return rank;
}

/* A bit for each of `count` blocks of a page. */
static uint32_t all_of(int32_t count) { return (uint32_t)((UINT64_C(1) << count) - 1); }

static void choose_row(const em_choose_blocks *c, int32_t row, const float *scores) {
    const int32_t complete = complete_blocks(c, row), rows = c->block_rows;
    const int32_t seen = complete + (c->own && ((int64_t)c->positions[row] + 1) % c->rate != 0);
    const int all = complete <= c->most;
    int32_t *chosen = c->chosen + (size_t)row * c->table_pages;
    int64_t left = 0;
    const uint32_t least = all ? 0 : least_rank(scores, complete, c->most, &left);
    for (int32_t first = 0; first < seen; first += rows) {
        uint32_t bits = all_of(smaller(rows, seen - first));
        for (int32_t block = first; !all && block < smaller(first + rows, complete); block++) {
            const uint32_t rank = rank_of(scores[block]);
            if (rank < least || (rank == least && left-- <= 0)) bits &= ~(1u << (block - first));
        }
        chosen[first / rows] = (int32_t)bits;
    }
}

static void choose_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const choose_task *task = context;
    const em_choose_blocks *c = task->operation;
    (void)thread;
    for (int64_t own = begin; own < end; own++) {
        choose_row(c, task->first + (int32_t)own, c->scores + own * task->stride);
    }
}

EM_NO_SCRATCH(choose_blocks)

int32_t em_run_choose_blocks(const em_choose_blocks *c, const em_run *run) {
    if (c->rate < 1 || c->block_rows > EM_MOST_BITS || !em_is_cache_format(c->keys.format)) return EM_BAD_OPERATION;
    const int32_t status = em_check_blocks(c->positions, c->sequences, c->pages, (int32_t)c->rate, run->tokens,
                                           c->sequence_count, c->table_pages, c->page_count);
    if (status != EM_OK) return status;
    choose_task task = {.operation = c, .run = run, .stride = (int64_t)c->table_pages * c->block_rows};
    for (; task.first < run->tokens; task.first += c->at_once) {
        const int32_t count = smaller(c->at_once, run->tokens - task.first);
        int32_t scored = 0;
        for (int32_t row = task.first; row < task.first + count; row++) {
            const int32_t complete = complete_blocks(c, row);
            if (complete > c->most && complete > scored) scored = complete;
        }
        const int32_t pages = (int32_t)(((int64_t)scored + c->block_rows - 1) / c->block_rows);
        task.spans = (pages + PAGES_AT_ONCE - 1) / PAGES_AT_ONCE;
        const int64_t products = (int64_t)c->heads * c->head_dim * c->block_rows * PAGES_AT_ONCE;
        if (scored > 0) {
            const int64_t items = (int64_t)count * task.spans;
            em_pool_for(run->pool, items, (CHUNK_PRODUCTS + products - 1) / products, score_pages, &task);
        }
        em_pool_for(run->pool, count, scored > 0 ? 1 : 64, choose_rows, &task);
    }
    return EM_OK;
}
