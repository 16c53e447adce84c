/* Whole programs: every operation over threads and cuts of a prompt to the bit, and what a run refuses.
 *
 * That an operation means what it should is held in Python, against reference.py; here the sanitizers watch. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "kernels/half.h"
#include "kernels/kernels.h"

enum {
    TOKENS = 75, /* more than one tile of rows and block of keys, and not a whole number of them */
    VOCABULARY = 50,
    WIDTH = 72,
    HEADS = 4,
    GROUPS = 2,
    HEAD_WIDTH = 18,
    PAGES = 2,
    CONTEXT = 90, /* less than what the pages hold */
    EXPERTS = 5,
    USED = 2,
    FFN = 40,
    SLOTS = 4,
    TAPS = 3,
    RING = 4,
    OPERATIONS = 18, /* of which one begins to read experts */
};

static em_matrix random_matrix(int32_t format, int32_t rows, int32_t columns) {
    const size_t bytes = em_panel_count(rows) * em_panel_bytes(format, columns);
    uint8_t *data = allocate(bytes);
    for (size_t i = 0; i < bytes; i += 2) {
        /* As scales and f16 weights small numbers, as f32 and m4 weights too, as nibbles anything. */
        const uint16_t half = em_float_to_half(random_float() / 8);
        memcpy(data + i, &half, sizeof half);
    }
    for (size_t i = 0; format == EM_F32 && i < bytes / 4; i++) ((float *)(void *)data)[i] = random_float() / 8;
    for (size_t i = 0; format == EM_M4 && i < bytes; i++) data[i] = (uint8_t)(118 + random_bits() % 8);
    return (em_matrix){data, format, rows, columns};
}

/* A small decoder's worth of operations and all its buffers. */
typedef struct model {
    em_operation operations[OPERATIONS];
    int32_t count;
    int32_t ids[TOKENS], positions[TOKENS], sequences[TOKENS], pages[1][PAGES];
    int32_t slots[EXPERTS];
    uint8_t layout_of[EXPERTS]; /* all the first */
    float hidden[TOKENS][WIDTH], normed[TOKENS][WIDTH], query[TOKENS][WIDTH], key[TOKENS][GROUPS * HEAD_WIDTH];
    float value[TOKENS][GROUPS * HEAD_WIDTH], attended[TOKENS][WIDTH], logits[TOKENS][EXPERTS];
    int32_t chosen[TOKENS][USED];
    float weights[TOKENS][USED], routed[TOKENS][USED][WIDTH], shared[TOKENS][WIDTH], shared_gate[TOKENS][1];
    float gates[TOKENS][3 * WIDTH], taps[WIDTH][TAPS], ring[1][RING][WIDTH], convolved[TOKENS][WIDTH];
    float norm[WIDTH], bias[WIDTH], cosine[CONTEXT][HEAD_WIDTH / 2], sine[CONTEXT][HEAD_WIDTH / 2];
    float caches[2][PAGES][GROUPS][EM_PAGE_TOKENS][HEAD_WIDTH]; /* large enough for every format */
    uint16_t cache_scales[2][PAGES][GROUPS][EM_PAGE_TOKENS][1];
    void *owned[OPERATIONS];
    int32_t owned_count;
} model;

static em_operation *add(model *m, em_kind kind) {
    CHECK(m->count < OPERATIONS);
    m->operations[m->count].kind = kind;
    return &m->operations[m->count++];
}

static em_matrix owned_matrix(model *m, int32_t format, int32_t rows, int32_t columns) {
    const em_matrix matrix = random_matrix(format, rows, columns);
    CHECK(m->owned_count < OPERATIONS);
    m->owned[m->owned_count++] = (void *)(uintptr_t)matrix.data;
    return matrix;
}

static em_linear_part part_of(em_matrix matrix, const float *bias, float *output) {
    return (em_linear_part){.matrix = matrix, .bias = bias, .output = output};
}

static em_rope rope_of(model *m, float *values, int32_t heads) {
    return (em_rope){.values = values,
                     .heads = heads,
                     .positions = m->positions,
                     .cosine = *m->cosine,
                     .sine = *m->sine,
                     .head_dim = HEAD_WIDTH,
                     .rotated = HEAD_WIDTH,
                     .context = CONTEXT};
}

static void add_attention(model *m, int32_t cache_format) {
    add(m, EM_RMS_NORM)->as.rms_norm = (em_rms_norm){
        .input = *m->hidden, .weight = m->norm, .output = *m->normed, .epsilon = 1e-5f, .heads = 1, .head_dim = WIDTH};
    em_linear *qkv = &add(m, EM_LINEAR)->as.linear;
    *qkv = (em_linear){.input = *m->normed, .parts_count = 3, .scale = 1};
    qkv->parts[0] = part_of(owned_matrix(m, EM_Q4M, WIDTH, WIDTH), m->bias, *m->query);
    qkv->parts[1] = part_of(owned_matrix(m, EM_F16, GROUPS * HEAD_WIDTH, WIDTH), NULL, *m->key);
    qkv->parts[2] = part_of(owned_matrix(m, EM_Q8, GROUPS * HEAD_WIDTH, WIDTH), NULL, *m->value);
    add(m, EM_ROPE)->as.rope = rope_of(m, *m->query, HEADS);
    add(m, EM_ROPE)->as.rope = rope_of(m, *m->key, GROUPS);
    const em_cache keys = {m->caches[0], ***m->cache_scales[0], cache_format};
    const em_cache values = {m->caches[1], ***m->cache_scales[1], cache_format};
    add(m, EM_STORE_KV)->as.store_kv =
        (em_store_kv){
        .keys = *m->key, .values = *m->value, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages,
        .key_cache = keys, .value_cache = values, .sequence_count = 1, .table_pages = PAGES, .page_count = PAGES,
        .kv_heads = GROUPS, .head_dim = HEAD_WIDTH, .value_dim = HEAD_WIDTH};
    add(m, EM_ATTENTION)->as.attention = (em_attention){
        .query = *m->query, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages, .key_cache = keys,
        .value_cache = values, .scale = 0.2f, .output = *m->attended, .sequence_count = 1, .table_pages = PAGES,
        .page_count = PAGES, .kv_heads = GROUPS, .head_dim = HEAD_WIDTH, .heads = HEADS,
        .value_dim = HEAD_WIDTH};
    em_linear *output = &add(m, EM_LINEAR)->as.linear;
    *output = (em_linear){.input = *m->attended, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    output->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, WIDTH), NULL, *m->hidden);
}

static void add_convolution(model *m) {
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 1, .scale = 1};
    in->parts[0] = part_of(owned_matrix(m, EM_Q8, 3 * WIDTH, WIDTH), NULL, *m->gates);
    add(m, EM_SHORT_CONV)->as.short_conv = (em_short_conv){
        .gates = *m->gates, .taps = *m->taps, .bias = m->bias, .positions = m->positions, .sequences = m->sequences,
        .inputs = **m->ring, .output = *m->convolved, .hidden_size = WIDTH, .length = TAPS, .sequence_count = 1,
        .ring = RING};
    em_linear *out = &add(m, EM_LINEAR)->as.linear;
    *out = (em_linear){.input = *m->convolved, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    out->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, WIDTH), NULL, *m->hidden);
}

static void add_moe(model *m) {
    em_linear *router = &add(m, EM_LINEAR)->as.linear;
    *router = (em_linear){.input = *m->hidden, .parts_count = 2, .scale = 1};
    router->parts[0] = part_of(owned_matrix(m, EM_F32, EXPERTS, WIDTH), NULL, *m->logits);
    router->parts[1] = part_of(owned_matrix(m, EM_F32, 1, WIDTH), NULL, *m->shared_gate);
    add(m, EM_ROUTE)->as.route = (em_route){
        .logits = *m->logits, .experts = *m->chosen, .weights = *m->weights, .num_experts = EXPERTS, .top_k = USED,
        .renormalise = 1, .groups = 1, .kept_groups = 1, .scale = 1};
    em_gated_ffn *shared = &add(m, EM_GATED_FFN)->as.gated_ffn;
    const em_activation clamped = {.function = EM_FUNCTION_CLAMPED_SILU, .alpha = 1.702f, .limit = 0.5f, .offset = 1};
    *shared = (em_gated_ffn){.input = *m->hidden, .output = *m->shared, .activation = clamped};
    shared->biases = (em_ffn_biases){m->bias, m->bias + 1, m->bias}; /* of 40, 40 and 72 numbers */
    shared->gate_up = owned_matrix(m, EM_Q8, 2 * 48, WIDTH);
    shared->down = owned_matrix(m, EM_F16, WIDTH, FFN);
    const int64_t gate_up_bytes = 2 * em_panel_count(FFN) * (int64_t)em_panel_bytes(EM_Q4, WIDTH);
    const int64_t down_bytes = em_panel_count(WIDTH) * (int64_t)em_panel_bytes(EM_Q8, FFN);
    const int64_t biases_offset = gate_up_bytes + down_bytes, bias_count = 48 + 48 + 80;
    const int64_t slot_bytes = biases_offset + bias_count * (int64_t)sizeof(float);
    const em_matrix arena = owned_matrix(m, EM_Q8, 16 * SLOTS * (int32_t)(slot_bytes / 544 + 1), 32);
    for (int64_t i = 0; i < SLOTS * bias_count; i++) {
        uint8_t *place = (uint8_t *)(uintptr_t)arena.data + i / bias_count * slot_bytes + biases_offset;
        ((float *)(void *)place)[i % bias_count] = random_float();
    }
    add(m, EM_EXPERTS)->as.experts = (em_experts){
        .input = *m->hidden,
        .experts = *m->chosen,
        .slots = m->slots,
        .arena = arena.data,
        .output = **m->routed,
        .layouts = {{.hidden_size = WIDTH,
                     .intermediate_size = FFN,
                     .gate_up_format = EM_Q4,
                     .down_format = EM_Q8,
                     .down_offset = gate_up_bytes,
                     .biases_offset = biases_offset}},
        .layouts_count = 1,
        .layout_of = m->layout_of,
        .slot_bytes = (int32_t)slot_bytes,
        .activation = clamped,
        .slot_count = SLOTS,
        .num_experts = EXPERTS,
        .hidden_size = WIDTH,
        .top_k = USED,
    };
    add(m, EM_COMBINE)->as.combine =
        (em_combine){
        .output = *m->hidden, .routed = **m->routed, .weights = *m->weights, .shared = *m->shared,
        .shared_gate = *m->shared_gate, .top_k = USED, .hidden_size = WIDTH, .scale = 0.7f,
        .accumulate = 1};
    add(m, EM_MIX)->as.mix =
        (em_mix){
        .base = *m->hidden, .result = *m->shared, .keep = m->norm, .share = m->bias, .shift = m->norm, .output = *m->hidden,
        .hidden_size = WIDTH, .scale = 0.3f};
}

static model *make_model_with(int32_t cache_format) {
    random_state = 88172645u;
    model *m = calloc(1, sizeof *m);
    CHECK(m);
    for (int i = 0; i < TOKENS; i++) m->ids[i] = (int32_t)(random_bits() % VOCABULARY);
    for (int i = 0; i < PAGES; i++) m->pages[0][i] = PAGES - 1 - i;
    for (int i = 0; i < EXPERTS; i++) m->slots[i] = i < SLOTS ? SLOTS - 1 - i : -1;
    for (int i = 0; i < WIDTH; i++) m->norm[i] = m->bias[i] = random_float();
    for (int i = 0; i < WIDTH * TAPS; i++) m->taps[i / TAPS][i % TAPS] = random_float();
    for (int i = 0; i < CONTEXT * HEAD_WIDTH / 2; i++) {
        /* Not cosf and sinf, which no two C libraries compute alike. */
        m->cosine[i / (HEAD_WIDTH / 2)][i % (HEAD_WIDTH / 2)] = random_float();
        m->sine[i / (HEAD_WIDTH / 2)][i % (HEAD_WIDTH / 2)] = random_float();
    }
    add(m, EM_EMBED)->as.embed = (em_embed){
        .ids = m->ids, .output = *m->hidden, .matrix = owned_matrix(m, EM_M4, VOCABULARY, WIDTH), .scale = 2.0f};
    add_attention(m, cache_format);
    add_convolution(m);
    add_moe(m);
    return m;
}

static model *make_model(void) { return make_model_with(EM_F16); }

static void free_model(model *m) {
    for (int32_t i = 0; i < m->owned_count; i++) free(m->owned[i]);
    free(m);
}

static em_program program_of(const char *isa, em_pool *pool, const em_operation *operations, int32_t count,
                             int32_t tokens_max, const em_scratch *scratch) {
    return (em_program){.kernels = em_kernels_for(isa),
                        .pool = pool,
                        .operations = operations,
                        .scratch = scratch,
                        .scratch_bytes = em_program_scratch_bytes(operations, count, tokens_max),
                        .operation_count = count,
                        .tokens_max = tokens_max,
                        .failed_operation = -1};
}

/* The first `tokens` tokens, from `position` on, on `threads` threads. */
static int32_t run(model *m, const char *isa, int32_t threads, int32_t tokens, int32_t position) {
    em_pool *pool;
    for (int32_t t = 0; t < tokens; t++) m->positions[t] = position + t;
    CHECK_STATUS(EM_OK, em_pool_create(threads, 20, &pool));
    const uint64_t bytes = em_program_scratch_bytes(m->operations, m->count, TOKENS);
    const em_scratch scratch = {allocate(bytes), bytes};
    em_program program = program_of(isa, pool, m->operations, m->count, TOKENS, &scratch);
    const int32_t status = em_program_run(&program, tokens);
    CHECK((status == EM_OK) == (program.failed_operation == -1));
    free(scratch.data);
    em_pool_destroy(pool);
    return status;
}

static em_attention *attention_of(model *m) {
    int32_t i = 0;
    while (m->operations[i].kind != EM_ATTENTION) i++;
    return &m->operations[i].as.attention;
}

/* The first of these is the usual model. */
static const struct variant {
    int32_t window;
    const float *sinks;
} variants[] = {{0, NULL}, {1, NULL}, {20, (const float[HEADS]){1, -2, 0.5f, 30}}, {70, NULL}};

enum { VARIANTS = sizeof variants / sizeof *variants };

static model *make_variant(int32_t cache_format, int32_t variant) {
    model *m = make_model_with(cache_format);
    attention_of(m)->window = variants[variant].window;
    attention_of(m)->sinks = variants[variant].sinks;
    return m;
}

static void test_same_bits(int32_t cache_format, int32_t variant) {
    model *first = make_variant(cache_format, variant);
    CHECK_STATUS(EM_OK, run(first, "generic", 1, TOKENS, 0));
    for (int i = 0; i < TOKENS; i++) CHECK(isfinite(first->hidden[i][0]));
    for (int32_t set = 0; set < em_isa_count(); set++) {
        for (int32_t threads = 1; threads <= 5; threads += 2) {
            model *m = make_variant(cache_format, variant);
            CHECK_STATUS(EM_OK, run(m, em_isa_name(set), threads, TOKENS, 0));
            CHECK(memcmp(m->hidden, first->hidden, sizeof m->hidden) == 0);
            free_model(m);
        }
        /* Two at once, then one by one. */
        model *m = make_variant(cache_format, variant);
        CHECK_STATUS(EM_OK, run(m, em_isa_name(set), 2, 2, 0));
        CHECK(memcmp(m->hidden, first->hidden, 2 * sizeof m->hidden[0]) == 0);
        for (int t = 2; t < TOKENS; t++) {
            m->ids[0] = m->ids[t];
            memset(m->routed, 0, sizeof m->routed); /* an absent expert leaves its rows */
            CHECK_STATUS(EM_OK, run(m, em_isa_name(set), 2, 1, t));
            CHECK(memcmp(m->hidden[0], first->hidden[t], sizeof m->hidden[0]) == 0);
        }
        free_model(m);
    }
    add_to_digest(first->hidden, sizeof first->hidden);
    print_digest("a program"); /* the same for every processor */
    free_model(first);
}

static void test_absent_experts_are_left(void) {
    model *m = make_model();
    for (int i = 0; i < EXPERTS; i++) m->slots[i] = -1;
    float *routed = **m->routed;
    for (int i = 0; i < TOKENS * USED * WIDTH; i++) routed[i] = 5;
    CHECK_STATUS(EM_OK, run(m, em_isa_name(0), 2, TOKENS, 0));
    for (int i = 0; i < TOKENS * USED * WIDTH; i++) CHECK(routed[i] == 5);
    free_model(m);
}

static em_experts *experts_of(model *m) {
    int32_t i = 0;
    while (m->operations[i].kind != EM_EXPERTS) i++;
    return &m->operations[i].as.experts;
}

/* The arena of a model as a file, and the arena wiped. */
static int arena_to_file(const em_experts *e) {
    char path[] = "/tmp/edgemoe-arena-XXXXXX";
    const int file = mkstemp(path);
    CHECK(file >= 0);
    unlink(path);
    const size_t bytes = (size_t)(e->slot_bytes * e->slot_count);
    CHECK(write(file, e->arena, bytes) == (ssize_t)bytes);
    memset((void *)(uintptr_t)e->arena, 0xEE, bytes);
    return file;
}

/* A model whose experts a pager has in the first `slot_count` slots of its arena. */
typedef struct paged_model {
    model *m;
    em_experts *experts;
    em_reader *reader;
    em_pager *pager;
    em_record records[EXPERTS];
    int32_t slots[EXPERTS];
    int64_t tickets[SLOTS];
    em_pager_counters counters;
    em_read_failure failure;
    int file;
} paged_model;

/* The last expert's record is that of the first, so that all have one. */
static model *make_whole_model(void) {
    model *m = make_model();
    m->slots[EXPERTS - 1] = m->slots[0];
    return m;
}

static paged_model *make_paged(int32_t slot_count, int32_t threads, int64_t timeout_us) {
    paged_model *p = calloc(1, sizeof *p);
    CHECK(p);
    p->m = make_whole_model();
    em_experts *e = experts_of(p->m);
    p->file = arena_to_file(e);
    for (int i = 0; i < EXPERTS; i++) {
        const int64_t bytes = e->slot_bytes;
        p->records[i] =
            (em_record){.offset = p->m->slots[i] * bytes, .length = bytes, .crc32c = -1, .descriptor = p->file};
    }
    em_pager_setup setup = {.records = p->records,
                            .arena = (uint8_t *)(uintptr_t)e->arena,
                            .slots = p->slots,
                            .tickets = p->tickets,
                            .counters = &p->counters,
                            .failure = &p->failure,
                            .slot_bytes = e->slot_bytes,
                            .timeout_us = timeout_us,
                            .slot_count = slot_count,
                            .layers = 1,
                            .experts = EXPERTS};
    CHECK_STATUS(EM_OK, em_reader_create(threads, SLOTS, 512, 0, &p->reader));
    em_reader_source(p->reader, &setup.source);
    CHECK_STATUS(EM_OK, em_pager_create(&setup, &p->pager));
    /* The fetch comes where the routing is known: the operations from there on move up by one. */
    model *m = p->m;
    int32_t route = 0;
    while (m->operations[route].kind != EM_ROUTE) route++;
    memmove(&m->operations[route + 2], &m->operations[route + 1],
            (size_t)(m->count++ - route - 1) * sizeof *m->operations);
    m->operations[route + 1] = (em_operation){.kind = EM_FETCH};
    m->operations[route + 1].as.fetch =
        (em_fetch){.experts = *m->chosen, .paged = {.pager = p->pager}, .top_k = USED};
    p->experts = experts_of(m);
    p->experts->slots = p->slots;
    p->experts->slot_count = slot_count;
    p->experts->paged.pager = p->pager;
    return p;
}

static void free_paged(paged_model *p) {
    em_reader_destroy(p->reader);
    em_pager_destroy(p->pager);
    close(p->file);
    free_model(p->m);
    free(p);
}

/* Records that land while the operations run, in whatever order, and in waves where slots are few, give what records give
 * that are there. */
static void test_paged_experts(void) {
    model *there = make_whole_model();
    CHECK_STATUS(EM_OK, run(there, em_isa_name(0), 2, TOKENS, 0));
    for (int round = 0; round < 30; round++) {
        paged_model *p = make_paged(1 + round % SLOTS, 1 + round % 3, round % 2 ? -1 : 10000000);
        for (int again = 0; again < 2; again++) {
            CHECK_STATUS(EM_OK, em_pager_set_phase(p->pager, again ? EM_DECODE : EM_PROMPT));
            CHECK_STATUS(EM_OK, run(p->m, em_isa_name(round % em_isa_count()), 1 + round % 3, TOKENS, 0));
            CHECK(memcmp(p->m->hidden, there->hidden, sizeof there->hidden) == 0);
        }
        CHECK(p->counters.misses > 0);
        for (int i = 0; i < EXPERTS; i++) CHECK(p->slots[i] < 0 || p->tickets[p->slots[i]] == -1);
        free_paged(p);
    }
    free_model(there);
}

/* A read that fails ends the run, is named, and leaves its expert absent; the next run is right. */
static void test_paged_failures(void) {
    model *there = make_whole_model();
    CHECK_STATUS(EM_OK, run(there, em_isa_name(0), 2, TOKENS, 0));
    paged_model *p = make_paged(SLOTS, 2, 10000000);
    const int32_t lost = there->chosen[3][1];
    const int good = p->records[lost].descriptor;
    int pipe_ends[2];
    CHECK(pipe(pipe_ends) == 0); /* a pipe cannot be read at an offset */
    p->records[lost].descriptor = pipe_ends[0];
    for (int again = 0; again < 2; again++) {
        CHECK_STATUS(EM_READ_FAILED, run(p->m, em_isa_name(0), 2, TOKENS, 0));
        CHECK(p->failure.layer == 0 && p->failure.expert == lost && p->failure.status == EM_READ_FAILED);
        CHECK(p->slots[lost] == -1);
    }
    p->records[lost].descriptor = good;
    CHECK_STATUS(EM_OK, run(p->m, em_isa_name(0), 2, TOKENS, 0));
    CHECK(memcmp(p->m->hidden, there->hidden, sizeof there->hidden) == 0);
    /* What was not fetched, or by a use of another layer, is refused. */
    p->m->operations[0] = (em_operation){.kind = EM_EXPERTS, .as.experts = *experts_of(p->m)};
    p->m->count = 1;
    CHECK_STATUS(EM_BAD_ARGUMENT, run(p->m, em_isa_name(0), 2, TOKENS, 0));
    p->m->operations[0] = (em_operation){.kind = EM_FETCH};
    p->m->operations[0].as.fetch = (em_fetch){.experts = *p->m->chosen, .paged = {.pager = p->pager}, .top_k = USED};
    p->m->operations[0].as.fetch.paged.layer = 1;
    CHECK_STATUS(EM_BAD_EXPERT, run(p->m, em_isa_name(0), 2, TOKENS, 0));
    p->m->operations[0].as.fetch.paged.layer = 0;
    p->m->chosen[0][0] = EXPERTS;
    CHECK_STATUS(EM_BAD_EXPERT, run(p->m, em_isa_name(0), 2, TOKENS, 0));
    free_paged(p);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    free_model(there);
}

/* Numbers that are not finite give results that are not, and nothing worse. */
static void test_not_finite(void) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3 * EM_CACHE_FORMATS; i++) {
        model *m = make_model_with(i / 3);
        m->bias[3] = bad[i % 3];
        CHECK_STATUS(EM_OK, run(m, em_isa_name(0), 2, TOKENS, 0));
        CHECK(!isfinite(m->hidden[0][0]));
        for (int t = 0; t < TOKENS; t++) {
            for (int k = 0; k < USED; k++) CHECK(m->chosen[t][k] >= 0 && m->chosen[t][k] < EXPERTS);
            CHECK(m->chosen[t][0] != m->chosen[t][1]);
        }
        free_model(m);
    }
}

/* By falling logit, on a tie the lower number, a NaN after all numbers. */
static void test_route_order(void) {
    const float logits[2][6] = {{NAN, 1, NAN, 2, -INFINITY, 2}, {0.5f, -0.0f, 0.0f, 0.5f, 7, -1}};
    const int32_t expected[2][6] = {{3, 5, 1, 4, 0, 2}, {4, 0, 3, 1, 2, 5}};
    int32_t chosen[2][6];
    float weights[2][6], sum = 0;
    em_operation operation = {.kind = EM_ROUTE};
    operation.as.route = (em_route){
        .logits = *logits, .experts = *chosen, .weights = *weights, .num_experts = 6, .top_k = 6, .renormalise = 1,
        .groups = 1, .kept_groups = 1, .scale = 1};
    em_pool *pool;
    CHECK_STATUS(EM_OK, em_pool_create(1, 0, &pool));
    const em_scratch scratch = {NULL, 0};
    em_program program = program_of("generic", pool, &operation, 1, 2, &scratch);
    CHECK_STATUS(EM_OK, em_program_run(&program, 2));
    CHECK(memcmp(chosen, expected, sizeof chosen) == 0);
    for (int k = 0; k < 6; k++) sum += weights[1][k];
    CHECK(fabsf(sum - 1) < 1e-6f && isnan(weights[0][5]));
    CHECK(fabsf(weights[1][1] / weights[1][0] - expf(-6.5f)) < 1e-6f);
    em_pool_destroy(pool);
}

/* With a bonus for experts in memory: the largest logit stays, scores choose the others, logits order them. */
static void test_route_bonus(void) {
    const float logits[4][6] = {
        {0, 6, 5, 4, 3, 2}, {1, 1, 1, 1, 1, 1}, {NAN, 1, INFINITY, 2, 3, 2}, {3e38f, -3e38f, 1, 2, 3, 4}};
    const int32_t slots[6] = {1, -1, -7, 0, -1, 4};
    /* Of a range of 6 half is 3: scores 3, 6, 5, 7, 3, 5, with 2 before 5 by its logit. A range that is not finite gives
     * no bonus. */
    const int32_t expected[4][3] = {{1, 2, 3}, {0, 1, 2}, {2, 4, 3}, {0, 5, 4}};
    for (int32_t set = 0; set < em_isa_count(); set++) {
        int32_t chosen[4][3];
        float weights[4][3];
        em_operation operation = {.kind = EM_ROUTE};
        operation.as.route = (em_route){
            .logits = *logits, .experts = *chosen, .weights = *weights, .slots = slots, .num_experts = 6,
            .top_k = 3, .renormalise = 1, .bonus = 0.5f, .groups = 1, .kept_groups = 1, .scale = 1};
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(2, 0, &pool));
        const em_scratch scratch = {NULL, 0};
        em_program program = program_of(em_isa_name(set), pool, &operation, 1, 4, &scratch);
        CHECK_STATUS(EM_OK, em_program_run(&program, 4));
        CHECK(memcmp(chosen, expected, sizeof chosen) == 0);
        CHECK(fabsf(weights[0][2] / weights[0][0] - expf(-2)) < 1e-6f); /* of the logits, not the scores */
        operation.as.route.bonus = 1; /* scores 6, 6, 5, 10, 3, 8 */
        CHECK_STATUS(EM_OK, em_program_run(&program, 1));
        CHECK(chosen[0][0] == 1 && chosen[0][1] == 3 && chosen[0][2] == 5);
        em_pool_destroy(pool);
    }
}

/* By sigmoid plus bias within kept groups; a NaN comes after all numbers and spoils the sum. */
static void test_route_groups(void) {
    const float logits[2][6] = {{0, 0, 9, NAN, 0, 0}, {NAN, NAN, NAN, NAN, NAN, NAN}};
    const float bias[6] = {0, 0.25f, 5, 0, 0.5f, 0};
    /* Sums of groups 1.25, NaN, 1.5: the second comes last. */
    const int32_t expected[2][4] = {{4, 1, 0, 5}, {0, 1, 2, 3}};
    for (int32_t set = 0; set < em_isa_count(); set++) {
        int32_t chosen[2][4];
        float weights[2][4], memory[64];
        em_operation operation = {.kind = EM_ROUTE};
        operation.as.route = (em_route){
            .logits = *logits, .experts = *chosen, .weights = *weights, .choice_bias = bias, .num_experts = 6, .top_k = 4,
            .score = EM_SCORE_SIGMOID, .renormalise = 1, .groups = 3, .kept_groups = 2, .scale = 2};
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(2, 0, &pool));
        const em_scratch scratch = {(uint8_t *)memory, sizeof memory};
        CHECK(em_program_scratch_bytes(&operation, 1, 2) <= sizeof memory);
        em_program program = program_of(em_isa_name(set), pool, &operation, 1, 2, &scratch);
        CHECK_STATUS(EM_OK, em_program_run(&program, 2));
        CHECK(memcmp(chosen[0], expected[0], sizeof chosen[0]) == 0);
        for (int k = 0; k < 4; k++) CHECK(weights[0][k] == 0.5f && chosen[1][k] >= 0 && chosen[1][k] < 6);
        em_pool_destroy(pool);
    }
}

static void test_refusals(void) {
    const char *isa = em_isa_name(0);
    model *m = make_model();
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run(NULL, 1));
    CHECK_STATUS(EM_BAD_POSITION, run(m, isa, 1, 1, CONTEXT));
    CHECK_STATUS(EM_BAD_POSITION, run(m, isa, 1, TOKENS, CONTEXT - TOKENS + 1));
    CHECK_STATUS(EM_BAD_POSITION, run(m, isa, 1, 1, -1));
    CHECK_STATUS(EM_BAD_POSITION, run(m, isa, 1, 1, INT32_MAX));
    m->ids[1] = VOCABULARY;
    CHECK_STATUS(EM_BAD_TOKEN_ID, run(m, isa, 1, 2, 0));
    CHECK_STATUS(EM_OK, run(m, isa, 1, 1, 0));
    m->ids[1] = -1;
    CHECK_STATUS(EM_BAD_TOKEN_ID, run(m, isa, 1, 2, 0));
    m->ids[1] = 1;
    for (int i = 0; i < EXPERTS; i++) m->slots[i] = SLOTS;
    CHECK_STATUS(EM_BAD_EXPERT, run(m, isa, 1, 2, 0));
    m->operations[0].kind = EM_KIND_COUNT;
    CHECK_STATUS(EM_BAD_OPERATION, run(m, isa, 1, 2, 0));
    free_model(m);
    m = make_model_with(EM_CACHE_FORMATS);
    CHECK_STATUS(EM_BAD_OPERATION, run(m, isa, 1, 1, 0));
    for (int32_t i = 0; i < m->count; i++) {
        em_store_kv *store = &m->operations[i].as.store_kv;
        if (m->operations[i].kind == EM_STORE_KV) store->key_cache.format = store->value_cache.format = EM_F16;
    }
    CHECK_STATUS(EM_BAD_OPERATION, run(m, isa, 1, 1, 0)); /* the attention's */
    free_model(m);
}

/* A row whose sequence or page does not exist is refused, before any row of the operation is written. */
static void test_refused_pages(em_kind kind, int32_t position) {
    model *m = make_model();
    int32_t number = 0;
    while (m->operations[number].kind != (int32_t)kind) number++;
    m->operations[0] = m->operations[number];
    m->count = 1;
    const int32_t bad[] = {-1, PAGES, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        m->pages[0][1] = bad[i];
        CHECK_STATUS(EM_OK, run(m, "generic", 1, 2, 0)); /* not in need of the second page */
        memset(m->caches, 0, sizeof m->caches);
        memset(m->attended, 0, sizeof m->attended);
        CHECK_STATUS(EM_BAD_POSITION, run(m, "generic", 1, 3, position));
        m->pages[0][1] = 0;
        m->sequences[2] = bad[i] == PAGES ? 1 : bad[i];
        CHECK_STATUS(EM_BAD_POSITION, run(m, "generic", 1, 3, 0));
        m->sequences[2] = 0;
    }
    for (int32_t first = EM_PAGE_TOKENS * PAGES - 2; first < EM_PAGE_TOKENS * PAGES + 2; first++) {
        CHECK_STATUS(EM_BAD_POSITION, run(m, "generic", 1, 3, first));
    }
    CHECK_STATUS(EM_BAD_POSITION, run(m, "generic", 1, 3, -1));
    const float *cached = ***m->caches[0];
    for (size_t i = 0; i < sizeof m->caches / sizeof *cached; i++) CHECK(cached[i] == 0);
    for (int i = 0; i < TOKENS * WIDTH; i++) CHECK(m->attended[i / WIDTH][i % WIDTH] == 0);
    free_model(m);
}

static void test_program_refusals(void) {
    model *m = make_model();
    em_pool *pool;
    CHECK_STATUS(EM_OK, em_pool_create(1, 0, &pool));
    const uint64_t bytes = em_program_scratch_bytes(m->operations, m->count, TOKENS);
    em_scratch scratch = {allocate(bytes), bytes - 1};
    em_program program = program_of("generic", pool, m->operations, m->count, TOKENS, &scratch);
    CHECK_STATUS(EM_SMALL_SCRATCH, em_program_run(&program, TOKENS));
    scratch.bytes = bytes;
    CHECK_STATUS(EM_OK, em_program_run(&program, TOKENS));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run(&program, 0));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run(&program, TOKENS + 1));
    program.kernels = NULL;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run(&program, 1));
    free(scratch.data);
    em_pool_destroy(pool);
    free_model(m);
}

/* Every operation of every run is timed once, and its waiting is part of it. */
static void test_times(void) {
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        model *m = make_model();
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(threads, 20, &pool));
        const uint64_t bytes = em_program_scratch_bytes(m->operations, m->count, TOKENS);
        const em_scratch scratch = {allocate(bytes), bytes};
        em_operation_time operations[OPERATIONS] = {{0, 0, 0}};
        em_program_times times = {operations, 0};
        em_program program = program_of("generic", pool, m->operations, m->count, TOKENS, &scratch);
        program.times = &times;
        uint64_t elapsed_before = 0;
        for (int runs = 0; runs < 2; runs++) {
            CHECK_STATUS(EM_OK, em_program_run(&program, TOKENS));
            uint64_t elapsed_ns = 0, waited_ns = 0;
            for (int32_t i = 0; i < m->count; i++) {
                CHECK(operations[i].elapsed_ns > 0 && operations[i].waited_ns <= operations[i].elapsed_ns);
                elapsed_ns += operations[i].elapsed_ns;
                waited_ns += operations[i].waited_ns;
            }
            CHECK(elapsed_ns > elapsed_before && elapsed_ns <= times.elapsed_ns);
            CHECK((waited_ns > 0) == (threads > 1));
            elapsed_before = elapsed_ns;
        }
        const uint64_t all_ns = times.elapsed_ns;
        program.times = NULL;
        CHECK_STATUS(EM_OK, em_program_run(&program, TOKENS));
        CHECK(times.elapsed_ns == all_ns);
        /* What comes after an operation that failed has taken no time. */
        memset(operations, 0, sizeof operations);
        program.times = &times;
        m->ids[0] = -1;
        CHECK_STATUS(EM_BAD_TOKEN_ID, em_program_run(&program, TOKENS));
        CHECK(operations[0].elapsed_ns > 0 && operations[1].elapsed_ns == 0 && times.elapsed_ns > all_ns);
        free(scratch.data);
        em_pool_destroy(pool);
        free_model(m);
    }
}

/* The description is whole, and what does not fit is not written. */
static void test_layout(void) {
    const uint64_t length = em_describe_layout(NULL, 0);
    char *text = allocate(length + 1), line[64];
    CHECK(em_describe_layout(text, length + 1) == length && strlen(text) == length);
    snprintf(line, sizeof line, "em_linear.parts %zu %zu\n", offsetof(em_linear, parts), 4 * sizeof(em_linear_part));
    CHECK(strstr(text, line) && text[length - 1] == '\n');
    memset(text, 'x', length + 1);
    CHECK(em_describe_layout(text, 21) == length && strlen(text) == 20 && text[21] == 'x');
    free(text);
}

int main(void) {
    CHECK(em_abi_version() == EM_ABI_VERSION);
    test_layout();
    for (int32_t variant = 0; variant < VARIANTS; variant++) {
        for (int32_t format = 0; format < EM_CACHE_FORMATS; format++) test_same_bits(format, variant);
    }
    test_absent_experts_are_left();
    test_paged_experts();
    test_paged_failures();
    test_not_finite();
    test_route_order();
    test_route_bonus();
    test_route_groups();
    test_refusals();
    test_refused_pages(EM_STORE_KV, 62);
    test_refused_pages(EM_ATTENTION, 62);
    test_program_refusals();
    test_times();
    return 0;
}
