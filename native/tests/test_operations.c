/* Whole programs: every operation over threads and cuts of a prompt to the bit, and what a run refuses.
 *
 * That an operation means what it should is held in Python, against the reference; here the sanitizers watch. */
#include <math.h>

#include "decoder.h"

static em_attention *attention_of(model *m) {
    int32_t i = 0;
    while (m->operations[i].kind != EM_ATTENTION) i++;
    return &m->operations[i].as.attention;
}

/* The first of these is the usual model. */
static const struct variant {
    int32_t window;
    const float *sinks;
    em_distance_bias bias;
} variants[] = {
    {0, NULL, {0}},
    {1, NULL, {0}},
    {20, (const float[HEADS]){1, -2, 0.5f, 30}, {0}},
    {70, NULL, {0}},
    {0, NULL, {(const float[2 * HEADS]){1, -2, 0.5f, 3, -1, 2, 0, 1}, (const int32_t[3]){1, 0, 1}, 2 * HEADS, 3}},
};

enum { VARIANTS = sizeof variants / sizeof *variants };

static model *make_variant(int32_t cache_format, int32_t variant) {
    model *m = make_model_with(cache_format);
    attention_of(m)->window = variants[variant].window;
    attention_of(m)->sinks = variants[variant].sinks;
    attention_of(m)->bias = variants[variant].bias;
    return m;
}

/* Every second pair goes through all cuts and numbers of threads, so that each format and each variant does; the others
 * through one. */
static void test_same_bits(int32_t cache_format, int32_t variant) {
    const int whole = (cache_format + variant) % 2 == 0;
    model *first = make_variant(cache_format, variant);
    CHECK_STATUS(EM_OK, run(first, "generic", 1, TOKENS, 0));
    for (int i = 0; i < TOKENS; i++) CHECK(isfinite(first->hidden[i][0]));
    for (int32_t set = 0; set < em_isa_count(); set++) {
        for (int32_t threads = whole ? 1 : 3; threads <= (whole ? 5 : 3); threads += 2) {
            model *m = make_variant(cache_format, variant);
            CHECK_STATUS(EM_OK, run(m, em_isa_name(set), threads, TOKENS, 0));
            CHECK(memcmp(m->hidden, first->hidden, sizeof m->hidden) == 0);
            free_model(m);
        }
        if (!whole) continue;
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

/* A choice of no expert passes on its input, whatever lies in the slots; numbers below that are refused. */
static void test_choices_of_no_expert(void) {
    model *m = make_model();
    int32_t number = 0;
    while (m->operations[number].kind != EM_EXPERTS) number++;
    m->operations[0] = m->operations[number];
    m->count = 1;
    for (int i = 0; i < TOKENS * WIDTH; i++) m->hidden[i / WIDTH][i % WIDTH] = random_float();
    for (int i = 0; i < TOKENS * USED; i++) m->chosen[i / USED][i % USED] = i % 3 ? i % EXPERTS : EM_NO_EXPERT;
    for (int32_t threads = 1; threads < 4; threads++) {
        memset(m->routed, 0, sizeof m->routed);
        CHECK_STATUS(EM_OK, run(m, em_isa_name(0), threads, TOKENS, 0));
        for (int i = 0; i < TOKENS * USED; i++) {
            const int passed = !memcmp(m->routed[i / USED][i % USED], m->hidden[i / USED], sizeof m->hidden[0]);
            CHECK(passed == (i % 3 == 0));
        }
    }
    m->chosen[1][1] = -2;
    CHECK_STATUS(EM_BAD_EXPERT, run(m, em_isa_name(0), 1, TOKENS, 0));
    free_model(m);
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
    CHECK_STATUS(EM_OK, em_program_run_some(&program, TOKENS, 0, program.operation_count));
    CHECK_STATUS(EM_OK, em_program_run_some(&program, TOKENS, program.operation_count, 0));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run_some(&program, TOKENS, 1, program.operation_count));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run_some(&program, TOKENS, -1, 1));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_program_run_some(&program, TOKENS, INT32_MAX, 1));
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
    test_choices_of_no_expert();
    test_not_finite();
    test_refusals();
    test_refused_pages(EM_STORE_KV, 62);
    test_refused_pages(EM_ATTENTION, 62);
    test_program_refusals();
    test_times();
    return 0;
}
