/* Attention, causal or over all of an input: softmax taken online over blocks of keys.
 *
 * A block is a page of the cache: its positions begin at a multiple of 64, and a row's last block ends with its own
 * position, or with the last of the input. So a row's result depends neither on how tokens are cut into runs nor on the
 * other rows of its run.
 *
 * Consecutive rows of one sequence form a tile, which reads each block once for all of them, and converts it once: of
 * up to 32 rows, or fewer, down to 8, where several query heads share a key/value head. A tile ends before a position
 * that is a multiple of that, so all its rows end in the same block. Threads share out pairs of a tile and a key/value
 * head, those of one head one after the other, so that its blocks stay in a cache. Where there are too few of these for
 * all threads, the query heads of a key/value head are shared out too.
 *
 * A tile's queries and outputs are copied together: one head's rows lie a power of two apart in most models, on a few
 * lines of the first-level cache, and would drive each other out between two blocks.
 *
 * Compressed attention goes through the blocks of its window as all attention does, and then on through those of the
 * compressed cache, of which a page has as many rows as blocks of tokens end in it.
 *
 * A single row's time is that of reading the keys and values from memory. A page holds the blocks of all heads one after
 * the other, so such a row goes through several heads together, page by page, and reads longer runs of memory. */
#include "blocks.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "../../kernels/exponential.h"

enum {
    TILE_ROWS_MAX = EM_ROWS_AT_ONCE,
    TILE_ROWS_MIN = 8,
    COPIED_WIDTH_MAX = 256, /* of queries and outputs: two arrays of 32 KiB on the stack */
};

typedef struct attention_task {
    const em_attention *attention;
    const em_run *run;
    const int32_t *tiles; /* (tile_count + 1): the first row of each, and the end of the last */
    int32_t tile_count;
    int32_t heads_together;    /* query heads of one key/value head */
    int32_t kv_heads_together; /* more than one only where heads_together is all of them */
    int32_t block_rows;        /* of the cache's pages */
    int32_t bit_keys;          /* of a page, for which each bit stands of those that say what rows see */
    const struct attention_task *history; /* the same over the compressed cache; NULL: there is none */
    int32_t rate;                         /* of the history */
    const int32_t *chosen;                /* (T, table_pages): what rows see of it; NULL: all */
} attention_task;

/* One query head of one row: the state of its online softmax over the blocks seen so far. */
typedef struct query_state {
    const float *query;
    float *output;
    float largest;
    float sum;
    int32_t first; /* the positions that it sees */
    int32_t end;
    int32_t position;
    int32_t head;
    float factor;          /* of its scores */
    const int32_t *chosen; /* of each page the keys that it sees, as bits; NULL: all from first to end */
} query_state;

static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

/* The last position that a row sees, and the first one. */
static int32_t last_seen(const em_attention *a, int32_t row) {
    return a->lengths ? a->lengths[a->sequences[row]] - 1 : a->positions[row];
}
static int32_t first_seen(const em_attention *a, int32_t row) {
    const int32_t position = a->positions[row];
    if (a->window == 0) return 0;
    return a->chunked ? (int32_t)(position - position % a->window) : larger(0, (int32_t)(position - a->window + 1));
}

/* Adds to the scores of keys `from` to `to` of the block that begins at `start` what the bias has for their distance
 * from the query. */
static void add_bias(const em_attention *a, const query_state *state, int32_t start, int32_t from, int32_t to,
                     float *scores) {
    const int32_t reach = a->bias.distances / 2;
    for (int32_t key = from; key < to; key++) {
        const int32_t distance = smaller(larger(start + key - state->position, -reach), reach);
        scores[key] += a->bias.table[(size_t)a->bias.bucket_of[distance + reach] * a->heads + state->head];
    }
}

/* A part of a block for which the same rows attend to the same positions. */
static void mix_part(const attention_task *task, const em_attending *rows, int32_t row_count, size_t cache_row,
                     int32_t from, int32_t to) {
    if (from >= to) return;
    const em_attention *a = task->attention;
    em_attending shifted[EM_ROWS_AT_ONCE];
    for (int32_t r = 0; r < row_count; r++) {
        shifted[r] = rows[r];
        shifted[r].weights += from;
    }
    /* Without a cache of its own a value is the beginning of its key. */
    const int own = a->value_cache.elements != NULL;
    const em_cached values = own ? em_cached_rows(a->value_cache, a->value_dim, cache_row + from)
                                 : em_cached_rows(a->key_cache, a->head_dim, cache_row + from);
    task->run->kernels->mix[a->key_cache.format](shifted, row_count, values, to - from, a->value_dim);
}

/* Rows that see unlike parts of a block: what all see for all together, what comes before and after it one by one.
 * A row's chain of sums goes on where it was left, since a factor of 1 changes nothing. */
static void mix_parts(const attention_task *task, em_attending *rows, int32_t row_count, size_t cache_row,
                      const int32_t *from, const int32_t *to) {
    int32_t common_from = 0, common_to = EM_PAGE_TOKENS;
    for (int32_t r = 0; r < row_count; r++) {
        common_from = larger(common_from, from[r]);
        common_to = smaller(common_to, to[r]);
    }
    common_to = larger(common_from, common_to);
    for (int32_t r = 0; r < row_count; r++) {
        mix_part(task, &rows[r], 1, cache_row, from[r], smaller(common_from, to[r]));
        if (from[r] < common_from) rows[r].factor = 1;
    }
    mix_part(task, rows, row_count, cache_row, common_from, common_to);
    for (int32_t r = 0; r < row_count; r++) {
        if (common_from < common_to) rows[r].factor = 1;
        mix_part(task, &rows[r], 1, cache_row, larger(from[r], common_to), to[r]);
    }
}

/* The largest of `largest` and `count` numbers, of which none that is NaN counts: any order finds the same. */
static float largest_of(float largest, const float *numbers, int32_t count) {
    float lanes[EM_LANES];
    for (int l = 0; l < EM_LANES; l++) lanes[l] = largest;
    int32_t i = 0;
    for (; i + EM_LANES <= count; i += EM_LANES) {
        for (int l = 0; l < EM_LANES; l++) lanes[l] = numbers[i + l] > lanes[l] ? numbers[i + l] : lanes[l];
    }
    for (; i < count; i++) lanes[0] = numbers[i] > lanes[0] ? numbers[i] : lanes[0];
    for (int l = 0; l < EM_LANES; l++) largest = lanes[l] > largest ? lanes[l] : largest;
    return largest;
}

/* cap * tanh(score / cap) of each score: tanh(x) is (1 - p) / (1 + p) with the sign of x, where p = exp(-2 |x|). */
static void cap_scores(const em_kernels *kernels, float cap, float *scores, int32_t count) {
    float powers[EM_PAGE_TOKENS];
    for (int32_t i = 0; i < count; i++) powers[i] = -2.0f * fabsf(scores[i] / cap);
    kernels->exponentials(powers, count, 0);
    for (int32_t i = 0; i < count; i++) {
        scores[i] = copysignf(cap * ((1.0f - powers[i]) / (1.0f + powers[i])), scores[i]);
    }
}

/* Whether a row sees a key of a page, of whose bits each stands for `bit_keys` keys. */
static bool is_chosen(int32_t bits, int32_t key, int32_t bit_keys) { return ((uint32_t)bits >> (key / bit_keys)) & 1; }

/* Lets keys whose bit is not set weigh nothing: exp(-infinity) is 0. */
static void leave_out(int32_t bits, int32_t bit_keys, int32_t from, int32_t to, float *scores) {
    for (int32_t key = from; key < to; key++) {
        if (!is_chosen(bits, key, bit_keys)) scores[key] = -INFINITY;
    }
}

static bool sees_any(int32_t bits, int32_t bit_keys, int32_t from, int32_t to) {
    while (from < to && !is_chosen(bits, from, bit_keys)) from++;
    return from < to;
}

/* The block that begins at position `start`, whose first key is row `cache_row` of the cache's (N * G * 64) rows. */
static void attend_block(const attention_task *task, query_state *states, int32_t state_count, int32_t start,
                         size_t cache_row) {
    const em_attention *a = task->attention;
    const em_kernels *kernels = task->run->kernels;
    float weights[EM_ROWS_AT_ONCE][EM_PAGE_TOKENS];
    em_attending rows[EM_ROWS_AT_ONCE];
    query_state *own[EM_ROWS_AT_ONCE];
    int32_t from[EM_ROWS_AT_ONCE], to[EM_ROWS_AT_ONCE], row_count = 0, least = EM_PAGE_TOKENS, most = 0;
    for (int32_t s = 0; s < state_count; s++) {
        from[row_count] = larger(0, states[s].first - start);
        to[row_count] = smaller(task->block_rows, states[s].end - start);
        if (from[row_count] >= to[row_count]) continue;
        const int32_t *chosen = states[s].chosen;
        if (chosen && !sees_any(chosen[start / task->block_rows], task->bit_keys, from[row_count], to[row_count])) continue;
        least = smaller(least, from[row_count]);
        most = larger(most, to[row_count]);
        own[row_count++] = &states[s];
    }
    if (row_count == 0) return;
    for (int32_t r = 0; r < row_count; r++) {
        rows[r] = (em_attending){own[r]->query, own[r]->output, weights[r] + least, 0};
    }
    /* Scores of keys that only some of the rows see are computed for all of them, and not used. So a row that sees few
     * keys reads later ones too: all were stored before, by this run or an earlier one. */
    const em_cached keys = em_cached_rows(a->key_cache, a->head_dim, cache_row + least);
    kernels->scores[a->key_cache.format](rows, row_count, keys, most - least, a->head_dim, a->scale);
    for (int32_t r = 0; r < row_count; r++) {
        query_state *state = own[r];
        if (a->cap > 0) cap_scores(kernels, a->cap, weights[r] + from[r], to[r] - from[r]);
        for (int32_t key = from[r]; a->factors && key < to[r]; key++) weights[r][key] *= state->factor;
        if (a->bias.table) add_bias(a, state, start, from[r], to[r], weights[r]);
        if (state->chosen) {
            leave_out(state->chosen[start / task->block_rows], task->bit_keys, from[r], to[r], weights[r]);
        }
        const float largest = largest_of(state->largest, weights[r] + from[r], to[r] - from[r]);
        rows[r].factor = state->sum > 0 ? em_exp(state->largest - largest) : 0.0f;
        rows[r].weights = weights[r];
        const float added = kernels->exponentials(weights[r] + from[r], to[r] - from[r], largest);
        state->sum = state->sum * rows[r].factor + added;
        state->largest = largest;
    }
    mix_parts(task, rows, row_count, cache_row, from, to);
}

/* Goes on over the compressed rows of a sequence: each query sees those of the blocks that end no later than itself. */
static void attend_history(const attention_task *task, query_state *states, int32_t state_count, int32_t first_row,
                           int32_t row_count) {
    const em_attention *a = task->attention;
    const int32_t *pages = a->pages + (size_t)a->sequences[first_row] * a->table_pages;
    int32_t end = 0;
    for (int32_t s = 0; s < state_count; s++) {
        states[s].first = 0;
        states[s].end = (states[s].position + 1) / task->rate;
        const size_t row = (size_t)(first_row + s % row_count); /* states are those of one head's rows after another */
        if (task->chosen) states[s].chosen = task->chosen + row * a->table_pages;
        end = larger(end, states[s].end);
    }
    for (int32_t row = 0; row < end; row += task->block_rows) {
        const size_t page = (size_t)pages[em_block_page(row, task->rate)];
        attend_block(task, states, state_count, row, page * task->block_rows);
    }
}

/* Attention of query heads first .. first + count - 1 for one tile: heads_together of each key/value head. */
static void attend(const attention_task *task, int32_t tile, int32_t first, int32_t count) {
    const em_attention *a = task->attention;
    const int32_t begin = task->tiles[tile], end = task->tiles[tile + 1];
    const int copied = end - begin > 1 && a->head_dim <= COPIED_WIDTH_MAX && a->value_dim <= COPIED_WIDTH_MAX;
    float queries[EM_ROWS_AT_ONCE * COPIED_WIDTH_MAX], outputs[EM_ROWS_AT_ONCE * COPIED_WIDTH_MAX];
    query_state states[EM_ROWS_AT_ONCE];
    int32_t state_count = 0;
    for (int32_t head = first; head < first + count; head++) {
        for (int32_t row = begin; row < end; row++) {
            const size_t at = (size_t)row * a->heads + head;
            const float *query = a->query + at * a->head_dim;
            float *output = a->output + at * a->value_dim;
            if (copied) {
                query = memcpy(queries + (size_t)state_count * a->head_dim, query, (size_t)a->head_dim * sizeof *query);
                output = outputs + (size_t)state_count * a->value_dim;
            }
            query_state *state = &states[state_count++];
            *state = (query_state){.query = query, .output = output, .largest = -INFINITY, .sum = 0,
                                   .first = first_seen(a, row), .end = last_seen(a, row) + 1,
                                   .position = a->positions[row], .head = head};
            if (a->factors) state->factor = a->factors[state->position];
            if (a->chosen) state->chosen = a->chosen + (size_t)row * a->table_pages;
            /* A sink is a key before all others, of which nothing is mixed in. */
            if (a->sinks) state->largest = a->sinks[head], state->sum = 1;
            memset(output, 0, (size_t)a->value_dim * sizeof *output);
        }
    }
    const int32_t *pages = a->pages + (size_t)a->sequences[begin] * a->table_pages;
    const int32_t kv_head = first / (a->heads / a->kv_heads), together = task->heads_together * (end - begin);
    const int32_t last = last_seen(a, end - 1) / EM_PAGE_TOKENS;
    for (int32_t block = first_seen(a, begin) / EM_PAGE_TOKENS; block <= last; block++) {
        size_t cache_row = ((size_t)pages[block] * a->kv_heads + kv_head) * EM_PAGE_TOKENS;
        for (int32_t s = 0; s < state_count; s += together, cache_row += EM_PAGE_TOKENS) {
            attend_block(task, states + s, together, block * EM_PAGE_TOKENS, cache_row);
        }
    }
    if (task->history) attend_history(task->history, states, state_count, begin, end - begin);
    const query_state *state = states;
    for (int32_t head = first; head < first + count; head++) {
        for (int32_t row = begin; row < end; row++, state++) {
            float *output = a->output + ((size_t)row * a->heads + head) * a->value_dim;
            for (int32_t i = 0; i < a->value_dim; i++) output[i] = state->output[i] / state->sum;
        }
    }
}

static void attend_items(void *context, int64_t begin, int64_t end, int32_t thread) {
    const attention_task *task = context;
    const int32_t heads = task->heads_together * task->kv_heads_together;
    (void)thread;
    for (int64_t item = begin; item < end; item++) {
        const int32_t first = (int32_t)(item / task->tile_count) * heads, left = task->attention->heads - first;
        attend(task, (int32_t)(item % task->tile_count), first, smaller(heads, left));
    }
}

/* Checks that each row's sequence and position exist, and the pages of all that it sees. */
static int32_t check(const em_attention *a, int32_t tokens) {
    int32_t sequence = -1, checked_from = 0, checked_to = 0;
    for (int32_t t = 0; t < tokens; t++) {
        if (a->sequences[t] < 0 || a->sequences[t] >= a->sequence_count) return EM_BAD_POSITION;
        if (a->positions[t] < 0 || last_seen(a, t) < 0) return EM_BAD_POSITION;
        if (a->factors && a->positions[t] >= a->context) return EM_BAD_POSITION;
        const int32_t last = last_seen(a, t) / EM_PAGE_TOKENS;
        if (last >= a->table_pages) return EM_BAD_POSITION;
        const int32_t first = first_seen(a, t) / EM_PAGE_TOKENS;
        if (a->sequences[t] != sequence || first < checked_from || first > checked_to) {
            checked_from = checked_to = first;
        }
        sequence = a->sequences[t];
        const int32_t *pages = a->pages + (size_t)sequence * a->table_pages;
        for (; checked_to <= last; checked_to++) {
            if (pages[checked_to] < 0 || pages[checked_to] >= a->page_count) return EM_BAD_POSITION;
        }
    }
    for (int32_t i = 0; a->bias.table && i < a->bias.distances; i++) {
        if (a->bias.bucket_of[i] < 0 || a->bias.bucket_of[i] >= a->bias.entries / a->heads) return EM_BAD_OPERATION;
    }
    return EM_OK;
}

/* Cuts the rows into tiles, and returns their number. */
static int32_t cut_into_tiles(const em_attention *a, int32_t tokens, int32_t tile_rows, int32_t *tiles) {
    int32_t count = 0;
    for (int32_t t = 0; t < tokens; t++) {
        const int goes_on = t > 0 && a->sequences[t] == a->sequences[t - 1] &&
                            a->positions[t] == a->positions[t - 1] + 1 && a->positions[t] % tile_rows != 0;
        if (!goes_on) tiles[count++] = t;
    }
    tiles[count] = tokens;
    return count;
}

size_t em_attention_scratch_bytes(const em_attention *attention, int32_t tokens) {
    (void)attention;
    return ((size_t)tokens + 1) * sizeof(int32_t);
}

/* Chooses how many heads a thread takes together. Any choice gives the same bits. */
static void choose_heads(attention_task *task, int32_t most_rows) {
    const em_attention *a = task->attention;
    const int64_t wanted = 2 * (int64_t)em_pool_threads(task->run->pool);
    const int32_t group = a->heads / a->kv_heads;
    task->heads_together = group;
    while (task->heads_together * most_rows > EM_ROWS_AT_ONCE ||
           (task->heads_together % 2 == 0 && (int64_t)task->tile_count * a->heads / task->heads_together < wanted)) {
        task->heads_together = task->heads_together % 2 == 0 ? task->heads_together / 2 : 1;
    }
    task->kv_heads_together = 1;
    if (most_rows > 1 || task->heads_together < group) return;
    const int64_t pairs = (int64_t)task->tile_count * a->kv_heads;
    const int64_t pairs_each = pairs / wanted;
    task->kv_heads_together = smaller(a->kv_heads, EM_ROWS_AT_ONCE / group);
    if (pairs_each < task->kv_heads_together) task->kv_heads_together = larger(1, (int32_t)pairs_each);
}

static int32_t run_attention(const em_attention *attention, const em_run *run, const attention_task *history) {
    const em_cache *values = attention->value_cache.elements ? &attention->value_cache : &attention->key_cache;
    if (!em_is_cache_format(attention->key_cache.format) || values->format != attention->key_cache.format) {
        return EM_BAD_OPERATION;
    }
    if (attention->chosen && (attention->page_blocks < 1 || attention->page_blocks > 32)) return EM_BAD_OPERATION;
    const int32_t status = check(attention, run->tokens);
    if (status != EM_OK) return status;
    int32_t *tiles = (int32_t *)(void *)run->scratch;
    int32_t tile_rows = TILE_ROWS_MAX;
    while (tile_rows > TILE_ROWS_MIN && tile_rows * (attention->heads / attention->kv_heads) > EM_ROWS_AT_ONCE) {
        tile_rows /= 2;
    }
    const int32_t tile_count = cut_into_tiles(attention, run->tokens, tile_rows, tiles);
    attention_task task = {.attention = attention, .run = run, .tiles = tiles, .tile_count = tile_count,
                           .block_rows = EM_PAGE_TOKENS, .history = history};
    if (attention->chosen) task.bit_keys = EM_PAGE_TOKENS / (int32_t)attention->page_blocks;
    int32_t most_rows = 0;
    int64_t seen = 0;
    for (int32_t i = 0; i < tile_count; i++) most_rows = larger(most_rows, tiles[i + 1] - tiles[i]);
    for (int32_t t = 0; t < run->tokens; t++) seen += last_seen(attention, t) + 1 - first_seen(attention, t);
    choose_heads(&task, most_rows);
    const int32_t heads = task.heads_together * task.kv_heads_together;
    const int64_t items = (int64_t)tile_count * ((attention->heads + heads - 1) / heads);
    const int64_t products_per_item = seen * attention->head_dim * heads / tile_count;
    const int64_t chunk = products_per_item < 8192 ? 8192 / (products_per_item + 1) + 1 : 1;
    em_pool_for(run->pool, items, chunk, attend_items, &task);
    return EM_OK;
}

int32_t em_run_attention(const em_attention *attention, const em_run *run) { return run_attention(attention, run, NULL); }

/* ---- compressed attention ------------------------------------------------------------------------------ */

size_t em_compressed_attention_scratch_bytes(const em_compressed_attention *attention, int32_t tokens) {
    (void)attention;
    return em_attention_scratch_bytes(NULL, tokens);
}

int32_t em_run_compressed_attention(const em_compressed_attention *c, const em_run *run) {
    const int32_t block_rows = c->rate < 1 ? 0 : larger(1, (int32_t)(EM_PAGE_TOKENS / c->rate));
    if (c->rate < 1 || c->block_rows != block_rows || c->compressed.format != c->window_cache.format) {
        return EM_BAD_OPERATION;
    }
    em_attention of_window = {.query = c->query, .positions = c->positions, .sequences = c->sequences,
                              .pages = c->window_pages, .key_cache = c->window_cache, .scale = c->scale,
                              .output = c->output, .window = c->window, .sinks = c->sinks,
                              .sequence_count = c->sequence_count, .table_pages = c->table_pages,
                              .page_count = c->page_count, .kv_heads = 1, .head_dim = c->head_dim, .heads = c->heads,
                              .value_dim = c->head_dim};
    em_attention of_history = of_window;
    of_history.pages = c->pages;
    of_history.key_cache = c->compressed;
    of_history.page_count = c->compressed_pages;
    const int32_t rate = (int32_t)c->rate;
    const int32_t status = em_check_blocks(c->positions, c->sequences, c->pages, rate, run->tokens, c->sequence_count,
                                           c->table_pages, c->compressed_pages);
    if (status != EM_OK) return status;
    const attention_task history = {
        .attention = &of_history, .run = run, .block_rows = block_rows, .bit_keys = 1, .rate = rate, .chosen = c->chosen};
    return run_attention(&of_window, run, &history);
}
