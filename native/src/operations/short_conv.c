/* ShortConv: a gated causal convolution over the last few tokens, one channel at a time.
 *
 * Rows that follow one another at neighbouring positions of one sequence are a segment. A segment takes inputs of its own
 * positions from its rows, and earlier ones from the ring, to which it then adds its own. Threads share out channels and go
 * through the rows in order, so no thread reads what another one writes, and a sequence may have several segments. */
#include "../operations.h"

enum {
    CHANNELS_AT_ONCE = 64,
    /* A chunk of fewer products than this costs more to hand out than to do. */
    CHUNK_PRODUCTS = 4096,
};

typedef struct conv_task {
    const em_short_conv *operation;
    int32_t tokens;
} conv_task;

static float *ring_row(const em_short_conv *c, int32_t sequence, int32_t position) {
    return c->inputs + ((size_t)sequence * c->ring + position % c->ring) * c->hidden_size;
}

/* The number of rows from `first` on that are one segment. */
static int32_t segment_rows(const em_short_conv *c, int32_t first, int32_t tokens) {
    int32_t row = first + 1;
    while (row < tokens && c->sequences[row] == c->sequences[first] && c->positions[row] == c->positions[row - 1] + 1) {
        row++;
    }
    return row - first;
}

/* The input of a row: its first gate times its value. */
static inline float input_at(const em_short_conv *c, int64_t row, int32_t channel) {
    const float *gates = c->gates + row * 3 * c->hidden_size;
    return gates[channel] * gates[2 * c->hidden_size + channel];
}

/* One row of a segment that begins at row `first`, for channels start .. start + count - 1. The sum runs over the taps in
 * order, from the bias; inputs before position 0 are zeros. */
static void convolve(const em_short_conv *c, int32_t first, int32_t row, int32_t start, int32_t count) {
    float sums[CHANNELS_AT_ONCE];
    const int32_t sequence = c->sequences[row];
    for (int32_t i = 0; i < count; i++) sums[i] = c->bias ? c->bias[start + i] : 0.0f;
    for (int32_t tap = 0; tap < c->length; tap++) {
        const int32_t back = c->length - 1 - tap, position = c->positions[row] - back;
        if (position < 0) continue;
        const float *taps = c->taps + (size_t)start * c->length + tap;
        if (row - back >= first) {
            for (int32_t i = 0; i < count; i++) sums[i] += taps[i * c->length] * input_at(c, row - back, start + i);
        } else {
            const float *earlier = ring_row(c, sequence, position) + start;
            for (int32_t i = 0; i < count; i++) sums[i] += taps[i * c->length] * earlier[i];
        }
    }
    const float *gate = c->gates + ((int64_t)row * 3 + 1) * c->hidden_size + start;
    float *output = c->output + (int64_t)row * c->hidden_size + start;
    for (int32_t i = 0; i < count; i++) output[i] = gate[i] * sums[i];
}

static void convolve_channels(void *context, int64_t begin, int64_t end, int32_t thread) {
    const conv_task *task = context;
    const em_short_conv *c = task->operation;
    (void)thread;
    for (int32_t first = 0; first < task->tokens;) {
        const int32_t after = first + segment_rows(c, first, task->tokens);
        for (int32_t row = first; row < after; row++) {
            for (int32_t start = (int32_t)begin; start < end; start += CHANNELS_AT_ONCE) {
                const int32_t left = (int32_t)end - start;
                convolve(c, first, row, start, left < CHANNELS_AT_ONCE ? left : CHANNELS_AT_ONCE);
            }
        }
        /* Of a segment longer than the ring only its last rows stay. */
        for (int32_t row = after - first > c->ring ? after - c->ring : first; row < after; row++) {
            float *kept = ring_row(c, c->sequences[row], c->positions[row]);
            for (int32_t i = (int32_t)begin; i < end; i++) kept[i] = input_at(c, row, i);
        }
        first = after;
    }
}

EM_NO_SCRATCH(short_conv)

int32_t em_run_short_conv(const em_short_conv *conv, const em_run *run) {
    for (int32_t t = 0; t < run->tokens; t++) {
        if (conv->sequences[t] < 0 || conv->sequences[t] >= conv->sequence_count) return EM_BAD_POSITION;
        if (conv->positions[t] < 0) return EM_BAD_POSITION;
    }
    conv_task task = {conv, run->tokens};
    const int64_t products = (int64_t)run->tokens * conv->length;
    em_pool_for(run->pool, conv->hidden_size, (CHUNK_PRODUCTS + products - 1) / products, convolve_channels, &task);
    return EM_OK;
}
