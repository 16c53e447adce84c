/* The requests of a reader: a table of them, a queue for each priority, and what is to be read next. No locks and no
 * threads: the reader's mutex guards it all. */
#ifndef EDGEMOE_REQUESTS_H
#define EDGEMOE_REQUESTS_H

#include <stdbool.h>

#include "edgemoe.h"

enum { NOWHERE = -1 };

typedef enum request_state {
    FREE,
    QUEUED,  /* some piece was not given out yet; others may be under way */
    READING, /* all pieces are given out */
    OVER
} request_state;

typedef enum priority { DEMAND = 0, PREFETCH = 1, PRIORITIES = 2 } priority;

typedef struct request {
    request_state state;
    priority priority;
    int32_t status;     /* EM_OK, or why a piece failed: of several failed pieces, the first in the record */
    int32_t descriptor;
    int64_t detail;     /* once over: bytes read, or errno, or the bytes of a short read */
    int64_t offset;
    int64_t length;
    int64_t given_out;  /* bytes of it, from the beginning */
    int64_t failed_at;  /* of the piece that `status` is of, from the beginning */
    const em_part *parts; /* NULL: it lands as it is */
    const em_place *part_places;
    int64_t part_begin; /* of the part that comes next, from the beginning */
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

typedef struct em_requests {
    queue queues[PRIORITIES];
    request *places;
    int64_t piece_bytes;
    int64_t staging_bytes; /* of each thread: what parts land from */
    int32_t capacity;
    int32_t free_list;
    int32_t prefetches_running; /* pieces */
    int32_t prefetches_max;     /* that may run at a time */
} em_requests;

/* What one reader is to read at a time. */
typedef struct piece {
    int32_t descriptor;
    int64_t offset; /* in the file */
    int64_t length;
    uint8_t *destination; /* where its bytes go or, of a part, the slot */
    int64_t at;     /* bytes of the request before it */
    int64_t behind; /* bytes of the request that follow it; negative where no checksum is asked for */
    const em_part *part; /* that it is of; NULL: it lands as it is */
    int64_t part_begin;  /* bytes of the part before it */
    int64_t modified_ns; /* as in em_place */
    float scale;         /* likewise */
} piece;

/* Whether there is memory for so many places. */
bool em_requests_init(em_requests *requests, int32_t capacity, int64_t piece_bytes, int64_t staging_bytes,
                      int32_t prefetches_max);
void em_requests_free(em_requests *requests);

bool em_requests_have_room(const em_requests *requests, int32_t count);
/* Gives a read the first free place, which must be there, and queues it; returns its ticket. */
int64_t em_requests_put(em_requests *requests, const em_read *read, priority p, uint64_t now_ns);
/* The request of a ticket, or NULL. */
request *em_requests_find(em_requests *requests, int64_t ticket);
/* Gives the place of a request back. */
void em_requests_release(em_requests *requests, request *r);

/* The place of the request whose next piece is to be read, or NOWHERE. */
int32_t em_requests_choose(const em_requests *requests);
/* The next piece of the request in a place, which leaves its queue with its last one. */
piece em_requests_give_out(em_requests *requests, int32_t place);
/* Of a request whose pieces failed in several ways, what went wrong first in the record is told. */
void em_requests_note_failure(em_requests *requests, request *r, const piece *failed, int32_t status, int64_t detail);

/* Puts a queued prefetch behind the demands. */
void em_requests_promote(em_requests *requests, request *r);
/* Takes a queued request out of its queue, as if all of it were given out. */
void em_requests_withdraw(em_requests *requests, request *r);

#endif
