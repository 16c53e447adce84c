/* The pager over a disk under the test's control, over a real reader, and with bad input.
 *
 * That it takes the decisions of the cache in Python is held in Python; here the sanitizers watch. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "edgemoe.h"

enum { LAYERS = 3, EXPERTS = 7, KEYS = LAYERS * EXPERTS, RECORD = 64, SLOTS_MAX = KEYS + 2, TICKETS_MAX = 1 << 16 };

static uint8_t disk[KEYS][RECORD];

/* A source whose reads end when the test says so. */
typedef struct stepped {
    em_read reads[TICKETS_MAX]; /* by ticket */
    uint8_t states[TICKETS_MAX]; /* 0: in flight, 1: read, 2: failed, 3: released */
    int64_t count, released;
    bool broken[KEYS], stuck;
} stepped;

static void end_read(stepped *s, int64_t ticket) {
    const em_read *read = &s->reads[ticket];
    const int64_t key = read->offset / RECORD;
    s->states[ticket] = s->broken[key] ? 2 : 1;
    if (s->broken[key]) {
        memset(read->destination, 0xEE, RECORD);
    } else {
        memcpy(read->destination, disk[key], RECORD);
    }
}

static int32_t submit(void *context, const em_read *reads, int32_t count, int32_t demand, int64_t *tickets) {
    stepped *s = context;
    (void)demand;
    CHECK(s->count + count <= TICKETS_MAX);
    for (int32_t i = 0; i < count; i++) {
        CHECK(reads[i].length == RECORD);
        tickets[i] = s->count;
        s->reads[s->count] = reads[i];
        s->states[s->count++] = 0;
    }
    return EM_OK;
}

static int32_t wait_for(void *context, int64_t ticket, int64_t timeout_us, int64_t *detail) {
    stepped *s = context;
    CHECK(timeout_us == 1000 && s->states[ticket] != 3);
    if (s->states[ticket] == 0 && s->stuck) return EM_TIMEOUT;
    if (s->states[ticket] == 0) end_read(s, ticket);
    *detail = EIO;
    return s->states[ticket] == 1 ? EM_OK : EM_READ_FAILED;
}

static int32_t wait_for_any(void *context, const int64_t *tickets, int32_t count, int64_t timeout_us) {
    (void)context, (void)tickets, (void)count, (void)timeout_us;
    return EM_OK;
}

static int32_t done(void *context, int64_t ticket) {
    const stepped *s = context;
    CHECK(s->states[ticket] != 3);
    return s->states[ticket] != 0;
}

static int32_t promote(void *context, int64_t ticket) {
    const stepped *s = context;
    CHECK(s->states[ticket] == 0);
    return EM_OK;
}

/* Half of the reads in flight count as begun. */
static int32_t cancel(void *context, int64_t ticket) {
    stepped *s = context;
    CHECK(s->states[ticket] != 3);
    if (s->states[ticket] != 0 || ticket % 2) return EM_BUSY;
    s->states[ticket] = 2;
    return EM_OK;
}

static int32_t release(void *context, int64_t ticket) {
    stepped *s = context;
    CHECK(s->states[ticket] == 1 || s->states[ticket] == 2);
    s->states[ticket] = 3;
    s->released++;
    return EM_OK;
}

/* A pager and all its arrays. */
typedef struct paged {
    em_pager *pager;
    em_pager_setup setup;
    em_record records[KEYS];
    int32_t slots[KEYS];
    int64_t tickets[SLOTS_MAX];
    uint8_t arena[SLOTS_MAX][RECORD];
    em_pager_counters counters;
    em_read_failure failure;
    stepped source;
} paged;

static paged *make(int32_t slot_count, em_policy_settings policy) {
    paged *p = calloc(1, sizeof *p);
    CHECK(p);
    for (int i = 0; i < KEYS; i++) p->records[i] = (em_record){.offset = i * RECORD, .length = RECORD, .crc32c = -1};
    p->setup = (em_pager_setup){
        .source = {&p->source, submit, wait_for, wait_for_any, done, promote, cancel, release},
        .records = p->records,
        .arena = *p->arena,
        .slots = p->slots,
        .tickets = p->tickets,
        .counters = &p->counters,
        .failure = &p->failure,
        .policy = policy,
        .slot_bytes = RECORD,
        .timeout_us = 1000,
        .slot_count = slot_count,
        .layers = LAYERS,
        .experts = EXPERTS,
    };
    CHECK_STATUS(EM_OK, em_pager_create(&p->setup, &p->pager));
    return p;
}

static void destroy(paged *p) {
    em_pager_destroy(p->pager);
    free(p);
}

static const em_policy_settings LRU = {.kind = EM_LRU};

/* Every expert that has a slot has one of its own, and no read is forgotten. */
static void check_residency(const paged *p) {
    bool taken[SLOTS_MAX] = {false};
    int64_t held = 0;
    for (int key = 0; key < KEYS; key++) {
        const int32_t slot = p->slots[key];
        CHECK(slot >= -1 && slot < p->setup.slot_count);
        if (slot < 0) continue;
        CHECK(!taken[slot]);
        taken[slot] = true;
        held++;
    }
    for (int32_t slot = 0; slot < p->setup.slot_count; slot++) CHECK(taken[slot] || p->tickets[slot] < 0);
    CHECK(p->source.count - p->source.released <= held);
}

/* Some experts of a layer, in random order; returns their number. */
static int32_t choose(int32_t *experts) {
    const int32_t count = 1 + (int32_t)(random_bits() % EXPERTS);
    for (int32_t i = 0; i < EXPERTS; i++) experts[i] = i;
    for (int32_t i = 0; i < count; i++) {
        const int32_t other = i + (int32_t)(random_bits() % (uint32_t)(EXPERTS - i)), swapped = experts[i];
        experts[i] = experts[other];
        experts[other] = swapped;
    }
    return count;
}

/* Waits for the reads of a wave as kernels do. Returns the status of the first that failed. */
static int32_t await_wave(paged *p, int32_t layer, const int32_t *wave, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        const int32_t key = layer * EXPERTS + wave[i], slot = p->slots[key];
        CHECK(slot >= 0);
        if (p->tickets[slot] >= 0) {
            int64_t detail;
            const em_source *source = &p->setup.source;
            const int32_t status = source->wait(source->context, p->tickets[slot], p->setup.timeout_us, &detail);
            if (status != EM_OK) return status;
            CHECK_STATUS(EM_OK, source->release(source->context, p->tickets[slot]));
            p->tickets[slot] = -1;
        }
        CHECK(memcmp(p->arena[slot], disk[key], RECORD) == 0);
    }
    return EM_OK;
}

/* Uses experts; returns their status, after `waves_max` waves at most. */
static int32_t use(paged *p, int32_t layer, const int32_t *experts, int32_t count, bool scan, int32_t waves_max) {
    const int32_t *wave;
    int32_t in_wave, seen = 0;
    int32_t status = em_pager_request(p->pager, layer, experts, count, scan);
    for (int32_t waves = 0; status == EM_OK && waves < waves_max; waves++) {
        status = em_pager_wave(p->pager, &wave, &in_wave);
        if (status != EM_OK || in_wave == 0) break;
        seen += in_wave;
        status = await_wave(p, layer, wave, in_wave);
        if (status != EM_OK) {
            CHECK_STATUS(status, em_pager_blame(p->pager));
            CHECK(p->failure.layer == layer && p->failure.status == status);
        }
    }
    em_pager_end(p->pager);
    em_pager_end(p->pager);
    CHECK(status != EM_OK || waves_max < EXPERTS || seen == count);
    return status;
}

static void test_random_ways(em_policy_settings policy) {
    for (int32_t slot_count = 1; slot_count <= SLOTS_MAX; slot_count += 3) {
        paged *p = make(slot_count, policy);
        bool broken = false;
        for (int step = 0; step < 1500; step++) {
            int32_t experts[EXPERTS], keys[2 * EXPERTS];
            const int32_t count = choose(experts), layer = (int32_t)(random_bits() % LAYERS);
            switch (random_bits() % 8) {
            case 0: CHECK_STATUS(EM_OK, em_pager_prefetch(p->pager, layer, experts, count)); break;
            case 1:
                for (int i = 0; i < 2 * EXPERTS; i++) keys[i] = (int32_t)(random_bits() % KEYS);
                CHECK_STATUS(EM_OK, em_pager_warm(p->pager, keys, 2 * EXPERTS));
                break;
            case 2:
                for (int64_t ticket = 0; ticket < p->source.count; ticket++) {
                    if (p->source.states[ticket] == 0 && random_bits() % 2) end_read(&p->source, ticket);
                }
                break;
            case 3:
                broken = random_bits() % 4 == 0;
                memset(p->source.broken, 0, sizeof p->source.broken);
                if (broken) p->source.broken[random_bits() % KEYS] = true;
                break;
            default: {
                const int32_t waves_max = random_bits() % 4 ? EXPERTS + 1 : (int32_t)(random_bits() % 3);
                const int32_t status = use(p, layer, experts, count, random_bits() % 4 == 0, waves_max);
                CHECK(status == EM_OK || status == EM_READ_FAILED);
            }
            }
            check_residency(p);
        }
        const em_pager_counters *c = &p->counters;
        CHECK(c->hits > 0 && c->misses > 0 && c->prefetched_reads >= 0 && c->warm_bytes >= 0);
        CHECK(c->guessed_uses > 0 && c->guessed_uses <= c->guessable_uses);
        CHECK(c->late_prefetches <= c->useful_prefetches);
        destroy(p);
    }
}

/* The experts of a wave stay where they are until the next one is taken, whatever is prefetched meanwhile. */
static void test_pinned_experts_stay(void) {
    paged *p = make(3, LRU);
    const int32_t experts[] = {4, 1}, others[] = {0, 2, 3, 5};
    const int32_t *wave;
    int32_t count;
    CHECK_STATUS(EM_OK, em_pager_request(p->pager, 1, experts, 2, 0));
    CHECK_STATUS(EM_OK, em_pager_wave(p->pager, &wave, &count));
    CHECK(count == 2 && wave[0] == 4 && wave[1] == 1);
    CHECK_STATUS(EM_OK, await_wave(p, 1, wave, count));
    const int32_t first = p->slots[EXPERTS + 4], second = p->slots[EXPERTS + 1];
    CHECK_STATUS(EM_OK, em_pager_prefetch(p->pager, 2, others, 4));
    CHECK(p->slots[EXPERTS + 4] == first && p->slots[EXPERTS + 1] == second && p->slots[2 * EXPERTS] >= 0);
    CHECK_STATUS(EM_OK, em_pager_wave(p->pager, &wave, &count));
    CHECK(count == 0);
    em_pager_end(p->pager);
    CHECK_STATUS(EM_OK, em_pager_prefetch(p->pager, 2, others, 4));
    CHECK(p->slots[EXPERTS + 4] == -1 && p->slots[EXPERTS + 1] == -1);
    destroy(p);
}

/* Rows that guess alike ask for one read, and an expert that the use under way has pinned stays pinned. */
static void test_guesses_of_several_rows(void) {
    paged *p = make(6, LRU);
    const int32_t used[] = {4}, rows[] = {4, 1, 2, 1, 4, 3, 2, 2, 1};
    const int32_t *wave;
    int32_t count;
    CHECK_STATUS(EM_OK, em_pager_request(p->pager, 1, used, 1, 0));
    CHECK_STATUS(EM_OK, em_pager_wave(p->pager, &wave, &count));
    CHECK_STATUS(EM_OK, await_wave(p, 1, wave, count));
    CHECK_STATUS(EM_OK, em_pager_prefetch(p->pager, 1, rows, 9));
    CHECK(p->counters.prefetched_reads == 3 && p->counters.prefetched_bytes == 3 * RECORD);
    const int32_t others[] = {0, 1, 2, 3, 4, 5, 6};
    for (int i = 0; i < 3; i++) CHECK_STATUS(EM_OK, em_pager_prefetch(p->pager, 2, others, 7));
    CHECK(p->slots[EXPERTS + 4] >= 0);
    destroy(p);
}

/* A read that does not end keeps its slot, and the use that wants one says so. */
static void test_stuck_reads(void) {
    paged *p = make(1, LRU);
    const int32_t expert = 3, other = 5;
    p->source.stuck = true;
    CHECK_STATUS(EM_TIMEOUT, use(p, 2, &expert, 1, false, 9));
    CHECK(p->failure.layer == 2 && p->failure.expert == 3 && p->slots[2 * EXPERTS + 3] == 0);
    CHECK_STATUS(EM_TIMEOUT, use(p, 0, &other, 1, false, 9));
    CHECK(p->slots[other] == -1);
    p->source.stuck = false;
    CHECK_STATUS(EM_OK, use(p, 0, &other, 1, false, 9));
    CHECK(p->slots[other] == 0 && p->slots[2 * EXPERTS + 3] == -1);
    destroy(p);
}

static void test_bad_uses(void) {
    paged *p = make(4, LRU);
    const int32_t *wave;
    int32_t count;
    const int32_t twice[] = {1, 2, 1}, beyond[] = {EXPERTS}, below[] = {-2}, good[] = {0, 1};
    const int32_t *bad[] = {twice, beyond, below};
    const int32_t bad_counts[] = {3, 1, 1};
    for (int i = 0; i < 3; i++) {
        CHECK_STATUS(EM_BAD_EXPERT, em_pager_request(p->pager, 0, bad[i], bad_counts[i], 0));
        if (bad[i] != twice) CHECK_STATUS(EM_BAD_EXPERT, em_pager_prefetch(p->pager, 0, bad[i], bad_counts[i]));
    }
    CHECK_STATUS(EM_BAD_EXPERT, em_pager_request(p->pager, LAYERS, good, 2, 0));
    CHECK_STATUS(EM_BAD_EXPERT, em_pager_request(p->pager, -1, good, 2, 0));
    CHECK_STATUS(EM_BAD_EXPERT, em_pager_request(p->pager, 0, good, EXPERTS + 1, 0));
    CHECK_STATUS(EM_BAD_EXPERT, em_pager_warm(p->pager, (const int32_t[]){0, KEYS}, 2));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_request(NULL, 0, good, 2, 0));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_wave(p->pager, NULL, &count));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_warm(p->pager, NULL, 1));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_blame(NULL));
    uint8_t loaded[KEYS];
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_loaded(p->pager, 1, KEYS, loaded));
    CHECK_STATUS(EM_OK, em_pager_loaded(p->pager, 0, KEYS, loaded));
    em_pager_end(NULL);
    em_pager_destroy(NULL);
    CHECK_STATUS(EM_OK, em_pager_wave(p->pager, &wave, &count)); /* of no use */
    CHECK(count == 0 && p->counters.misses == 0 && p->source.count == 0);
    destroy(p);
    p = make(4, LRU);
    p->records[1].length = 0; /* of a layer with fewer experts */
    CHECK_STATUS(EM_BAD_EXPERT, em_pager_request(p->pager, 0, good, 2, 0));
    destroy(p);
}

static void test_bad_setups(void) {
    paged *p = make(4, LRU);
    em_pager *pager = NULL;
    em_pager_setup s;
#define CHECK_REFUSED(change)                                                                                  \
    do {                                                                                                       \
        s = p->setup;                                                                                          \
        change;                                                                                                \
        CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_create(&s, &pager));                                            \
        CHECK(pager == NULL);                                                                                  \
    } while (0)
    CHECK_REFUSED(s.slot_count = 0);
    CHECK_REFUSED(s.layers = 0);
    CHECK_REFUSED(s.experts = -1);
    CHECK_REFUSED(s.layers = INT32_MAX);
    CHECK_REFUSED(s.slot_bytes = RECORD - 1);
    CHECK_REFUSED(s.arena = NULL);
    CHECK_REFUSED(s.failure = NULL);
    CHECK_REFUSED(s.source.cancel = NULL);
    CHECK_REFUSED(s.policy.kind = EM_POLICY_COUNT);
    CHECK_REFUSED((s.policy = (em_policy_settings){.kind = EM_LFU, .rate = 0}));
    CHECK_REFUSED((s.policy = (em_policy_settings){.kind = EM_LRUF, .rate = 1, .weight = -1}));
    p->records[KEYS - 1].offset = -1;
    CHECK_REFUSED((void)0);
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pager_create(NULL, &pager));
    destroy(p);
}

/* Over a real reader, whose reads end when they end. */
static void test_real_reads(void) {
    char path[] = "/tmp/edgemoe-pager-XXXXXX";
    const int file = mkstemp(path);
    CHECK(file >= 0);
    unlink(path);
    CHECK(write(file, disk, sizeof disk) == sizeof disk);
    em_reader *reader;
    CHECK_STATUS(EM_OK, em_reader_create(3, SLOTS_MAX, 32, 0, &reader));
    paged *p = make(6, (em_policy_settings){.kind = EM_LRUF, .rate = 0.05, .weight = 10});
    em_pager_destroy(p->pager);
    for (int key = 0; key < KEYS; key++) {
        p->records[key].descriptor = file;
        p->records[key].crc32c = em_crc32c(em_kernels_for(em_isa_name(0)), 0, disk[key], RECORD);
    }
    em_reader_source(reader, &p->setup.source);
    p->setup.timeout_us = 60000000;
    CHECK_STATUS(EM_OK, em_pager_create(&p->setup, &p->pager));
    for (int step = 0; step < 3000; step++) {
        int32_t experts[EXPERTS];
        const int32_t count = choose(experts), layer = step % LAYERS;
        if (step % 2) CHECK_STATUS(EM_OK, em_pager_prefetch(p->pager, (layer + 1) % LAYERS, experts, count));
        CHECK_STATUS(EM_OK, use(p, layer, experts, count, step % 7 == 0, EXPERTS + 1));
    }
    CHECK(p->counters.hits > 0 && p->counters.misses > 0 && p->counters.useful_prefetches > 0);
    p->records[0].crc32c ^= 1;
    int32_t status = EM_OK;
    for (int step = 0; step < 40 && status == EM_OK; step++) {
        const int32_t experts[] = {step % EXPERTS, (step + 1) % EXPERTS, (step + 2) % EXPERTS};
        status = use(p, step % LAYERS, experts, 3, false, EXPERTS + 1);
    }
    CHECK_STATUS(EM_BAD_CHECKSUM, status);
    CHECK(p->failure.layer == 0 && p->failure.expert == 0);
    em_reader_destroy(reader);
    destroy(p);
    close(file);
}

int main(void) {
    for (size_t i = 0; i < sizeof disk; i++) disk[i / RECORD][i % RECORD] = (uint8_t)random_bits();
    test_random_ways(LRU);
    test_random_ways((em_policy_settings){.kind = EM_LFU, .rate = 0.1});
    test_random_ways((em_policy_settings){.kind = EM_LRUF, .rate = 0.02, .weight = 12});
    test_pinned_experts_stay();
    test_guesses_of_several_rows();
    test_stuck_reads();
    test_bad_uses();
    test_bad_setups();
    test_real_reads();
    return 0;
}
