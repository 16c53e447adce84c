/* The row pager. A page that is asked for and absent gets a slot at once, and its read is queued; all reads of a call are under
 * way together, and the call ends when all have ended. */
#include "row_pager.h"

#include <stdbool.h>
#include <stdlib.h>

#include "../kernels/kernels.h"
#include "clock.h"
#include "landing.h"

enum {
    READS_AT_ONCE = 1024, /* of one submission; the reader has room for more */
    FREE = -1,
    LOST = -2, /* a read that did not end in time may yet write to this slot */
};

typedef struct slot_of_rows {
    int32_t page;
    uint32_t call; /* the last one that asked for the page */
    bool used;     /* since the clock's hand came by */
} slot_of_rows;

struct em_row_pager {
    em_row_pager_setup setup;
    const em_kernels *kernels; /* for checksums */
    slot_of_rows *slots;
    em_read reads[READS_AT_ONCE];
    int64_t tickets[READS_AT_ONCE];
    int32_t reading[READS_AT_ONCE]; /* slots */
    int32_t read_count;
    int32_t hand;
    uint32_t call;
    uint64_t waited_ns;
};

static int64_t page_bytes(const em_row_pager *p) { return p->setup.row_bytes * p->setup.rows_per_page; }

static int32_t page_count(const em_row_pager_setup *s) { return (s->row_count - 1) / s->rows_per_page + 1; }

uint64_t em_row_pager_bytes(int32_t slot_count) {
    return sizeof(em_row_pager) + (uint64_t)slot_count * sizeof(slot_of_rows);
}

static bool in_order(const em_row_pager_setup *s) {
    return s && s->arena && s->slots && s->crc32c && s->counters && s->failure && s->source.submit && s->offset >= 0 &&
           s->offset % EM_PAGE_BYTES == 0 && s->row_bytes > 0 && s->rows_per_page > 0 && s->row_count > 0 &&
           s->slot_count > 0 && s->row_bytes <= INT32_MAX && s->rows_per_page <= EM_PAGE_BYTES &&
           s->row_bytes * s->rows_per_page % EM_PAGE_BYTES == 0 &&
           s->row_bytes <= (INT64_MAX - s->offset) / s->row_count - EM_PAGE_BYTES;
}

int32_t em_row_pager_create(const em_row_pager_setup *setup, em_row_pager **pager) {
    if (!in_order(setup) || !pager) return EM_BAD_ARGUMENT;
    em_row_pager *p = calloc(1, sizeof *p);
    if (p) p->slots = calloc((size_t)setup->slot_count, sizeof *p->slots);
    if (!p || !p->slots) {
        free(p);
        return EM_NO_MEMORY;
    }
    p->setup = *setup;
    p->kernels = em_kernels_for(em_isa_name(0));
    for (int32_t slot = 0; slot < setup->slot_count; slot++) p->slots[slot].page = FREE;
    for (int32_t page = 0; page < page_count(setup); page++) setup->slots[page] = -1;
    *pager = p;
    return EM_OK;
}

void em_row_pager_destroy(em_row_pager *pager) {
    if (!pager) return;
    free(pager->slots);
    free(pager);
}

uint64_t em_row_pager_waited_ns(const em_row_pager *pager) { return pager->waited_ns; }

static void empty_slot(em_row_pager *p, int32_t slot) {
    if (p->slots[slot].page >= 0) p->setup.slots[p->slots[slot].page] = -1;
    p->slots[slot].page = FREE;
}

/* A slot that this call does not need, emptied if need be; -1 where it needs all. */
static int32_t take_slot(em_row_pager *p) {
    for (int64_t steps = 0; steps < 2 * (int64_t)p->setup.slot_count; steps++) {
        const int32_t slot = p->hand;
        slot_of_rows *s = &p->slots[slot];
        p->hand = slot + 1 < p->setup.slot_count ? slot + 1 : 0;
        if (s->page == LOST || (s->page >= 0 && s->call == p->call)) continue;
        if (s->page >= 0 && s->used) {
            s->used = false;
            continue;
        }
        empty_slot(p, slot);
        return slot;
    }
    return -1;
}

static int32_t note_failure(em_row_pager *p, int32_t row, int32_t status, int64_t detail) {
    *p->setup.failure = (em_read_failure){.detail = detail, .status = status, .expert = row};
    return status;
}

/* The first row of a page. */
static int32_t first_row(const em_row_pager *p, int32_t page) { return page * p->setup.rows_per_page; }

/* The rows of a page: the last one may have fewer. */
static int32_t rows_of(const em_row_pager *p, int32_t page) {
    const int32_t left = p->setup.row_count - first_row(p, page);
    return left < p->setup.rows_per_page ? left : p->setup.rows_per_page;
}

/* Compares the rows of a page with their checksums, where the reader did not. */
static int32_t check_rows(em_row_pager *p, int32_t slot) {
    const int32_t page = p->slots[slot].page, first = first_row(p, page);
    const uint8_t *rows = p->setup.arena + (int64_t)slot * page_bytes(p);
    for (int32_t row = 0; p->setup.rows_per_page > 1 && row < rows_of(p, page); row++) {
        const uint32_t found = em_crc32c(p->kernels, 0, rows + row * p->setup.row_bytes, (uint64_t)p->setup.row_bytes);
        if (found != p->setup.crc32c[first + row]) return note_failure(p, first + row, EM_BAD_CHECKSUM, found);
    }
    return EM_OK;
}

/* Waits for the read into a slot; a page that cannot be read becomes absent. */
static int32_t finish_read(em_row_pager *p, int64_t ticket, int32_t slot) {
    const em_source *source = &p->setup.source;
    int64_t detail = 0;
    int32_t status = source->wait(source->context, ticket, p->setup.timeout_us, &detail);
    if (status != EM_OK) note_failure(p, first_row(p, p->slots[slot].page), status, detail);
    if (source->release(source->context, ticket) != EM_OK) { /* it goes on */
        empty_slot(p, slot);
        p->slots[slot].page = LOST;
        return status;
    }
    if (status == EM_OK) status = check_rows(p, slot);
    if (status != EM_OK) empty_slot(p, slot);
    return status;
}

/* Reads what was queued. All reads have ended afterwards, or are given up; the first error is told. */
static int32_t read_queued(em_row_pager *p) {
    if (p->read_count == 0) return EM_OK;
    const em_source *source = &p->setup.source;
    const uint64_t begin = em_now_ns();
    int32_t status = source->submit(source->context, p->reads, p->read_count, 1, p->tickets);
    for (int32_t i = 0; i < p->read_count; i++) {
        if (status != EM_OK && p->tickets[i] < 0) {
            empty_slot(p, p->reading[i]);
            continue;
        }
        const em_read_failure before = *p->setup.failure;
        const int32_t own = finish_read(p, p->tickets[i], p->reading[i]);
        p->setup.counters->demand_bytes += p->reads[i].length;
        if (status != EM_OK) {
            *p->setup.failure = before;
        } else {
            status = own;
        }
    }
    p->read_count = 0;
    p->waited_ns += em_now_ns() - begin;
    return status;
}

/* Queues the read of a page into a slot. */
static void queue_read(em_row_pager *p, int32_t page, int32_t slot) {
    const int64_t at = page * page_bytes(p), end = p->setup.row_bytes * p->setup.row_count;
    const int64_t whole = (end + EM_PAGE_BYTES - 1) / EM_PAGE_BYTES * EM_PAGE_BYTES - at;
    p->slots[slot].page = page;
    p->setup.slots[page] = slot;
    p->tickets[p->read_count] = -1;
    p->reading[p->read_count] = slot;
    p->reads[p->read_count++] = (em_read){
        .offset = p->setup.offset + at,
        .length = whole < page_bytes(p) ? whole : page_bytes(p),
        .destination = p->setup.arena + (int64_t)slot * page_bytes(p),
        .crc32c = p->setup.rows_per_page == 1 ? (int64_t)p->setup.crc32c[page] : -1,
        .descriptor = p->setup.descriptor,
    };
}

int32_t em_row_pager_fetch(em_row_pager *p, const int32_t *numbers, int64_t count, int64_t first) {
    int32_t status = EM_OK;
    p->call++;
    for (int64_t i = 0; i < count && status == EM_OK; i++) {
        const int64_t row = first + numbers[i];
        if (row < 0 || row >= p->setup.row_count) {
            status = EM_BAD_EXPERT;
            break;
        }
        const int32_t page = (int32_t)(row / p->setup.rows_per_page);
        int32_t slot = p->setup.slots[page];
        if (slot >= 0) {
            p->setup.counters->hits++;
        } else {
            p->setup.counters->misses++;
            slot = take_slot(p);
            if (slot < 0) {
                status = EM_FULL;
                break;
            }
            queue_read(p, page, slot);
        }
        p->slots[slot].call = p->call;
        p->slots[slot].used = true;
        if (p->read_count == READS_AT_ONCE) status = read_queued(p);
    }
    const int32_t last = read_queued(p);
    return status != EM_OK ? status : last;
}
