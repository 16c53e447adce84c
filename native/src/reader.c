/* Threads that read expert records from files: demands first, then prefetches. They bring records that lie in parts into
 * the layout that kernels read, from a buffer that each thread has for that.
 *
 * Each reader thread takes the next piece of the first request. So all threads together finish one record early,
 * instead of several records late, and a demand waits only for the pieces of a prefetch that are being read, never
 * for the whole prefetch.
 *
 * One mutex guards all requests (requests.h); it is held for list operations only, never over a read. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kernels/kernels.h"
#include "arithmetic.h"
#include "clock.h"
#include "landing.h"
#include "requests.h"

enum {
    READER_THREADS_MAX = 64,
    CAPACITY_MAX = 1 << 20,
    HUGE_PAGE_BYTES = 2 << 20,
};

/* The longest piece, and so the longest read call; systems cut longer ones short. */
#define PIECE_BYTES_MAX ((int64_t)1 << 30)
#define STAGING_BYTES_MAX ((int64_t)1 << 30)

struct em_reader {
    pthread_mutex_t mutex;
    pthread_cond_t work;
    pthread_cond_t over;
    const em_kernels *kernels; /* for checksums */
    em_requests requests;
    bool stopping;
    em_read_counters counters;
    pid_t process;
    uint8_t *staging; /* (threads, staging_bytes), each beginning at a page; NULL where no record has parts. Where it has
                       * huge pages, the system reads a piece into one range of memory, not into 64 pages. */
    int32_t staged;   /* threads that have taken their share of it */
    int32_t started;
    pthread_t threads[READER_THREADS_MAX];
};

static void finish(em_reader *reader, request *r, int32_t status, int64_t detail) {
    r->state = OVER;
    r->status = status;
    r->detail = detail;
    pthread_cond_broadcast(&reader->over);
}

/* ---- reading --------------------------------------------------------------------------------------------- */

/* Reads `least` bytes or more, at most `most`. `*detail` becomes the number of bytes read, or errno. */
static int32_t read_bytes(int32_t descriptor, int64_t offset, uint8_t *to, int64_t least, int64_t most, int64_t *detail) {
    int64_t done = 0;
    while (done < least) {
        const ssize_t got = pread(descriptor, to + done, (size_t)(most - done), (off_t)(offset + done));
        if (got > 0) {
            done += got;
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got == 0 || (errno == EINVAL && done > 0)) {
            /* With O_DIRECT, a read that continues at an unaligned end of file gives EINVAL instead of 0. */
            *detail = done;
            return EM_SHORT_READ;
        } else {
            *detail = errno;
            return EM_READ_FAILED;
        }
    }
    *detail = done;
    return EM_OK;
}

/* A piece's share of the record's checksum: the record's checksum is the xor of all shares, and a share is the checksum
 * of the piece carried past the bytes behind it. Computed while the piece is in the cache of the core that read it. */
static uint32_t checksum_share(const em_kernels *kernels, const piece *p, const uint8_t *data) {
    if (p->behind < 0) return 0;
    const uint32_t crc = em_crc32c(kernels, 0, data, (uint64_t)p->length);
    return em_crc32c_combine(crc, 0, (uint64_t)p->behind);
}

/* Whether a file was written to since its time of modification was taken, of which em_place has the low 63 bits. */
static bool has_changed(int32_t descriptor, int64_t modified_ns) {
    struct stat status;
    if (modified_ns < 0 || fstat(descriptor, &status) != 0) return false;
#ifdef __APPLE__
    const struct timespec at = status.st_mtimespec;
#else
    const struct timespec at = status.st_mtim;
#endif
    const uint64_t found = (uint64_t)at.tv_sec * 1000000000 + (uint64_t)at.tv_nsec;
    return (int64_t)(found & INT64_MAX) != modified_ns;
}

/* Reads a piece of a part into the thread's staging buffer, with the whole pages around it, as direct reads need, and
 * lands it. */
static int32_t read_and_land(const em_reader *reader, const piece *p, uint8_t *staging, uint32_t *share, int64_t *detail) {
    const int64_t skipped = p->offset % EM_PAGE_BYTES, needed = skipped + p->length;
    const int64_t whole = (needed + EM_PAGE_BYTES - 1) / EM_PAGE_BYTES * EM_PAGE_BYTES;
    const int32_t status = read_bytes(p->descriptor, p->offset - skipped, staging, needed, whole, detail);
    if (status == EM_SHORT_READ) *detail = *detail > skipped ? *detail - skipped : 0;
    if (status != EM_OK) return status;
    *detail = p->length;
    /* Asked after the read: what was written before it ended shows in the time. */
    if (has_changed(p->descriptor, p->modified_ns)) return EM_CHANGED_FILE;
    *share = checksum_share(reader->kernels, p, staging + skipped);
    return em_part_land(p->part, p->scale, p->part_begin, p->length, staging + skipped, p->destination) ? EM_OK : EM_NOT_FINITE;
}

/* Reads one piece to where it belongs. `*detail` becomes the number of bytes read, or errno. */
static int32_t read_piece(const em_reader *reader, const piece *p, uint8_t *staging, uint32_t *share, int64_t *detail) {
    *share = 0;
    if (p->part) return read_and_land(reader, p, staging, share, detail);
    const int32_t status = read_bytes(p->descriptor, p->offset, p->destination, p->length, p->length, detail);
    if (status == EM_OK) *share = checksum_share(reader->kernels, p, p->destination);
    return status;
}

/* Wakes one reader thread if there is something to read; with the mutex held. Each thread wakes the next before it
 * reads, so that the thread that submits pays for one wake-up, not for all. */
static void wake_one(em_reader *reader) {
    if (em_requests_choose(&reader->requests) != NOWHERE) pthread_cond_signal(&reader->work);
}

/* Reads a piece of request `place`; the mutex is held at the call and at the return, but not while reading. */
static void serve(em_reader *reader, int32_t place, uint8_t *staging) {
    em_requests *requests = &reader->requests;
    request *r = &requests->places[place];
    const bool prefetch = r->priority == PREFETCH, begins = r->given_out == 0;
    const piece next = em_requests_give_out(requests, place);
    requests->prefetches_running += prefetch;
    if (begins) reader->counters.queue_wait_ns += em_now_ns() - r->submitted_ns;
    wake_one(reader);
    pthread_mutex_unlock(&reader->mutex);

    const uint64_t begin = em_now_ns();
    int64_t detail;
    uint32_t share;
    const int32_t status = read_piece(reader, &next, staging, &share, &detail);
    const uint64_t end = em_now_ns();

    pthread_mutex_lock(&reader->mutex);
    requests->prefetches_running -= prefetch;
    reader->counters.read_ns += end - begin;
    reader->counters.bytes_read += status == EM_READ_FAILED ? 0 : (uint64_t)detail;
    r->pieces_running--;
    r->found ^= share;
    if (status != EM_OK) em_requests_note_failure(requests, r, &next, status, detail);
    if (r->state == READING && r->pieces_running == 0) {
        if (r->status == EM_OK && r->checked && r->found != r->expected) {
            r->status = EM_BAD_CHECKSUM;
            r->detail = r->found;
        }
        reader->counters.reads++;
        reader->counters.failed += r->status != EM_OK;
        finish(reader, r, r->status, r->status == EM_OK ? r->length : r->detail);
    }
    /* Prefetches may have waited, as only `prefetches_max` pieces of them are read at a time. */
    if (prefetch) wake_one(reader);
}

static void *read_requests(void *argument) {
    em_reader *reader = argument;
    em_plain_arithmetic(); /* landing computes scales */
    pthread_mutex_lock(&reader->mutex);
    uint8_t *staging = reader->staging;
    if (staging) staging += reader->staged++ * reader->requests.staging_bytes;
    while (!reader->stopping) {
        const int32_t place = em_requests_choose(&reader->requests);
        if (place == NOWHERE) {
            pthread_cond_wait(&reader->work, &reader->mutex);
        } else {
            serve(reader, place, staging);
        }
    }
    pthread_mutex_unlock(&reader->mutex);
    return NULL;
}

/* ---- requests -------------------------------------------------------------------------------------------- */

/* Takes the mutex. In a forked child the state of the mutex is unknown, so the process is checked first. */
static int32_t enter(em_reader *reader) {
    if (!reader) return EM_BAD_ARGUMENT;
    if (getpid() != reader->process) return EM_FORKED;
    pthread_mutex_lock(&reader->mutex);
    return EM_OK;
}

/* Whether a record's parts can be read and landed one by one. */
static bool parts_in_order(const em_requests *requests, const em_read *r) {
    if (!r->parts || !r->places) return false;
    int64_t bytes = 0;
    for (int32_t i = 0; i < r->part_count; i++) {
        const em_part *part = &r->parts[i];
        const int64_t offset = r->places[i].offset;
        if (!em_part_is_sound(part) || em_part_step(part, requests->staging_bytes) == 0) return false;
        if (offset < 0 || offset > INT64_MAX - part->bytes - EM_PAGE_BYTES) return false;
        bytes += part->bytes;
    }
    return bytes == r->length;
}

static bool in_order(const em_requests *requests, const em_read *r) {
    return r->offset >= 0 && r->length >= 1 && r->offset <= INT64_MAX - r->length && r->destination &&
           r->crc32c <= UINT32_MAX && (r->part_count == 0 || (r->part_count > 0 && parts_in_order(requests, r)));
}

int32_t em_reader_submit(em_reader *reader, const em_read *reads, int32_t count, int32_t demand, int64_t *tickets) {
    if (!reader || !reads || count < 1 || !tickets) return EM_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++) {
        if (!in_order(&reader->requests, &reads[i])) return EM_BAD_ARGUMENT;
    }
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    if (!em_requests_have_room(&reader->requests, count)) {
        status = EM_FULL;
    } else {
        const uint64_t now_ns = em_now_ns();
        for (int32_t i = 0; i < count; i++) {
            tickets[i] = em_requests_put(&reader->requests, &reads[i], demand ? DEMAND : PREFETCH, now_ns);
        }
        wake_one(reader);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

/* The clock of timeouts: where condition variables support it, one that does not advance during suspend and
 * does not jump when the system time is set. */
#ifdef __APPLE__
#define WAIT_CLOCK CLOCK_REALTIME
#else
#define WAIT_CLOCK CLOCK_MONOTONIC
#endif

static int init_waitable(pthread_cond_t *condition) {
#ifdef __APPLE__
    return pthread_cond_init(condition, NULL);
#else
    pthread_condattr_t attributes;
    int failed = pthread_condattr_init(&attributes);
    if (failed) return failed;
    failed = pthread_condattr_setclock(&attributes, WAIT_CLOCK);
    if (!failed) failed = pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return failed;
#endif
}

static struct timespec deadline_after(int64_t microseconds) {
    struct timespec t;
    clock_gettime(WAIT_CLOCK, &t);
    t.tv_sec += microseconds / 1000000;
    t.tv_nsec += microseconds % 1000000 * 1000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

int32_t em_reader_wait(em_reader *reader, int64_t ticket, int64_t timeout_us, int64_t *detail) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    const struct timespec deadline = deadline_after(timeout_us > 0 ? timeout_us : 0);
    const request *r = em_requests_find(&reader->requests, ticket);
    while (r && r->state != OVER && status != EM_TIMEOUT) {
        if (timeout_us < 0) {
            pthread_cond_wait(&reader->over, &reader->mutex);
        } else if (pthread_cond_timedwait(&reader->over, &reader->mutex, &deadline) == ETIMEDOUT) {
            status = EM_TIMEOUT;
        }
        r = em_requests_find(&reader->requests, ticket);
    }
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state == OVER) {
        status = r->status;
        if (detail) *detail = r->detail;
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

/* `*over` becomes whether one of the requests is over; EM_BAD_TICKET if a ticket is invalid. With the mutex held. */
static int32_t any_over(em_reader *reader, const int64_t *tickets, int32_t count, bool *over) {
    *over = false;
    for (int32_t i = 0; i < count; i++) {
        const request *r = em_requests_find(&reader->requests, tickets[i]);
        if (!r) return EM_BAD_TICKET;
        *over |= r->state == OVER;
    }
    return EM_OK;
}

int32_t em_reader_wait_any(em_reader *reader, const int64_t *tickets, int32_t count, int64_t timeout_us) {
    if (!tickets || count < 1) return EM_BAD_ARGUMENT;
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    const struct timespec deadline = deadline_after(timeout_us > 0 ? timeout_us : 0);
    bool over;
    while ((status = any_over(reader, tickets, count, &over)) == EM_OK && !over) {
        if (timeout_us < 0) {
            pthread_cond_wait(&reader->over, &reader->mutex);
        } else if (pthread_cond_timedwait(&reader->over, &reader->mutex, &deadline) == ETIMEDOUT) {
            status = any_over(reader, tickets, count, &over);
            if (status == EM_OK && !over) status = EM_TIMEOUT;
            break;
        }
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

int32_t em_reader_done(em_reader *reader, int64_t ticket) {
    const int32_t status = enter(reader);
    if (status != EM_OK) return -status;
    const request *r = em_requests_find(&reader->requests, ticket);
    const int32_t result = r ? r->state == OVER : -EM_BAD_TICKET;
    pthread_mutex_unlock(&reader->mutex);
    return result;
}

int32_t em_reader_promote(em_reader *reader, int64_t ticket) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    request *r = em_requests_find(&reader->requests, ticket);
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state == QUEUED && r->priority == PREFETCH) {
        em_requests_promote(&reader->requests, r);
        pthread_cond_signal(&reader->work);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

int32_t em_reader_cancel(em_reader *reader, int64_t ticket) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    request *r = em_requests_find(&reader->requests, ticket);
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state != QUEUED || r->given_out > 0) {
        status = EM_BUSY;
    } else {
        em_requests_withdraw(&reader->requests, r);
        reader->counters.cancelled++;
        finish(reader, r, EM_CANCELLED, 0);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

int32_t em_reader_release(em_reader *reader, int64_t ticket) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    request *r = em_requests_find(&reader->requests, ticket);
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state != OVER) {
        status = EM_BUSY;
    } else {
        em_requests_release(&reader->requests, r);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

int32_t em_reader_counters(em_reader *reader, em_read_counters *counters) {
    const int32_t status = enter(reader);
    if (status != EM_OK) return status;
    *counters = reader->counters;
    pthread_mutex_unlock(&reader->mutex);
    return EM_OK;
}

/* ---- beginning and end ----------------------------------------------------------------------------------- */

/* Returns a reader that has no threads yet, or NULL if memory is short. */
static em_reader *create_idle(int32_t capacity, int64_t piece_bytes, int64_t staging_bytes, int32_t prefetches_max) {
    em_reader *reader = calloc(1, sizeof *reader);
    if (!reader || !em_requests_init(&reader->requests, capacity, piece_bytes, staging_bytes, prefetches_max) ||
        pthread_mutex_init(&reader->mutex, NULL) != 0 || pthread_cond_init(&reader->work, NULL) != 0 ||
        init_waitable(&reader->over) != 0) {
        if (reader) em_requests_free(&reader->requests);
        free(reader);
        return NULL;
    }
    reader->kernels = em_kernels_for(em_isa_name(0));
    reader->process = getpid();
    return reader;
}

static uint8_t *allocate_staging(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, bytes < HUGE_PAGE_BYTES ? EM_PAGE_BYTES : HUGE_PAGE_BYTES, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, MADV_HUGEPAGE);
#endif
    return memory;
}

/* Starts as many of the threads as the system allows, since fewer read too, only slower. False if it allows none. */
static bool start_threads(em_reader *reader, int32_t threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (reader->started < threads &&
           pthread_create(&reader->threads[reader->started], NULL, read_requests, reader) == 0) {
        reader->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return reader->started > 0;
}

int32_t em_reader_create(int32_t threads, int32_t capacity, int64_t piece_bytes, int64_t staging_bytes,
                         em_reader **result) {
    if (!result || threads < 1 || threads > READER_THREADS_MAX || capacity < 1 || capacity > CAPACITY_MAX ||
        piece_bytes < 1 || piece_bytes > PIECE_BYTES_MAX || staging_bytes < 0 || staging_bytes > STAGING_BYTES_MAX ||
        staging_bytes % EM_PAGE_BYTES) {
        return EM_BAD_ARGUMENT;
    }
    em_reader *reader = create_idle(capacity, piece_bytes, staging_bytes, threads > 1 ? threads - 1 : 1);
    if (!reader) return EM_NO_MEMORY;
    if (staging_bytes && !(reader->staging = allocate_staging((size_t)threads * (size_t)staging_bytes))) {
        em_reader_destroy(reader);
        return EM_NO_MEMORY;
    }
    if (!start_threads(reader, threads)) {
        em_reader_destroy(reader);
        return EM_NO_THREADS;
    }
    if (reader->started < threads) { /* no request exists yet, but threads read this field */
        pthread_mutex_lock(&reader->mutex);
        reader->requests.prefetches_max = reader->started > 1 ? reader->started - 1 : 1;
        pthread_mutex_unlock(&reader->mutex);
    }
    *result = reader;
    return EM_OK;
}

void em_reader_destroy(em_reader *reader) {
    /* A forked child lacks the threads, and its copy of the mutex may be locked. */
    if (!reader || getpid() != reader->process) return;
    pthread_mutex_lock(&reader->mutex);
    reader->stopping = true;
    for (int p = 0; p < PRIORITIES; p++) {
        while (reader->requests.queues[p].first != NOWHERE) {
            request *r = &reader->requests.places[reader->requests.queues[p].first];
            em_requests_withdraw(&reader->requests, r);
            r->status = EM_CANCELLED;
            if (r->pieces_running == 0) finish(reader, r, EM_CANCELLED, 0);
        }
    }
    pthread_cond_broadcast(&reader->work);
    pthread_mutex_unlock(&reader->mutex);
    for (int32_t i = 0; i < reader->started; i++) pthread_join(reader->threads[i], NULL);
    pthread_cond_destroy(&reader->over);
    pthread_cond_destroy(&reader->work);
    pthread_mutex_destroy(&reader->mutex);
    em_requests_free(&reader->requests);
    free(reader->staging);
    free(reader);
}
