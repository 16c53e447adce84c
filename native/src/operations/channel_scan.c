/* ChannelScan: the recurrent state of each channel, whose numbers decay each at its own rate, by one token after another.
 *
 * Segments and panels are those of the delta rule (delta_rule.c), and threads share out panels of channels. A panel takes
 * all rows while its state and its rates stay in the first-level cache. Exponentials, which cost most, are those of the
 * instruction set. */
#include "recurrent.h"

#include <math.h>

#include "../../kernels/exponential.h"

typedef struct channels_task {
    const em_channel_scan *operation;
    const em_run *run;
} channels_task;

/* What a panel of channels needs whatever the row: its rates (width, EM_PANEL_ROWS) and skips, zeros after the last. */
typedef struct panel_weights {
    float rates[EM_WIDEST_KEYS * EM_PANEL_ROWS], skip[EM_PANEL_ROWS];
} panel_weights;

static void read_weights(const em_channel_scan *s, int32_t first_channel, int32_t count, panel_weights *weights) {
    memset(weights->rates, 0, (size_t)s->head_dim * EM_PANEL_ROWS * sizeof *weights->rates);
    for (int32_t c = 0; c < count; c++) {
        const float *rate = s->rate + (int64_t)(first_channel + c) * s->head_dim;
        for (int32_t i = 0; i < s->head_dim; i++) weights->rates[i * EM_PANEL_ROWS + c] = rate[i];
    }
    memset(weights->skip, 0, sizeof weights->skip);
    memcpy(weights->skip, s->skip + first_channel, (size_t)count * sizeof *weights->skip);
}

/* steps = softplus(steps), as em_softplus computes it. */
static void to_softplus(const em_kernels *kernels, float steps[EM_PANEL_ROWS]) {
    float powers[EM_PANEL_ROWS];
    for (int32_t c = 0; c < EM_PANEL_ROWS; c++) powers[c] = -fabsf(steps[c]);
    kernels->exponentials(powers, EM_PANEL_ROWS, 0);
    for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
        steps[c] = (steps[c] > 0.0f ? steps[c] : 0.0f) + em_log_of_one_plus(powers[c]);
    }
}

/* The panel's channels take one row. */
static void update_panel(const channels_task *task, const panel_weights *weights, int32_t panel, int32_t row) {
    const em_channel_scan *s = task->operation;
    const em_kernels *kernels = task->run->kernels;
    const int32_t first = panel * EM_PANEL_ROWS, left = s->channels - first;
    const int32_t count = left < EM_PANEL_ROWS ? left : EM_PANEL_ROWS;
    const size_t panel_floats = (size_t)s->head_dim * EM_PANEL_ROWS;
    float *state = s->states + ((size_t)s->sequences[row] * em_panel_count(s->channels) + panel) * panel_floats;
    float decays[EM_WIDEST_KEYS * EM_PANEL_ROWS], steps[EM_PANEL_ROWS] = {0}, values[EM_PANEL_ROWS], output[EM_PANEL_ROWS];
    memcpy(steps, s->step + (int64_t)row * s->channels + first, (size_t)count * sizeof *steps);
    to_softplus(kernels, steps);
    for (int32_t i = 0; i < s->head_dim; i++) {
        for (int32_t c = 0; c < EM_PANEL_ROWS; c++) {
            decays[i * EM_PANEL_ROWS + c] = weights->rates[i * EM_PANEL_ROWS + c] * steps[c];
        }
    }
    kernels->exponentials(decays, s->head_dim * EM_PANEL_ROWS, 0);
    const em_channels_row of_panel = {
        .query = s->queries + (int64_t)row * s->head_dim,
        .key = s->keys + (int64_t)row * s->head_dim,
        .decays = decays,
        .steps = steps,
        .values = em_panel_values(s->input + (int64_t)row * s->channels + first, left, values),
        .output = output,
    };
    /* Before its first position a sequence has no state, whatever lies there. */
    if (s->positions[row] == 0) memset(state, 0, panel_floats * sizeof *state);
    kernels->channels(state, &of_panel, weights->skip, s->head_dim);
    memcpy(s->output + (int64_t)row * s->channels + first, output, (size_t)count * sizeof *output);
}

static void update_items(void *context, int64_t begin, int64_t end, int32_t thread) {
    const channels_task *task = context;
    const em_channel_scan *s = task->operation;
    panel_weights weights;
    (void)thread;
    for (int64_t panel = begin; panel < end; panel++) {
        const int32_t first = (int32_t)panel * EM_PANEL_ROWS, left = s->channels - first;
        read_weights(s, first, left < EM_PANEL_ROWS ? left : EM_PANEL_ROWS, &weights);
        for (int32_t row = 0; row < task->run->tokens; row++) update_panel(task, &weights, (int32_t)panel, row);
    }
}

EM_NO_SCRATCH(channel_scan)

int32_t em_run_channel_scan(const em_channel_scan *scan, const em_run *run) {
    if (scan->head_dim > EM_WIDEST_KEYS) return EM_BAD_OPERATION;
    const int32_t status = em_check_rows(scan->positions, scan->sequences, scan->sequence_count, run->tokens);
    if (status != EM_OK) return status;
    channels_task task = {scan, run};
    /* An exponential costs about as much as eight products. */
    const int64_t products = 8 * (int64_t)run->tokens * EM_PANEL_ROWS * scan->head_dim;
    em_pool_for(run->pool, em_panel_count(scan->channels), (EM_CHUNK_PRODUCTS + products - 1) / products, update_items, &task);
    return EM_OK;
}
