/* Threads that read expert records from files: demands first, then predictions.
 *
 * A request stays in its queue until its last piece is given out, and is over when all its pieces are. Readers take the
 * next piece of the first request, so that several of them hasten one record instead of each making its own late, and a
 * demand waits for the pieces of a prediction that have begun, never for the whole of it.
 *
 * One mutex guards all requests; it is held for list operations only, never over a read. A ticket is a request's
 * place in the table with a count of how often that place was used, so that a ticket from before is known as such. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../kernels/kernels.h"
#include "clock.h"

enum {
    READER_THREADS_MAX = 64,
    CAPACITY_MAX = 1 << 20,
    NOWHERE = -1,
};

/* The most that one read call is asked for; systems cut longer ones. */
#define PIECE_BYTES_MAX ((int64_t)1 << 30)

typedef enum request_state {
    FREE,
    QUEUED,  /* some piece was not given out yet; others may be under way */
    READING, /* all pieces are given out */
    OVER
} request_state;

typedef enum priority { DEMAND = 0, PREDICTION = 1, PRIORITIES = 2 } priority;

typedef struct request {
    request_state state;
    priority priority;
    int32_t status;     /* EM_OK, or why a piece failed: of several failed pieces, the first in the record */
    int32_t descriptor;
    int64_t detail;     /* once over: bytes read, or errno, or the bytes of a short read */
    int64_t offset;
    int64_t length;
    int64_t given_out;  /* bytes of it, from the beginning */
    int64_t failed_at;  /* of the piece that `status` is of */
    bool checked;
    uint32_t expected;  /* CRC-32C of the whole, of a checked one */
    uint32_t found;     /* sum of what the pieces add to that of the whole */
    int32_t pieces_running;
    uint8_t *destination;
    uint64_t submitted_ns;
    int32_t uses;       /* of this place, for tickets */
    int32_t next;       /* in its queue, or in the list of free places */
    int32_t previous;
} request;

typedef struct queue {
    int32_t first, last;
} queue;

struct em_reader {
    pthread_mutex_t mutex;
    pthread_cond_t work;
    pthread_cond_t over;
    const em_kernels *kernels; /* for checksums */
    queue queues[PRIORITIES];
    request *requests;
    int64_t piece_bytes;
    int32_t capacity;
    int32_t free_list;
    int32_t predictions_running; /* pieces */
    int32_t predictions_max;     /* that may run at a time */
    bool stopping;
    em_read_counters counters;
    pid_t process;
    int32_t started;
    pthread_t threads[READER_THREADS_MAX];
};

/* ---- queues: all with the mutex held --------------------------------------------------------------------- */

static void enqueue(em_reader *reader, int32_t place) {
    request *r = &reader->requests[place];
    queue *q = &reader->queues[r->priority];
    r->state = QUEUED;
    r->next = NOWHERE;
    r->previous = q->last;
    if (q->last == NOWHERE) {
        q->first = place;
    } else {
        reader->requests[q->last].next = place;
    }
    q->last = place;
}

static void dequeue(em_reader *reader, int32_t place) {
    const request *r = &reader->requests[place];
    queue *q = &reader->queues[r->priority];
    if (r->previous == NOWHERE) {
        q->first = r->next;
    } else {
        reader->requests[r->previous].next = r->next;
    }
    if (r->next == NOWHERE) {
        q->last = r->previous;
    } else {
        reader->requests[r->next].previous = r->previous;
    }
}

/* The request whose next piece is to be read, or NOWHERE. */
static int32_t choose(const em_reader *reader) {
    if (reader->queues[DEMAND].first != NOWHERE) return reader->queues[DEMAND].first;
    if (reader->predictions_running >= reader->predictions_max) return NOWHERE;
    return reader->queues[PREDICTION].first;
}

static void finish(em_reader *reader, request *r, int32_t status, int64_t detail) {
    r->state = OVER;
    r->status = status;
    r->detail = detail;
    pthread_cond_broadcast(&reader->over);
}

/* ---- reading --------------------------------------------------------------------------------------------- */

typedef struct piece {
    int32_t descriptor;
    int64_t offset; /* in the file */
    int64_t length;
    uint8_t *destination;
    int64_t behind; /* bytes of the request that follow it; negative where no checksum is asked for */
} piece;

/* `*detail` becomes the bytes that were read, or errno. */
static int32_t read_whole(const piece *p, int64_t *detail) {
    int64_t done = 0;
    while (done < p->length) {
        const size_t left = (size_t)(p->length - done);
        const ssize_t got = pread(p->descriptor, p->destination + done, left, (off_t)(p->offset + done));
        if (got > 0) {
            done += got;
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got == 0 || (errno == EINVAL && done > 0)) {
            /* With O_DIRECT, going on from an unaligned end of file is EINVAL instead of 0. */
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

/* What a piece adds to the checksum of the whole: that of a whole is the sum (xor) of its pieces', each carried past the
 * bytes behind it. Taken while the piece is still in the cache of the processor that read it. */
static uint32_t checksum_share(const em_kernels *kernels, const piece *p) {
    const uint32_t crc = em_crc32c(kernels, 0, p->destination, (uint64_t)p->length);
    return em_crc32c_combine(crc, 0, (uint64_t)p->behind);
}

/* The next piece of request `place`, which leaves its queue with its last one. */
static piece give_out(em_reader *reader, int32_t place) {
    request *r = &reader->requests[place];
    const int64_t left = r->length - r->given_out;
    const piece next = {.descriptor = r->descriptor,
                        .offset = r->offset + r->given_out,
                        .length = left < reader->piece_bytes ? left : reader->piece_bytes,
                        .destination = r->destination + r->given_out,
                        .behind = r->checked ? left - (left < reader->piece_bytes ? left : reader->piece_bytes) : -1};
    if (r->given_out == 0) reader->counters.queue_wait_ns += em_now_ns() - r->submitted_ns;
    r->given_out += next.length;
    r->pieces_running++;
    if (r->given_out == r->length) {
        dequeue(reader, place);
        r->state = READING;
    }
    return next;
}

/* Of a request whose pieces failed in several ways, what went wrong first in the record is told. */
static void note_failure(em_reader *reader, request *r, const piece *failed, int32_t status, int64_t detail) {
    const int64_t at = failed->offset - r->offset;
    if (r->status == EM_OK || at < r->failed_at) {
        r->status = status;
        r->failed_at = at;
        r->detail = status == EM_SHORT_READ ? at + detail : detail;
    }
    if (r->state == QUEUED) { /* nobody wants the rest */
        dequeue(reader, (int32_t)(r - reader->requests));
        r->state = READING;
    }
}

/* Reads a piece of request `place`; the mutex is held at the call and at the return, but not while reading. */
static void serve(em_reader *reader, int32_t place) {
    request *r = &reader->requests[place];
    const bool prediction = r->priority == PREDICTION;
    const piece next = give_out(reader, place);
    reader->predictions_running += prediction;
    pthread_mutex_unlock(&reader->mutex);

    const uint64_t begin = em_now_ns();
    int64_t detail;
    const int32_t status = read_whole(&next, &detail);
    const uint64_t end = em_now_ns();
    const uint32_t share = status == EM_OK && next.behind >= 0 ? checksum_share(reader->kernels, &next) : 0;

    pthread_mutex_lock(&reader->mutex);
    reader->predictions_running -= prediction;
    reader->counters.read_ns += end - begin;
    reader->counters.bytes_read += status == EM_READ_FAILED ? 0 : (uint64_t)detail;
    r->pieces_running--;
    r->found ^= share;
    if (status != EM_OK) note_failure(reader, r, &next, status, detail);
    if (r->state == READING && r->pieces_running == 0) {
        if (r->status == EM_OK && r->checked && r->found != r->expected) {
            r->status = EM_BAD_CHECKSUM;
            r->detail = r->found;
        }
        reader->counters.reads++;
        reader->counters.failed += r->status != EM_OK;
        finish(reader, r, r->status, r->status == EM_OK ? r->length : r->detail);
    }
    /* A prediction may have waited for the place of this one. */
    if (prediction && choose(reader) != NOWHERE) pthread_cond_signal(&reader->work);
}

static void *read_requests(void *argument) {
    em_reader *reader = argument;
    pthread_mutex_lock(&reader->mutex);
    while (!reader->stopping) {
        const int32_t place = choose(reader);
        if (place == NOWHERE) {
            pthread_cond_wait(&reader->work, &reader->mutex);
        } else {
            serve(reader, place);
        }
    }
    pthread_mutex_unlock(&reader->mutex);
    return NULL;
}

/* ---- tickets --------------------------------------------------------------------------------------------- */

static int64_t ticket_of(const em_reader *reader, int32_t place) {
    return (int64_t)reader->requests[place].uses << 32 | place;
}

/* The request of a ticket, or NULL; with the mutex held. */
static request *find(em_reader *reader, int64_t ticket) {
    const int64_t place = ticket & 0xffffffff;
    if (ticket < 0 || place >= reader->capacity) return NULL;
    request *r = &reader->requests[place];
    return r->state != FREE && r->uses == ticket >> 32 ? r : NULL;
}

/* Takes the mutex. In a forked child its state is unknown, so that is asked first. */
static int32_t enter(em_reader *reader) {
    if (!reader) return EM_BAD_ARGUMENT;
    if (getpid() != reader->process) return EM_FORKED;
    pthread_mutex_lock(&reader->mutex);
    return EM_OK;
}

static bool in_order(const em_read *r) {
    return r->offset >= 0 && r->length >= 1 && r->offset <= INT64_MAX - r->length && r->destination &&
           r->crc32c <= UINT32_MAX;
}

static bool has_room(const em_reader *reader, int32_t count) {
    int32_t place = reader->free_list;
    for (; count > 0 && place != NOWHERE; count--) place = reader->requests[place].next;
    return count == 0;
}

/* Gives a read the first free place, and queues it; returns its ticket. */
static int64_t put(em_reader *reader, const em_read *read, priority p, uint64_t now_ns) {
    const int32_t place = reader->free_list;
    request *r = &reader->requests[place];
    reader->free_list = r->next;
    *r = (request){.priority = p,
                   .descriptor = read->descriptor,
                   .offset = read->offset,
                   .length = read->length,
                   .destination = read->destination,
                   .checked = read->crc32c >= 0,
                   .expected = (uint32_t)read->crc32c,
                   .submitted_ns = now_ns,
                   .uses = (r->uses + 1) & INT32_MAX};
    enqueue(reader, place);
    return ticket_of(reader, place);
}

/* Wakes readers, but no more than there are pieces: each takes its time on a processor before it sleeps again. */
static void wake(em_reader *reader, const em_read *reads, int32_t count) {
    int32_t woken = 0;
    for (int32_t i = 0; i < count; i++) {
        for (int64_t left = reads[i].length; left > 0 && woken < reader->started; left -= reader->piece_bytes) {
            pthread_cond_signal(&reader->work);
            woken++;
        }
    }
}

int32_t em_reader_submit(em_reader *reader, const em_read *reads, int32_t count, int32_t demand, int64_t *tickets) {
    if (!reads || count < 1 || !tickets) return EM_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++) {
        if (!in_order(&reads[i])) return EM_BAD_ARGUMENT;
    }
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    if (!has_room(reader, count)) {
        status = EM_FULL;
    } else {
        const uint64_t now_ns = em_now_ns();
        for (int32_t i = 0; i < count; i++) {
            tickets[i] = put(reader, &reads[i], demand ? DEMAND : PREDICTION, now_ns);
        }
        wake(reader, reads, count);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

/* The clock of time limits: one that neither a suspended laptop nor a set clock moves, where conditions can
 * wait by it. */
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
    const request *r = find(reader, ticket);
    while (r && r->state != OVER && status != EM_TIMEOUT) {
        if (timeout_us < 0) {
            pthread_cond_wait(&reader->over, &reader->mutex);
        } else if (pthread_cond_timedwait(&reader->over, &reader->mutex, &deadline) == ETIMEDOUT) {
            status = EM_TIMEOUT;
        }
        r = find(reader, ticket);
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

/* Whether one of the requests is over; EM_BAD_TICKET where one of them is none. With the mutex held. */
static int32_t any_over(em_reader *reader, const int64_t *tickets, int32_t count, bool *over) {
    *over = false;
    for (int32_t i = 0; i < count; i++) {
        const request *r = find(reader, tickets[i]);
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
    const request *r = find(reader, ticket);
    const int32_t result = r ? r->state == OVER : -EM_BAD_TICKET;
    pthread_mutex_unlock(&reader->mutex);
    return result;
}

int32_t em_reader_promote(em_reader *reader, int64_t ticket) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    request *r = find(reader, ticket);
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state == QUEUED && r->priority == PREDICTION) {
        const int32_t place = (int32_t)(r - reader->requests);
        dequeue(reader, place);
        r->priority = DEMAND;
        enqueue(reader, place);
        pthread_cond_signal(&reader->work);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

int32_t em_reader_cancel(em_reader *reader, int64_t ticket) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    request *r = find(reader, ticket);
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state != QUEUED || r->given_out > 0) {
        status = EM_BUSY;
    } else {
        dequeue(reader, (int32_t)(r - reader->requests));
        reader->counters.cancelled++;
        finish(reader, r, EM_CANCELLED, 0);
    }
    pthread_mutex_unlock(&reader->mutex);
    return status;
}

int32_t em_reader_release(em_reader *reader, int64_t ticket) {
    int32_t status = enter(reader);
    if (status != EM_OK) return status;
    request *r = find(reader, ticket);
    if (!r) {
        status = EM_BAD_TICKET;
    } else if (r->state != OVER) {
        status = EM_BUSY;
    } else {
        r->state = FREE;
        r->next = reader->free_list;
        reader->free_list = (int32_t)(r - reader->requests);
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

/* A reader on which nothing is read yet, or NULL without memory. */
static em_reader *create_idle(int32_t capacity, int64_t piece_bytes, int32_t predictions_max) {
    em_reader *reader = calloc(1, sizeof *reader);
    request *requests = calloc((size_t)capacity, sizeof *requests);
    if (!reader || !requests || pthread_mutex_init(&reader->mutex, NULL) != 0 ||
        pthread_cond_init(&reader->work, NULL) != 0 || init_waitable(&reader->over) != 0) {
        free(requests);
        free(reader);
        return NULL;
    }
    for (int32_t i = 0; i < capacity; i++) requests[i].next = i + 1 < capacity ? i + 1 : NOWHERE;
    for (int p = 0; p < PRIORITIES; p++) reader->queues[p] = (queue){NOWHERE, NOWHERE};
    reader->kernels = em_kernels_for(em_isa_name(0));
    reader->requests = requests;
    reader->piece_bytes = piece_bytes;
    reader->capacity = capacity;
    reader->process = getpid();
    reader->predictions_max = predictions_max;
    return reader;
}

static bool start_threads(em_reader *reader, int32_t threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (reader->started < threads &&
           pthread_create(&reader->threads[reader->started], NULL, read_requests, reader) == 0) {
        reader->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return reader->started == threads;
}

int32_t em_reader_create(int32_t threads, int32_t capacity, int64_t piece_bytes, em_reader **result) {
    if (!result || threads < 1 || threads > READER_THREADS_MAX || capacity < 1 || capacity > CAPACITY_MAX ||
        piece_bytes < 1 || piece_bytes > PIECE_BYTES_MAX) {
        return EM_BAD_ARGUMENT;
    }
    em_reader *reader = create_idle(capacity, piece_bytes, threads > 1 ? threads - 1 : 1);
    if (!reader) return EM_NO_MEMORY;
    if (!start_threads(reader, threads)) {
        em_reader_destroy(reader);
        return EM_NO_THREADS;
    }
    *result = reader;
    return EM_OK;
}

void em_reader_destroy(em_reader *reader) {
    /* A forked child has neither the threads nor a mutex to rely on. */
    if (!reader || getpid() != reader->process) return;
    pthread_mutex_lock(&reader->mutex);
    reader->stopping = true;
    for (int p = 0; p < PRIORITIES; p++) {
        while (reader->queues[p].first != NOWHERE) {
            const int32_t place = reader->queues[p].first;
            request *r = &reader->requests[place];
            dequeue(reader, place);
            r->state = READING;
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
    free(reader->requests);
    free(reader);
}
