/* A program whose experts a pager reads: the bits of experts that are in the arena, and reads that fail. */
#include <string.h>
#include <unistd.h>

#include "decoder.h"

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
    CHECK(m->count < OPERATIONS);
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

int main(void) {
    test_paged_experts();
    test_paged_failures();
    return 0;
}
