/* Mixtures that no router routes: slots that every row mixes into (Soft MoE), and factorised experts (muMoE).
 *
 * Every sum has one order, whatever the threads: that of a row's columns runs over 8 lanes, that of rows or slots over one
 * after the other. */
#include "../operations.h"

#include <math.h>
#include <string.h>

#include "../../kernels/exponential.h"

enum {
    /* A chunk of fewer numbers than this costs more to hand out than to do. */
    CHUNK_NUMBERS = 8192,
    LANES = 8,
};

static const float LEAST_LENGTH = 1e-12f;

typedef struct mixture_task {
    const void *operation;
    const em_run *run;
    float *made; /* in scratch */
} mixture_task;

/* Shares out items, of which each takes about so many numbers. */
static void share_out(const void *operation, const em_run *run, int64_t items, em_task *work, int64_t numbers,
                      float *made) {
    mixture_task task = {operation, run, made};
    em_pool_for(run->pool, items, (CHUNK_NUMBERS + numbers - 1) / numbers, work, &task);
}

static float dot(const float *a, const float *b, int32_t count) {
    float lanes[LANES] = {0};
    int32_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int32_t lane = 0; lane < LANES; lane++) lanes[lane] += a[i + lane] * b[i + lane];
    }
    for (int32_t lane = 0; i < count; i++, lane++) lanes[lane] += a[i] * b[i];
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

static void add_row(float *sums, const float *row, float share, int32_t count) {
    for (int32_t i = 0; i < count; i++) sums[i] += share * row[i];
}

/* ---- 1.5-entmax ------------------------------------------------------------------------------------------ */

/* The number that is subtracted from halves, which are sorted in falling order: in float64, as it is a difference of
 * numbers that are nearly alike. */
static double entmax_bound(const float *sorted, int32_t count) {
    double sum = 0, squares = 0, tau = 0;
    for (int32_t k = 1; k <= count; k++) {
        const double half = sorted[k - 1];
        sum += half;
        squares += half * half;
        const double mean = sum / k, room = (1 - (squares - k * mean * mean)) / k;
        const double bound = mean - sqrt(room > 0 ? room : 0);
        if (bound > half) break;
        tau = bound;
    }
    return tau;
}

static void entmax_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const mixture_task *task = context;
    const em_entmax *e = task->operation;
    const int32_t count = e->num_experts;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        float *values = e->values + row * count, *sorted = task->made + row * count;
        float largest = values[0];
        for (int32_t i = 1; i < count; i++) largest = values[i] > largest ? values[i] : largest;
        for (int32_t i = 0; i < count; i++) {
            values[i] = (values[i] - largest) / 2;
            int32_t place = i;
            for (; place && sorted[place - 1] < values[i]; place--) sorted[place] = sorted[place - 1];
            sorted[place] = values[i];
        }
        const double tau = entmax_bound(sorted, count);
        for (int32_t i = 0; i < count; i++) {
            const double above = values[i] - tau;
            values[i] = above > 0 ? (float)(above * above) : 0;
        }
    }
}

size_t em_entmax_scratch_bytes(const em_entmax *e, int32_t tokens) {
    return (size_t)tokens * e->num_experts * sizeof(float);
}

int32_t em_run_entmax(const em_entmax *e, const em_run *run) {
    share_out(e, run, run->tokens, entmax_rows, (int64_t)e->num_experts * 8, (float *)(void *)run->scratch);
    return EM_OK;
}

/* ---- norm by the numbers of training ---------------------------------------------------------------------- */

static void batch_norm_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_batch_norm *n = ((const mixture_task *)context)->operation;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        float *values = n->values + row * n->columns;
        for (int32_t i = 0; i < n->columns; i++) {
            values[i] = (values[i] - n->mean[i]) / sqrtf(n->variance[i] + n->epsilon);
        }
    }
}

EM_NO_SCRATCH(batch_norm)

int32_t em_run_batch_norm(const em_batch_norm *norm, const em_run *run) {
    share_out(norm, run, run->tokens, batch_norm_rows, norm->columns * 4, NULL);
    return EM_OK;
}

/* ---- products of pairs of small matrices -------------------------------------------------------------------- */

static void pair_products_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_pair_products *p = ((const mixture_task *)context)->operation;
    const int32_t height = p->height, inner = p->inner, width = p->width;
    (void)thread;
    for (int64_t pair = begin * p->count; pair < end * p->count; pair++) {
        const float *left = p->left + pair * height * inner, *right = p->right + pair * inner * width;
        float *output = p->output + pair * height * width;
        memset(output, 0, (size_t)height * width * sizeof *output);
        for (int32_t i = 0; i < height; i++) {
            for (int32_t j = 0; j < inner; j++) add_row(output + i * width, right + j * width, left[i * inner + j], width);
        }
    }
}

EM_NO_SCRATCH(pair_products)

int32_t em_run_pair_products(const em_pair_products *p, const em_run *run) {
    const int64_t numbers = (int64_t)p->count * p->height * p->inner * p->width;
    share_out(p, run, run->tokens, pair_products_rows, numbers, NULL);
    return EM_OK;
}

/* ---- slots ------------------------------------------------------------------------------------------------- */

static float per_length(const float *row, int32_t count) {
    const float length = sqrtf(dot(row, row, count));
    return 1.0f / (length > LEAST_LENGTH ? length : LEAST_LENGTH);
}

/* The slots' vectors, of unit length and with their gain as the operation says. */
static void make_slots(void *context, int64_t begin, int64_t end, int32_t thread) {
    const mixture_task *task = context;
    const em_slot_logits *o = task->operation;
    const int32_t width = o->hidden_size;
    (void)thread;
    for (int64_t slot = begin; slot < end; slot++) {
        const float *own = o->slots + slot * width;
        const float factor = o->unit_slots ? per_length(own, width) : 1.0f;
        for (int32_t d = 0; d < width; d++) {
            task->made[slot * width + d] = own[d] * factor * (o->gain ? o->gain[d] : 1.0f);
        }
    }
}

static void slot_logits_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const mixture_task *task = context;
    const em_slot_logits *o = task->operation;
    const int32_t width = o->hidden_size;
    const float factor = o->factor * (o->scale ? o->scale[0] : 1.0f);
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *input = o->input + row * width;
        const float own = o->unit_input ? factor * per_length(input, width) : factor;
        float *logits = o->logits + row * o->slot_count;
        for (int32_t s = 0; s < o->slot_count; s++) logits[s] = own * dot(input, task->made + (int64_t)s * width, width);
    }
}

size_t em_slot_logits_scratch_bytes(const em_slot_logits *o, int32_t tokens) {
    (void)tokens;
    return (size_t)o->slot_count * o->hidden_size * sizeof(float);
}

int32_t em_run_slot_logits(const em_slot_logits *o, const em_run *run) {
    float *made = (float *)(void *)run->scratch;
    share_out(o, run, o->slot_count, make_slots, o->hidden_size, made);
    share_out(o, run, run->tokens, slot_logits_rows, (int64_t)o->slot_count * o->hidden_size, made);
    return EM_OK;
}

static void dispatch_slots(void *context, int64_t begin, int64_t end, int32_t thread) {
    const mixture_task *task = context;
    const em_dispatch *d = task->operation;
    const int32_t tokens = task->run->tokens, slots = d->slot_count, width = d->hidden_size;
    (void)thread;
    for (int64_t slot = begin; slot < end; slot++) {
        const float *logits = d->logits + slot;
        float *output = d->slots + slot * width, largest = logits[0], sum = 0;
        for (int64_t t = 1; t < tokens; t++) largest = logits[t * slots] > largest ? logits[t * slots] : largest;
        for (int64_t t = 0; t < tokens; t++) sum += em_exp(logits[t * slots] - largest);
        memset(output, 0, (size_t)width * sizeof *output);
        for (int64_t t = 0; t < tokens; t++) {
            add_row(output, d->input + t * width, em_exp(logits[t * slots] - largest) / sum, width);
        }
    }
}

EM_NO_SCRATCH(dispatch)

int32_t em_run_dispatch(const em_dispatch *dispatch, const em_run *run) {
    share_out(dispatch, run, dispatch->slot_count, dispatch_slots, (int64_t)run->tokens * dispatch->hidden_size, NULL);
    return EM_OK;
}

static void collect_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const em_collect *c = ((const mixture_task *)context)->operation;
    const int32_t slots = c->slot_count, width = c->hidden_size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const float *logits = c->logits + row * slots;
        float *output = c->output + row * width, largest = logits[0], sum = 0;
        for (int32_t s = 1; s < slots; s++) largest = logits[s] > largest ? logits[s] : largest;
        for (int32_t s = 0; s < slots; s++) sum += em_exp(logits[s] - largest);
        memset(output, 0, (size_t)width * sizeof *output);
        for (int32_t s = 0; s < slots; s++) {
            add_row(output, c->values + (int64_t)s * width, em_exp(logits[s] - largest) / sum, width);
        }
    }
}

EM_NO_SCRATCH(collect)

int32_t em_run_collect(const em_collect *collect, const em_run *run) {
    share_out(collect, run, run->tokens, collect_rows, (int64_t)collect->slot_count * collect->hidden_size, NULL);
    return EM_OK;
}

/* ---- an expert on its slots ---------------------------------------------------------------------------------- */

/* The FFN whose run has the expert's slots in the place of tokens. */
static em_plain_ffn ffn_of(const em_slot_ffn *o) {
    const int64_t start = o->first * o->hidden_size;
    return (em_plain_ffn){.input = o->slots ? o->slots + start : NULL,
                          .up = o->up,
                          .down = o->down,
                          .output = o->output ? o->output + start : NULL,
                          .activation = o->activation,
                          .biases = o->biases,
                          .hidden_size = o->hidden_size,
                          .intermediate_size = o->intermediate_size};
}

size_t em_slot_ffn_scratch_bytes(const em_slot_ffn *o, int32_t tokens) {
    const em_plain_ffn ffn = ffn_of(o);
    (void)tokens;
    return em_plain_ffn_scratch_bytes(&ffn, (int32_t)o->count);
}

int32_t em_run_slot_ffn(const em_slot_ffn *o, const em_run *run) {
    const em_plain_ffn ffn = ffn_of(o);
    em_run own = *run;
    own.tokens = (int32_t)o->count;
    return em_run_plain_ffn(&ffn, &own);
}
