/* Reads, their order, and everything that can go wrong with one. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include <pthread.h>

static int32_t startable = INT32_MAX;

/* In place of the system's, which starts no more than so many threads where few are allowed. */
static int start_if_allowed(pthread_t *thread, const pthread_attr_t *how, void *(*work)(void *), void *argument) {
    if (startable == 0) return EAGAIN;
    startable--;
    return pthread_create(thread, how, work, argument);
}

/* With its inner functions: a queue can be looked at before any thread takes from it. */
#define pthread_create start_if_allowed
#include "src/reader.c"
#undef pthread_create
#include "src/requests.c"

/* All that a reader asks of a set. */
static const em_kernels checksums_only = {.isa = "generic", .crc32c = em_crc32c_generic};

const char *em_isa_name(int32_t index) { return index == 0 ? checksums_only.isa : NULL; }
const em_kernels *em_kernels_for(const char *isa) { return isa ? &checksums_only : NULL; }

enum { FILE_BYTES = 1 << 18, PIECE_BYTES = 1000 };

static uint8_t content[FILE_BYTES];

static int open_content(void) {
    char path[] = "/tmp/edgemoe-reader-XXXXXX";
    const int descriptor = mkstemp(path);
    CHECK(descriptor >= 0);
    unlink(path);
    for (int i = 0; i < FILE_BYTES; i++) content[i] = (uint8_t)random_bits();
    CHECK(write(descriptor, content, FILE_BYTES) == FILE_BYTES);
    return descriptor;
}

static em_reader *create(int32_t threads, int32_t capacity) {
    em_reader *reader;
    CHECK_STATUS(EM_OK, em_reader_create(threads, capacity, PIECE_BYTES, 0, &reader));
    return reader;
}

static int32_t try_to_submit(em_reader *reader, int descriptor, int64_t offset, int64_t length, void *to, int demand,
                             int64_t crc32c, int64_t *ticket) {
    const em_read read = {.offset = offset, .length = length, .destination = to, .crc32c = crc32c, .descriptor = descriptor};
    return em_reader_submit(reader, &read, 1, demand, ticket);
}

static int64_t submit(em_reader *reader, int descriptor, int64_t offset, int64_t length, void *to, int demand) {
    int64_t ticket;
    CHECK_STATUS(EM_OK, try_to_submit(reader, descriptor, offset, length, to, demand, -1, &ticket));
    return ticket;
}

static void test_many_reads(int descriptor, int32_t threads) {
    enum { READS = 200, BYTES = 3000 };
    em_reader *reader = create(threads, READS);
    static uint8_t to[READS][BYTES];
    int64_t tickets[READS], offsets[READS];
    for (int i = 0; i < READS; i++) {
        offsets[i] = random_bits() % (FILE_BYTES - BYTES);
        tickets[i] = submit(reader, descriptor, offsets[i], BYTES, to[i], i % 3 == 0);
        if (i % 5 == 0) CHECK_STATUS(EM_OK, em_reader_promote(reader, tickets[i]));
    }
    int64_t ticket, detail;
    CHECK_STATUS(EM_FULL, try_to_submit(reader, descriptor, 0, 1, to[0], 1, -1, &ticket));
    for (int i = READS - 1; i >= 0; i--) {
        CHECK_STATUS(EM_OK, em_reader_wait(reader, tickets[i], -1, &detail));
        CHECK(detail == BYTES && em_reader_done(reader, tickets[i]) == 1);
        CHECK(memcmp(to[i], content + offsets[i], BYTES) == 0);
        CHECK_STATUS(EM_OK, em_reader_release(reader, tickets[i]));
        CHECK_STATUS(EM_BAD_TICKET, em_reader_release(reader, tickets[i]));
        CHECK_STATUS(EM_BAD_TICKET, em_reader_wait(reader, tickets[i], -1, &detail));
        CHECK(em_reader_done(reader, tickets[i]) == -EM_BAD_TICKET);
    }
    em_read_counters counters;
    CHECK_STATUS(EM_OK, em_reader_counters(reader, &counters));
    CHECK(counters.reads == READS && counters.failed == 0 && counters.bytes_read == (uint64_t)READS * BYTES);
    CHECK(counters.read_ns > 0 && counters.queue_wait_ns > 0);
    em_reader_destroy(reader);
}

/* Checked reads in pieces of every size: the checksum is that of the whole, whoever reads what and when. */
static void test_checksums(int descriptor) {
    enum { BYTES = 10000, READS = 8 };
    static uint8_t to[READS][BYTES];
    const int64_t pieces[] = {7, 512, 4096, BYTES - 1, BYTES, BYTES + 1};
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        em_reader *reader;
        CHECK_STATUS(EM_OK, em_reader_create(1 + (int32_t)p % 4, READS, pieces[p], 0, &reader));
        int64_t tickets[READS], detail;
        uint32_t right[READS];
        for (int i = 0; i < READS; i++) {
            right[i] = em_crc32c_generic(0, content + i * 100, BYTES);
            const int64_t expected = i % 3 == 2 ? -1 : (int64_t)(right[i] ^ (i % 3 == 1 ? 1u << i : 0));
            CHECK_STATUS(EM_OK, try_to_submit(reader, descriptor, i * 100, BYTES, to[i], i % 2, expected,
                                                 &tickets[i]));
        }
        for (int i = 0; i < READS; i++) {
            CHECK_STATUS(i % 3 == 1 ? EM_BAD_CHECKSUM : EM_OK, em_reader_wait(reader, tickets[i], -1, &detail));
            CHECK(detail == (i % 3 == 1 ? (int64_t)right[i] : BYTES));
        }
        em_read_counters counters;
        CHECK_STATUS(EM_OK, em_reader_counters(reader, &counters));
        CHECK(counters.reads == READS && counters.failed == 3);
        /* A read that fails for another reason says that one. */
        CHECK_STATUS(EM_OK, em_reader_release(reader, tickets[0]));
        CHECK_STATUS(EM_OK, try_to_submit(reader, descriptor, FILE_BYTES - 40, 100, to[0], 1, 5, &tickets[0]));
        CHECK_STATUS(EM_SHORT_READ, em_reader_wait(reader, tickets[0], -1, &detail));
        CHECK_STATUS(EM_BAD_ARGUMENT, try_to_submit(reader, descriptor, 0, 1, to[0], 1, 1ll << 32, &tickets[0]));
        em_reader_destroy(reader);
    }
}

/* Several reads at once: in their order, and none of them where one is wrong or there is no room for all. */
static void test_reads_together(int descriptor) {
    enum { READS = 5 };
    em_reader *reader = create_idle(READS, PIECE_BYTES, 0, 1);
    CHECK(reader);
    uint8_t to[READS + 1][64];
    em_read reads[READS + 1];
    int64_t tickets[READS + 1];
    for (int i = 0; i <= READS; i++) {
        reads[i] = (em_read){
            .offset = (READS - i) * 64, .length = 64, .destination = to[i], .crc32c = -1, .descriptor = descriptor};
    }
    CHECK_STATUS(EM_FULL, em_reader_submit(reader, reads, READS + 1, 1, tickets));
    reads[READS - 1].length = 0;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, reads, READS, 1, tickets));
    reads[READS - 1].length = 64;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, reads, 0, 1, tickets));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, NULL, 1, 1, tickets));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, reads, 1, 1, NULL));
    CHECK(em_requests_choose(&reader->requests) == NOWHERE);
    CHECK_STATUS(EM_OK, em_reader_submit(reader, reads, 2, 0, tickets));
    CHECK_STATUS(EM_FULL, em_reader_submit(reader, reads + 2, READS - 1, 1, tickets + 2));
    CHECK_STATUS(EM_OK, em_reader_submit(reader, reads + 2, READS - 2, 1, tickets + 2));
    CHECK(em_requests_choose(&reader->requests) == 2 && reader->requests.places[2].next == 3);
    CHECK(reader->requests.queues[PREFETCH].first == 0);
    CHECK(start_threads(reader, 3));
    for (int i = 0; i < READS; i++) {
        CHECK_STATUS(EM_OK, em_reader_wait(reader, tickets[i], -1, NULL));
        CHECK(memcmp(to[i], content + reads[i].offset, 64) == 0);
        CHECK_STATUS(EM_OK, em_reader_release(reader, tickets[i]));
    }
    CHECK_STATUS(EM_OK, em_reader_submit(reader, reads, READS, 1, tickets));
    em_reader_destroy(reader);
}

static void test_failures(int descriptor) {
    em_reader *reader = create(1, 8);
    uint8_t to[100];
    int64_t detail = 0;
    int64_t ticket = submit(reader, descriptor, FILE_BYTES - 40, 100, to, 1);
    CHECK_STATUS(EM_SHORT_READ, em_reader_wait(reader, ticket, -1, &detail));
    CHECK(detail == 40);
    ticket = submit(reader, descriptor, FILE_BYTES * 2, 100, to, 1);
    CHECK_STATUS(EM_SHORT_READ, em_reader_wait(reader, ticket, -1, &detail));
    CHECK(detail == 0);
    ticket = submit(reader, -1, 0, 100, to, 1);
    CHECK_STATUS(EM_READ_FAILED, em_reader_wait(reader, ticket, -1, &detail));
    CHECK(detail == EBADF);
    const int folder = open("/tmp", O_RDONLY);
    ticket = submit(reader, folder, 0, 100, to, 0);
    CHECK_STATUS(EM_READ_FAILED, em_reader_wait(reader, ticket, -1, &detail));
    CHECK(detail == EISDIR);
    close(folder);
    const int64_t first = submit(reader, descriptor, 0, 100, to, 1);
    CHECK_STATUS(EM_OK, em_reader_wait(reader, first, -1, NULL));
    CHECK_STATUS(EM_OK, em_reader_release(reader, first));
    ticket = submit(reader, descriptor, 0, 100, to, 1); /* in the same place of the table */
    CHECK_STATUS(EM_BAD_TICKET, em_reader_wait(reader, first, -1, NULL));
    CHECK_STATUS(EM_OK, em_reader_wait(reader, ticket, -1, NULL));
    CHECK_STATUS(EM_BAD_ARGUMENT, try_to_submit(reader, descriptor, -1, 1, to, 1, -1, &ticket));
    CHECK_STATUS(EM_BAD_ARGUMENT, try_to_submit(reader, descriptor, 0, 0, to, 1, -1, &ticket));
    CHECK_STATUS(EM_BAD_ARGUMENT, try_to_submit(reader, descriptor, INT64_MAX, 1, to, 1, -1, &ticket));
    CHECK_STATUS(EM_BAD_ARGUMENT, try_to_submit(reader, descriptor, 0, 1, NULL, 1, -1, &ticket));
    CHECK_STATUS(EM_BAD_TICKET, em_reader_promote(reader, 77));
    CHECK_STATUS(EM_BAD_TICKET, em_reader_cancel(reader, -5));
    em_reader_destroy(reader);
}

/* Requests queued before any thread runs, so that their order is sure. All read into one place: the last one shows. */
static void test_order(int descriptor) {
    em_reader *reader = create_idle(8, PIECE_BYTES, 0, 1);
    CHECK(reader);
    uint8_t to[64];
    int64_t tickets[5];
    const int demand[5] = {0, 0, 1, 0, 1};
    for (int i = 0; i < 5; i++) tickets[i] = submit(reader, descriptor, i * 64, 64, to, demand[i]);
    CHECK_STATUS(EM_OK, em_reader_promote(reader, tickets[3]));
    CHECK_STATUS(EM_OK, em_reader_promote(reader, tickets[2])); /* is one already: stays in its place */
    CHECK(em_requests_choose(&reader->requests) == 2);
    CHECK_STATUS(EM_BUSY, em_reader_release(reader, tickets[0]));
    CHECK_STATUS(EM_TIMEOUT, em_reader_wait(reader, tickets[0], 1000, NULL));
    CHECK_STATUS(EM_TIMEOUT, em_reader_wait(reader, tickets[0], 0, NULL));
    CHECK(em_reader_done(reader, tickets[0]) == 0);
    const int order[5] = {2, 4, 3, 0, 1};
    int32_t place = reader->requests.queues[DEMAND].first;
    for (int i = 0; i < 3; i++, place = reader->requests.places[place].next) {
        CHECK(place == order[i]);
    }
    CHECK(start_threads(reader, 1));
    for (int i = 0; i < 5; i++) CHECK_STATUS(EM_OK, em_reader_wait(reader, tickets[i], -1, NULL));
    CHECK(memcmp(to, content + order[4] * 64, 64) == 0);
    em_reader_destroy(reader);
}

/* Pieces are given out in order, the first request's first; a failure keeps the rest from being read. */
static void test_pieces(int descriptor) {
    em_reader *reader = create_idle(4, PIECE_BYTES, 0, 2);
    CHECK(reader);
    static uint8_t to[2][3 * PIECE_BYTES];
    const int64_t demand = submit(reader, descriptor, 0, 2 * PIECE_BYTES + 1, to[0], 1);
    const int64_t prefetch = submit(reader, descriptor, FILE_BYTES - PIECE_BYTES, 3 * PIECE_BYTES, to[1], 0);
    pthread_mutex_lock(&reader->mutex);
    CHECK(em_requests_give_out(&reader->requests, em_requests_choose(&reader->requests)).length == PIECE_BYTES);
    const piece second = em_requests_give_out(&reader->requests, 0);
    CHECK(second.offset == PIECE_BYTES && second.destination == to[0] + PIECE_BYTES && second.length == PIECE_BYTES);
    CHECK(em_requests_choose(&reader->requests) == 0 && em_requests_give_out(&reader->requests, 0).length == 1);
    CHECK(reader->requests.places[0].state == READING && reader->requests.places[0].pieces_running == 3);
    CHECK(em_requests_choose(&reader->requests) == 1);
    /* what a reader would do that was given the second piece, and then the others */
    reader->requests.places[0].pieces_running = 1;
    em_requests_note_failure(&reader->requests, &reader->requests.places[0], &second, EM_SHORT_READ, 10);
    CHECK(reader->requests.places[0].status == EM_SHORT_READ && reader->requests.places[0].detail == PIECE_BYTES + 10);
    const piece first = {.at = 0};
    em_requests_note_failure(&reader->requests, &reader->requests.places[0], &first, EM_READ_FAILED, EIO);
    CHECK(reader->requests.places[0].status == EM_READ_FAILED && reader->requests.places[0].detail == EIO);
    em_requests_note_failure(&reader->requests, &reader->requests.places[0], &second, EM_SHORT_READ, 10);
    CHECK(reader->requests.places[0].status == EM_READ_FAILED);
    reader->requests.places[0].pieces_running = 0;
    finish(reader, &reader->requests.places[0], EM_READ_FAILED, EIO);
    pthread_mutex_unlock(&reader->mutex);
    const int64_t both[2] = {prefetch, demand};
    CHECK_STATUS(EM_OK, em_reader_wait_any(reader, both, 2, 0));
    CHECK_STATUS(EM_TIMEOUT, em_reader_wait_any(reader, both, 1, 1000));
    CHECK(start_threads(reader, 3));
    CHECK_STATUS(EM_OK, em_reader_wait_any(reader, both, 1, -1));
    int64_t detail;
    CHECK_STATUS(EM_SHORT_READ, em_reader_wait(reader, prefetch, -1, &detail));
    CHECK(detail == PIECE_BYTES);
    CHECK(memcmp(to[1], content + FILE_BYTES - PIECE_BYTES, PIECE_BYTES) == 0);
    CHECK_STATUS(EM_OK, em_reader_release(reader, prefetch));
    CHECK_STATUS(EM_BAD_TICKET, em_reader_wait_any(reader, both, 2, 0));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_wait_any(reader, both, 0, 0));
    em_reader_destroy(reader);
}

/* Prefetches leave one of several threads to demands. */
static void test_predictions_limit(int descriptor) {
    em_reader *reader = create_idle(4, PIECE_BYTES, 0, 1);
    CHECK(reader);
    uint8_t to[64];
    submit(reader, descriptor, 0, 64, to, 0);
    CHECK(em_requests_choose(&reader->requests) == 0);
    reader->requests.prefetches_running = 1;
    CHECK(em_requests_choose(&reader->requests) == NOWHERE);
    submit(reader, descriptor, 0, 64, to, 1);
    CHECK(em_requests_choose(&reader->requests) == 1);
    reader->requests.prefetches_running = 0;
    em_reader_destroy(reader);
}

static void test_cancel(int descriptor) {
    em_reader *reader = create_idle(4, PIECE_BYTES, 0, 1);
    CHECK(reader);
    uint8_t to[3][64] = {{0}};
    int64_t tickets[3];
    for (int i = 0; i < 3; i++) tickets[i] = submit(reader, descriptor, i * 64, 64, to[i], 0);
    CHECK_STATUS(EM_OK, em_reader_cancel(reader, tickets[1])); /* from the middle of the queue */
    CHECK_STATUS(EM_BUSY, em_reader_cancel(reader, tickets[1]));
    CHECK_STATUS(EM_CANCELLED, em_reader_wait(reader, tickets[1], -1, NULL));
    CHECK(start_threads(reader, 2));
    CHECK_STATUS(EM_OK, em_reader_wait(reader, tickets[0], -1, NULL));
    CHECK_STATUS(EM_OK, em_reader_wait(reader, tickets[2], -1, NULL));
    CHECK_STATUS(EM_BUSY, em_reader_cancel(reader, tickets[2]));
    CHECK(memcmp(to[0], content, 64) == 0 && memcmp(to[2], content + 128, 64) == 0);
    for (int i = 0; i < 64; i++) CHECK(to[1][i] == 0);
    CHECK_STATUS(EM_OK, em_reader_release(reader, tickets[1]));
    em_read_counters counters;
    CHECK_STATUS(EM_OK, em_reader_counters(reader, &counters));
    CHECK(counters.cancelled == 1 && counters.reads == 2);
    em_reader_destroy(reader);
}

/* Destroyed with requests in its queues; and again and again while reads run. */
static void test_destroy(int descriptor) {
    static uint8_t to[64][4096];
    for (int round = 0; round < 20; round++) {
        em_reader *reader = create(1 + round % 4, 64);
        for (int i = 0; i < 64; i++) submit(reader, descriptor, i * 4096, 4096, to[i], i % 2);
        em_reader_destroy(reader);
    }
    em_reader_destroy(NULL);
    em_reader *none = NULL;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(0, 1, 1, 0, &none));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(1, 0, 1, 0, &none));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(READER_THREADS_MAX + 1, 1, 1, 0, &none));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(1, 1, 0, 0, &none));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(1, 1, PIECE_BYTES_MAX + 1, 0, &none));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_counters(NULL, NULL));
    CHECK(none == NULL);
}

static void test_few_threads(int descriptor) {
    for (int32_t allowed = 1; allowed < 4; allowed++) {
        startable = allowed;
        em_reader *reader = create(8, 1);
        CHECK(reader->started == allowed);
        CHECK(reader->requests.prefetches_max == (allowed > 1 ? allowed - 1 : 1));
        static uint8_t to[5 * PIECE_BYTES];
        const int64_t ticket = submit(reader, descriptor, 7, sizeof to, to, 1);
        int64_t detail;
        CHECK_STATUS(EM_OK, em_reader_wait(reader, ticket, -1, &detail));
        CHECK(memcmp(to, content + 7, sizeof to) == 0);
        em_reader_destroy(reader);
    }
    startable = 0;
    em_reader *none = NULL;
    CHECK_STATUS(EM_NO_THREADS, em_reader_create(8, 1, PIECE_BYTES, 0, &none));
    CHECK(none == NULL);
    startable = INT32_MAX;
}

static void test_fork(int descriptor) {
    em_reader *reader = create(2, 4);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        uint8_t byte;
        int64_t ticket;
        const int32_t status = try_to_submit(reader, descriptor, 0, 1, &byte, 1, -1, &ticket);
        em_reader_destroy(reader); /* must not wait for threads that are not there */
        _exit(status == EM_FORKED ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    em_reader_destroy(reader);
}

int main(void) {
    const int descriptor = open_content();
    test_many_reads(descriptor, 1);
    test_many_reads(descriptor, 4);
    test_checksums(descriptor);
    test_reads_together(descriptor);
    test_failures(descriptor);
    test_order(descriptor);
    test_pieces(descriptor);
    test_predictions_limit(descriptor);
    test_cancel(descriptor);
    test_destroy(descriptor);
    test_few_threads(descriptor);
    test_fork(descriptor);
    close(descriptor);
    return 0;
}
