/* See requests.h. A request stays in its queue until its last piece is given out, and is over when all its pieces are.
 * A ticket is a request's place in the table with a count of how often that place was used, so that the ticket of an
 * earlier request in the same place is recognised as invalid. */
#include "requests.h"

#include <stdlib.h>

#include "landing.h"

bool em_requests_init(em_requests *requests, int32_t capacity, int64_t piece_bytes, int64_t staging_bytes,
                      int32_t prefetches_max) {
    *requests = (em_requests){.piece_bytes = piece_bytes,
                              .staging_bytes = staging_bytes,
                              .capacity = capacity,
                              .prefetches_max = prefetches_max};
    requests->places = calloc((size_t)capacity, sizeof *requests->places);
    if (!requests->places) return false;
    for (int32_t i = 0; i < capacity; i++) requests->places[i].next = i + 1 < capacity ? i + 1 : NOWHERE;
    for (int p = 0; p < PRIORITIES; p++) requests->queues[p] = (queue){NOWHERE, NOWHERE};
    return true;
}

void em_requests_free(em_requests *requests) { free(requests->places); }

static int32_t place_of(const em_requests *requests, const request *r) { return (int32_t)(r - requests->places); }

/* ---- queues ---------------------------------------------------------------------------------------------- */

static void enqueue(em_requests *requests, int32_t place) {
    request *r = &requests->places[place];
    queue *q = &requests->queues[r->priority];
    r->state = QUEUED;
    r->next = NOWHERE;
    r->previous = q->last;
    if (q->last == NOWHERE) {
        q->first = place;
    } else {
        requests->places[q->last].next = place;
    }
    q->last = place;
}

static void dequeue(em_requests *requests, const request *r) {
    queue *q = &requests->queues[r->priority];
    if (r->previous == NOWHERE) {
        q->first = r->next;
    } else {
        requests->places[r->previous].next = r->next;
    }
    if (r->next == NOWHERE) {
        q->last = r->previous;
    } else {
        requests->places[r->next].previous = r->previous;
    }
}

int32_t em_requests_choose(const em_requests *requests) {
    if (requests->queues[DEMAND].first != NOWHERE) return requests->queues[DEMAND].first;
    if (requests->prefetches_running >= requests->prefetches_max) return NOWHERE;
    return requests->queues[PREFETCH].first;
}

void em_requests_promote(em_requests *requests, request *r) {
    dequeue(requests, r);
    r->priority = DEMAND;
    enqueue(requests, place_of(requests, r));
}

void em_requests_withdraw(em_requests *requests, request *r) {
    dequeue(requests, r);
    r->state = READING;
}

/* ---- pieces ---------------------------------------------------------------------------------------------- */

/* The next piece of a record that lands as it is. */
static piece next_as_is(const em_requests *requests, const request *r) {
    const int64_t left = r->length - r->given_out;
    return (piece){.descriptor = r->descriptor,
                   .offset = r->offset + r->given_out,
                   .length = left < requests->piece_bytes ? left : requests->piece_bytes,
                   .destination = r->destination + r->given_out};
}

/* The next piece of a record in parts, of the part that comes next: as much as lands in one go. */
static piece next_of_part(const em_requests *requests, request *r) {
    const em_part *part = r->parts;
    const int64_t begin = r->given_out - r->part_begin, left = part->bytes - begin;
    const int64_t step = em_part_step(part, requests->staging_bytes);
    const piece next = {.descriptor = r->part_places->descriptor,
                        .offset = r->part_places->offset + begin,
                        .length = left < step ? left : step,
                        .destination = r->destination,
                        .part = part,
                        .part_begin = begin,
                        .modified_ns = r->part_places->modified_ns,
                        .scale = r->part_places->scale};
    if (next.length == left) {
        r->part_begin += part->bytes;
        r->parts++;
        r->part_places++;
    }
    return next;
}

piece em_requests_give_out(em_requests *requests, int32_t place) {
    request *r = &requests->places[place];
    piece next = r->parts ? next_of_part(requests, r) : next_as_is(requests, r);
    next.at = r->given_out;
    r->given_out += next.length;
    next.behind = r->checked ? r->length - r->given_out : -1;
    r->pieces_running++;
    if (r->given_out == r->length) em_requests_withdraw(requests, r);
    return next;
}

void em_requests_note_failure(em_requests *requests, request *r, const piece *failed, int32_t status, int64_t detail) {
    if (r->status == EM_OK || failed->at < r->failed_at) {
        r->status = status;
        r->failed_at = failed->at;
        r->detail = status == EM_SHORT_READ ? failed->at + detail : detail;
    }
    if (r->state == QUEUED) em_requests_withdraw(requests, r); /* the rest need not be read */
}

/* ---- places and tickets ---------------------------------------------------------------------------------- */

static int64_t ticket_of(const em_requests *requests, int32_t place) {
    return (int64_t)requests->places[place].uses << 32 | place;
}

request *em_requests_find(em_requests *requests, int64_t ticket) {
    const int64_t place = ticket & 0xffffffff;
    if (ticket < 0 || place >= requests->capacity) return NULL;
    request *r = &requests->places[place];
    return r->state != FREE && r->uses == ticket >> 32 ? r : NULL;
}

bool em_requests_have_room(const em_requests *requests, int32_t count) {
    int32_t place = requests->free_list;
    for (; count > 0 && place != NOWHERE; count--) place = requests->places[place].next;
    return count == 0;
}

int64_t em_requests_put(em_requests *requests, const em_read *read, priority p, uint64_t now_ns) {
    const int32_t place = requests->free_list;
    request *r = &requests->places[place];
    requests->free_list = r->next;
    *r = (request){.priority = p,
                   .descriptor = read->descriptor,
                   .offset = read->offset,
                   .length = read->length,
                   .destination = read->destination,
                   .checked = read->crc32c >= 0,
                   .expected = (uint32_t)read->crc32c,
                   .parts = read->part_count > 0 ? read->parts : NULL,
                   .part_places = read->places,
                   .submitted_ns = now_ns,
                   .uses = (r->uses + 1) & INT32_MAX};
    enqueue(requests, place);
    return ticket_of(requests, place);
}

void em_requests_release(em_requests *requests, request *r) {
    r->state = FREE;
    r->next = requests->free_list;
    requests->free_list = place_of(requests, r);
}
