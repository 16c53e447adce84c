/* ShortConv: a causal convolution over the last few tokens, each channel by itself.
 *
 * A segment (recurrent.h) takes inputs of its own positions from its rows, and earlier ones from the ring, to which it then adds its own. Threads share out blocks of
 * channels and go through the rows in order, so no thread reads what another one writes, and a sequence may have several
 * segments. */
#include "recurrent.h"

enum {
    BLOCK_CHANNELS = 64,
};

typedef struct conv_task {
    const em_short_conv *operation;
    const em_run *run;
} conv_task;

/* Channels start .. start + count - 1, with their taps in the order in which they are used. */
typedef struct channels {
    int32_t start, count;
    float taps[EM_MOST_TAPS][BLOCK_CHANNELS];
} channels;

static float *ring_row(const em_short_conv *c, int32_t sequence, int32_t position) {
    return c->inputs + ((size_t)sequence * c->ring + position % c->ring) * c->hidden_size;
}

/* The inputs u of a row: B * x, or the row itself. */
static const float *inputs_of(const em_short_conv *c, const channels *block, int32_t row, float *products) {
    const float *values = c->input + (int64_t)row * c->parts * c->hidden_size + block->start;
    if (c->parts == 1) return values;
    for (int32_t i = 0; i < block->count; i++) products[i] = values[i] * values[2 * c->hidden_size + i];
    return products;
}

/* output = C * sums, or silu(sums). */
static void finish(const em_short_conv *c, const em_kernels *kernels, const channels *block, int32_t row,
                   const float *sums) {
    static const em_activation silu = {.function = EM_FUNCTION_SILU};
    const float *after = c->input + ((int64_t)row * 3 + 1) * c->hidden_size + block->start;
    float *output = c->output + (int64_t)row * c->hidden_size + block->start;
    if (c->parts == 1) {
        float ones[BLOCK_CHANNELS];
        for (int32_t i = 0; i < block->count; i++) ones[i] = 1.0f;
        kernels->activate[EM_FUNCTION_SILU](&silu, sums, ones, output, block->count);
        return;
    }
    for (int32_t i = 0; i < block->count; i++) output[i] = after[i] * sums[i];
}

/* One row of a segment that begins at row `first`. The sum runs over the taps in order, from the bias; inputs before
 * position 0 are zeros. */
static void convolve(const em_short_conv *c, const em_kernels *kernels, const channels *block, int32_t first,
                     int32_t row) {
    const int32_t start = block->start, count = block->count;
    float sums[BLOCK_CHANNELS], products[BLOCK_CHANNELS];
    for (int32_t i = 0; i < count; i++) sums[i] = c->bias ? c->bias[start + i] : 0.0f;
    for (int32_t tap = 0; tap < c->length; tap++) {
        const int32_t back = (c->length - 1 - tap) * c->dilation, position = c->positions[row] - back;
        const float *taps = block->taps[tap];
        if (position < 0) continue;
        const float *u = row - back >= first ? inputs_of(c, block, row - back, products)
                                             : ring_row(c, c->sequences[row], position) + start;
        for (int32_t i = 0; i < count; i++) sums[i] += taps[i] * u[i];
    }
    finish(c, kernels, block, row, sums);
}

/* Adds the input of a row to the ring. */
static void keep(const em_short_conv *c, const channels *block, int32_t row) {
    float products[BLOCK_CHANNELS];
    const float *u = inputs_of(c, block, row, products);
    float *kept = ring_row(c, c->sequences[row], c->positions[row]) + block->start;
    for (int32_t i = 0; i < block->count; i++) kept[i] = u[i];
}

static void convolve_block(const conv_task *task, const channels *block) {
    const em_short_conv *c = task->operation;
    const int32_t tokens = task->run->tokens;
    for (int32_t first = 0; first < tokens;) {
        const int32_t end = first + em_segment_rows(c->positions, c->sequences, first, tokens, tokens);
        for (int32_t row = first; row < end; row++) convolve(c, task->run->kernels, block, first, row);
        /* The ring holds the last rows only of a segment that is longer than it. */
        for (int32_t row = end - first > c->ring ? end - c->ring : first; row < end; row++) keep(c, block, row);
        first = end;
    }
}

static void convolve_blocks(void *context, int64_t begin, int64_t end, int32_t thread) {
    const conv_task *task = context;
    const em_short_conv *c = task->operation;
    (void)thread;
    for (int64_t number = begin; number < end; number++) {
        channels block; /* only the taps that there are, not all that there is room for */
        block.start = (int32_t)number * BLOCK_CHANNELS;
        const int32_t left = c->hidden_size - block.start;
        block.count = left < BLOCK_CHANNELS ? left : BLOCK_CHANNELS;
        for (int32_t i = 0; i < block.count; i++) {
            const float *taps = c->taps + (size_t)(block.start + i) * c->length;
            for (int32_t tap = 0; tap < c->length; tap++) block.taps[tap][i] = taps[tap];
        }
        convolve_block(task, &block);
    }
}

EM_NO_SCRATCH(short_conv)

int32_t em_run_short_conv(const em_short_conv *conv, const em_run *run) {
    if (conv->length > EM_MOST_TAPS || (conv->parts != 1 && conv->parts != 3)) return EM_BAD_OPERATION;
    if (conv->dilation < 1 || conv->dilation > EM_MOST_DILATION) return EM_BAD_OPERATION;
    const int32_t status = em_check_rows(conv->positions, conv->sequences, conv->sequence_count, run->tokens);
    if (status != EM_OK) return status;
    conv_task task = {conv, run};
    const int64_t blocks = (conv->hidden_size + BLOCK_CHANNELS - 1) / BLOCK_CHANNELS;
    const int64_t products = (int64_t)run->tokens * conv->length * BLOCK_CHANNELS;
    em_pool_for(run->pool, blocks, (EM_CHUNK_PRODUCTS + products - 1) / products, convolve_blocks, &task);
    return EM_OK;
}
