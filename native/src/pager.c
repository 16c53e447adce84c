/* The pager: which experts have a slot, which leaves when another needs one, and the reads that fill slots.
 *
 * An expert is absent, loading (a read into its slot is under way: the slot has a ticket) or loaded. An expert is pinned
 * while kernels may be computing on it, or waiting for it. A pinned or loading expert never leaves.
 *
 * A read ends without the pager being told, so a slot whose read was begun stands in a line until the pager has seen the
 * end of it: `loading`, in the order in which reads began, or `warming`, the slots of a warm start that nothing has asked
 * for yet, the hottest first. edgemoe/experts/cache.py is the same in Python, statement by statement; a state machine
 * holds one to the other. */
#include "pager.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "layout.h"
#include "policy.h"

enum { NONE = -1 };

typedef enum line_name { NO_LINE = -1, LOADING = 0, WARMING = 1, LINES = 2 } line_name;

/* The first and last slot of a line. */
typedef struct line {
    int32_t first, last;
} line;

/* What the pager knows of a slot besides its ticket and its pin. */
typedef struct slot_state {
    int32_t key; /* of the expert in it, or NONE */
    int32_t previous, next; /* in its line */
    int8_t line;
    bool prefetched; /* on a guess, and not used yet */
} slot_state;

/* The use of a layer's experts that is under way. Experts move from `absent` to `begun` when they get a slot, and come
 * from there in waves; each of the two is a queue, in an array with room for all experts of a layer. */
typedef struct use {
    int32_t *begun, *absent;
    int32_t begun_first, begun_end;
    int32_t absent_first, absent_end;
    int32_t wave_first; /* of `begun`, to `begun_first` */
    int32_t layer;
    bool open, scan;
    bool first_waits; /* the wave that is pinned has not been given out: em_pager_fetch began it */
} use;

struct em_pager {
    em_pager_setup setup;
    void *memory; /* of all its arrays */
    em_policy policy;
    slot_state *states; /* (slots) */
    uint8_t *pinned;    /* (slots) */
    int32_t *free_slots;
    int32_t free_count;
    line lines[LINES];
    use use;
    uint8_t *wanted;       /* (experts): em_wish of the use under way */
    int32_t *asked;        /* (experts): those that a run routes to */
    uint8_t *guessed;      /* (experts): the latest guess */
    int32_t guessed_layer; /* NONE: there is no guess that was not compared with a use */
    int32_t *guesses;      /* of one prefetch, those that are absent */
    uint8_t *held;         /* (experts): whether a prefetch pins the expert meanwhile */
    uint8_t *noted;        /* (layers, experts), the caller's, or NULL: see em_pager_note */
    int32_t phase;
    int32_t routed_layers; /* layers with experts */
    uint64_t waited_ns;
    em_read *reads;        /* of one submission, with the key, slot and ticket of each */
    int32_t *new_keys, *new_slots;
    int64_t *new_tickets;
};

/* ---- the source ------------------------------------------------------------------------------------------ */

static int32_t submit_to_reader(void *reader, const em_read *reads, int32_t count, int32_t demand, int64_t *tickets) {
    return em_reader_submit(reader, reads, count, demand, tickets);
}

static int32_t wait_for_reader(void *reader, int64_t ticket, int64_t timeout_us, int64_t *detail) {
    return em_reader_wait(reader, ticket, timeout_us, detail);
}

static int32_t wait_for_any_in_reader(void *reader, const int64_t *tickets, int32_t count, int64_t timeout_us) {
    return em_reader_wait_any(reader, tickets, count, timeout_us);
}

static int32_t done_in_reader(void *reader, int64_t ticket) { return em_reader_done(reader, ticket); }

static int32_t promote_in_reader(void *reader, int64_t ticket) { return em_reader_promote(reader, ticket); }

static int32_t cancel_in_reader(void *reader, int64_t ticket) { return em_reader_cancel(reader, ticket); }

static int32_t release_to_reader(void *reader, int64_t ticket) { return em_reader_release(reader, ticket); }

void em_reader_source(em_reader *reader, em_source *source) {
    *source = (em_source){.context = reader,
                          .submit = submit_to_reader,
                          .wait = wait_for_reader,
                          .wait_any = wait_for_any_in_reader,
                          .done = done_in_reader,
                          .promote = promote_in_reader,
                          .cancel = cancel_in_reader,
                          .release = release_to_reader};
}

/* ---- lines of slots ---------------------------------------------------------------------------------------- */

static void leave_line(em_pager *p, int32_t slot) {
    slot_state *s = &p->states[slot];
    if (s->line == NO_LINE) return;
    line *l = &p->lines[s->line];
    *(s->previous == NONE ? &l->first : &p->states[s->previous].next) = s->next;
    *(s->next == NONE ? &l->last : &p->states[s->next].previous) = s->previous;
    s->line = NO_LINE;
}

/* Puts a slot at the end of a line; one that stands in it already keeps its place. */
static void join_line(em_pager *p, line_name name, int32_t slot) {
    slot_state *s = &p->states[slot];
    if (s->line == name) return;
    leave_line(p, slot);
    line *l = &p->lines[name];
    s->line = (int8_t)name;
    s->previous = l->last;
    s->next = NONE;
    *(l->last == NONE ? &l->first : &p->states[l->last].next) = slot;
    l->last = slot;
}

/* ---- reads into slots ---------------------------------------------------------------------------------------- */

static const em_record *record_of(const em_pager *p, int32_t slot) { return &p->setup.records[p->states[slot].key]; }

/* Whether the read into a slot has not ended. */
static bool is_loading(const em_pager *p, int32_t slot) {
    const int64_t ticket = p->setup.tickets[slot];
    return ticket >= 0 && p->setup.source.done(p->setup.source.context, ticket) != 1;
}

static void release_ticket(em_pager *p, int32_t slot) {
    const int64_t ticket = p->setup.tickets[slot];
    if (ticket < 0) return;
    p->setup.tickets[slot] = -1;
    p->setup.source.release(p->setup.source.context, ticket);
}

/* Makes the expert in a slot absent; its read, if it had one, has ended. */
static void drop(em_pager *p, int32_t slot) {
    release_ticket(p, slot);
    leave_line(p, slot);
    p->setup.slots[p->states[slot].key] = NONE;
    p->states[slot].key = NONE;
    p->states[slot].prefetched = false;
    p->pinned[slot] = 0;
    p->free_slots[p->free_count++] = slot;
}

static int32_t note_failure(em_pager *p, int32_t key, int32_t status, int64_t detail) {
    const int32_t experts = p->setup.experts;
    *p->setup.failure =
        (em_read_failure){.detail = detail, .status = status, .layer = key / experts, .expert = key % experts};
    return status;
}

/* Waits for the read into a slot, if there is one, and notes a failure. A failed read leaves its expert absent. One that
 * is still going on after the time limit keeps its slot, since it may yet write there. */
static int32_t finish(em_pager *p, int32_t slot) {
    const em_source *source = &p->setup.source;
    if (p->setup.tickets[slot] >= 0) {
        int64_t detail = 0;
        const uint64_t begin = em_now_ns();
        const int32_t status =
            source->wait(source->context, p->setup.tickets[slot], p->setup.timeout_us, &detail);
        p->waited_ns += em_now_ns() - begin;
        if (status != EM_OK) {
            note_failure(p, p->states[slot].key, status, detail);
            if (!is_loading(p, slot)) drop(p, slot);
            return status;
        }
    }
    leave_line(p, slot);
    release_ticket(p, slot);
    return EM_OK;
}

/* As `finish`, for a read that no kernel waits for: if it failed its expert is absent, which is no error until something
 * asks for it. One that is stuck is an error: its slot cannot be had. */
static int32_t settle(em_pager *p, int32_t slot) {
    const int32_t status = finish(p, slot);
    return p->setup.tickets[slot] >= 0 ? status : EM_OK;
}

/* ---- slots ----------------------------------------------------------------------------------------------------- */

/* Gives up the coldest read of a warm start if it has not begun; else treats it as an ordinary read. */
static int32_t take_from_warming(em_pager *p) {
    const int32_t slot = p->lines[WARMING].last;
    const em_source *source = &p->setup.source;
    leave_line(p, slot);
    if (!p->pinned[slot] && source->cancel(source->context, p->setup.tickets[slot]) == EM_OK) {
        p->setup.counters->warm_bytes -= record_of(p, slot)->length;
        drop(p, slot);
    } else if (!p->pinned[slot] && !is_loading(p, slot)) {
        return settle(p, slot);
    } else {
        join_line(p, LOADING, slot);
    }
    return EM_OK;
}

/* `*slot` becomes a free slot, emptied for this if need be, or NONE where every expert is pinned or loading. */
static int32_t take_slot(em_pager *p, int32_t *slot) {
    int32_t status = EM_OK;
    if (p->free_count == 0) {
        for (int32_t next, s = p->lines[LOADING].first; s != NONE && status == EM_OK; s = next) {
            next = p->states[s].next;
            if (!p->pinned[s] && !is_loading(p, s)) status = settle(p, s);
        }
    }
    while (status == EM_OK && p->free_count == 0 && p->lines[WARMING].last != NONE) status = take_from_warming(p);
    *slot = NONE;
    if (status != EM_OK) return status;
    if (p->free_count == 0) {
        const int32_t victim = em_policy_victim(&p->policy, p->setup.slot_count, p->pinned, p->setup.tickets);
        if (victim < 0) return EM_OK;
        drop(p, victim);
    }
    *slot = p->free_slots[--p->free_count];
    return EM_OK;
}

/* Returns the first `count` of `new_slots`, into which nothing is being read. */
static void give_back(em_pager *p, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        p->pinned[p->new_slots[i]] = 0;
        p->free_slots[p->free_count++] = p->new_slots[i];
    }
}

/* Gives the first `count` of `new_slots` to `new_keys`, and begins their reads in one submission: each submission wakes
 * reader threads, which compete with all other threads for processors. `*bytes` grows by the records' lengths. */
static int32_t submit(em_pager *p, int32_t count, bool demand, int64_t *bytes) {
    if (count == 0) return EM_OK;
    const em_pager_setup *setup = &p->setup;
    for (int32_t i = 0; i < count; i++) {
        const em_record *record = &setup->records[p->new_keys[i]];
        p->reads[i] = (em_read){.offset = record->offset,
                                .length = record->length,
                                .destination = setup->arena + (size_t)p->new_slots[i] * (size_t)setup->slot_bytes,
                                .crc32c = record->crc32c,
                                .descriptor = record->descriptor};
    }
    const int32_t status = setup->source.submit(setup->source.context, p->reads, count, demand, p->new_tickets);
    if (status != EM_OK) {
        give_back(p, count);
        return note_failure(p, p->new_keys[0], status, 0);
    }
    for (int32_t i = 0; i < count; i++) {
        const int32_t slot = p->new_slots[i];
        setup->tickets[slot] = p->new_tickets[i];
        setup->slots[p->new_keys[i]] = slot;
        p->states[slot].key = p->new_keys[i];
        *bytes += p->reads[i].length;
    }
    return EM_OK;
}

/* Begins the reads of absent experts, in order, while slots are available; `*begun` becomes their number. They are
 * pinned. */
static int32_t read_absent(em_pager *p, int32_t layer, const int32_t *experts, int32_t count, bool prefetch, bool scan,
                           int32_t *begun) {
    int32_t taken = 0, slot = NONE;
    *begun = 0;
    while (taken < count) {
        const int32_t status = take_slot(p, &slot);
        if (status != EM_OK) {
            give_back(p, taken);
            return status;
        }
        if (slot == NONE) break;
        p->new_keys[taken] = layer * p->setup.experts + experts[taken];
        p->new_slots[taken++] = slot;
        p->pinned[slot] = 1; /* so that the next one cannot evict it */
    }
    em_pager_counters *counters = p->setup.counters;
    int64_t *bytes = prefetch ? &counters->prefetched_bytes : &counters->demand_bytes;
    const int32_t status = submit(p, taken, !prefetch, bytes);
    if (status != EM_OK) return status;
    for (int32_t i = 0; i < taken; i++) {
        slot = p->new_slots[i];
        join_line(p, LOADING, slot);
        p->states[slot].prefetched = prefetch;
        if (scan) {
            em_policy_scan(&p->policy, slot);
        } else {
            em_policy_use(&p->policy, p->states[slot].key, slot);
        }
    }
    counters->prefetched_reads += prefetch ? taken : 0;
    *begun = taken;
    return EM_OK;
}

/* ---- uses ------------------------------------------------------------------------------------------------------ */

static bool has_layer(const em_pager *p, int32_t layer) { return layer >= 0 && layer < p->setup.layers; }

static bool has_expert(const em_pager *p, int32_t layer, int32_t expert) {
    return expert >= 0 && expert < p->setup.experts &&
           p->setup.records[layer * p->setup.experts + expert].length > 0;
}

/* Marks experts in `marks`. EM_BAD_EXPERT for one without a record, or named twice. */
static int32_t mark(const em_pager *p, uint8_t *marks, int32_t layer, const int32_t *experts, int32_t count) {
    if (!has_layer(p, layer) || count < 0 || count > p->setup.experts) return EM_BAD_EXPERT;
    memset(marks, 0, (size_t)p->setup.experts);
    for (int32_t i = 0; i < count; i++) {
        if (!has_expert(p, layer, experts[i]) || marks[experts[i]]) return EM_BAD_EXPERT;
        marks[experts[i]] = EM_WANTED;
    }
    return EM_OK;
}

static void count_recall(em_pager *p, int32_t layer, const int32_t *experts, int32_t count) {
    if (p->guessed_layer == layer) {
        p->setup.counters->guessable_uses += count;
        for (int32_t i = 0; i < count; i++) p->setup.counters->guessed_uses += p->guessed[experts[i]];
    }
    p->guessed_layer = NONE;
}

/* Cancels prefetches of this layer that have not begun and turned out to be wrong. */
static void cancel_wrong_guesses(em_pager *p, int32_t layer) {
    const em_source *source = &p->setup.source;
    for (int32_t next, slot = p->lines[LOADING].first; slot != NONE; slot = next) {
        const slot_state *s = &p->states[slot];
        next = s->next;
        if (!s->prefetched || s->key / p->setup.experts != layer || p->wanted[s->key % p->setup.experts]) continue;
        const int64_t ticket = p->setup.tickets[slot];
        if (ticket < 0 || source->cancel(source->context, ticket) != EM_OK) continue;
        p->setup.counters->prefetched_reads--;
        p->setup.counters->prefetched_bytes -= record_of(p, slot)->length;
        drop(p, slot);
    }
}

/* Pins an expert if it has a slot, and counts a hit or a miss. */
static int32_t pin_if_present(em_pager *p, int32_t expert) {
    use *u = &p->use;
    em_pager_counters *counters = p->setup.counters;
    const int32_t key = u->layer * p->setup.experts + expert;
    int32_t slot = p->setup.slots[key];
    if (slot != NONE && p->states[slot].line == WARMING) join_line(p, LOADING, slot);
    if (slot != NONE && p->states[slot].line == LOADING && !is_loading(p, slot)) {
        const int32_t status = settle(p, slot);
        if (status != EM_OK) return status;
        slot = p->setup.slots[key];
    }
    if (slot == NONE) {
        counters->misses++;
        u->absent[u->absent_end++] = expert;
        return EM_OK;
    }
    slot_state *s = &p->states[slot];
    p->pinned[slot] = 1;
    if (!u->scan) em_policy_use(&p->policy, key, slot);
    const bool guessed = s->prefetched;
    s->prefetched = false;
    counters->useful_prefetches += guessed;
    u->begun[u->begun_end++] = expert;
    if (s->line != LOADING) {
        counters->hits++;
        return EM_OK;
    }
    counters->misses++;
    counters->late_prefetches += guessed;
    return p->setup.source.promote(p->setup.source.context, p->setup.tickets[slot]);
}

/* Begins a use of experts, which are marked in `wanted`. */
static int32_t begin_use(em_pager *p, int32_t layer, const int32_t *experts, int32_t count, bool scan) {
    int32_t status = EM_OK;
    p->use = (use){.begun = p->use.begun, .absent = p->use.absent, .layer = layer, .open = true, .scan = scan};
    count_recall(p, layer, experts, count);
    cancel_wrong_guesses(p, layer);
    for (int32_t i = 0; i < count && status == EM_OK; i++) status = pin_if_present(p, experts[i]);
    if (status != EM_OK) em_pager_end(p);
    return status;
}

int32_t em_pager_request(em_pager *p, int32_t layer, const int32_t *experts, int32_t count, int32_t scan) {
    if (!p || !experts) return EM_BAD_ARGUMENT;
    em_pager_end(p);
    const int32_t status = mark(p, p->wanted, layer, experts, count);
    return status == EM_OK ? begin_use(p, layer, experts, count, scan) : status;
}

static int32_t slot_of_begun(const em_pager *p, int32_t place) {
    return p->setup.slots[p->use.layer * p->setup.experts + p->use.begun[place]];
}

/* Moves absent experts to the begun ones, as far as slots are available. */
static int32_t begin_reads(em_pager *p) {
    use *u = &p->use;
    int32_t begun;
    const int32_t *experts = u->absent + u->absent_first;
    const int32_t status =
        read_absent(p, u->layer, experts, u->absent_end - u->absent_first, false, u->scan, &begun);
    memcpy(u->begun + u->begun_end, experts, (size_t)begun * sizeof *experts);
    u->begun_end += begun;
    u->absent_first += begun;
    return status;
}

/* Waits for one read to end, where reads that no kernel waits for have taken every slot. */
static int32_t await_slot(em_pager *p) {
    return p->lines[LOADING].first == NONE ? EM_BUSY : settle(p, p->lines[LOADING].first);
}

int32_t em_pager_wave(em_pager *p, const int32_t **experts, int32_t *count) {
    if (!p || !experts || !count) return EM_BAD_ARGUMENT;
    use *u = &p->use;
    *count = 0;
    if (!u->open) return EM_OK;
    for (int32_t i = u->wave_first; i < u->begun_first; i++) { /* the kernels are done with the last wave */
        const int32_t slot = slot_of_begun(p, i);
        if (slot == NONE) continue;
        leave_line(p, slot);
        p->pinned[slot] = 0;
    }
    u->wave_first = u->begun_first;
    int32_t status = begin_reads(p);
    while (status == EM_OK && u->begun_first == u->begun_end && u->absent_first < u->absent_end) {
        status = await_slot(p);
        if (status == EM_OK) status = begin_reads(p);
    }
    if (status != EM_OK) {
        em_pager_end(p);
        return status;
    }
    const int32_t begun = u->begun_end - u->begun_first;
    *count = u->absent_first < u->absent_end ? (begun + 1) / 2 : begun;
    *experts = u->begun + u->begun_first;
    u->begun_first += *count;
    return EM_OK;
}

void em_pager_end(em_pager *p) {
    if (!p || !p->use.open) return;
    p->use.open = false;
    for (int32_t i = 0; i < p->use.begun_end; i++) {
        const int32_t slot = slot_of_begun(p, i);
        if (slot != NONE) p->pinned[slot] = 0;
    }
}

int32_t em_pager_blame(em_pager *p) {
    if (!p) return EM_BAD_ARGUMENT;
    const use *u = &p->use;
    for (int32_t i = u->wave_first; i < u->begun_first; i++) {
        const int32_t slot = slot_of_begun(p, i);
        if (slot == NONE || is_loading(p, slot)) continue;
        const int32_t status = finish(p, slot);
        if (status != EM_OK) return status;
    }
    for (int32_t i = u->wave_first; i < u->begun_first; i++) {
        const int32_t slot = slot_of_begun(p, i);
        if (slot != NONE && p->setup.tickets[slot] >= 0) return note_failure(p, p->states[slot].key, EM_TIMEOUT, 0);
    }
    return EM_OK;
}

/* ---- what a run routes to -------------------------------------------------------------------------------------- */

/* Lists the experts that a run routes to, each once, in `asked`: those of a prompt by number, in which order records
 * mostly lie on disk, others in the order of the router. Returns their number, or a negative status. */
static int32_t list_asked(em_pager *p, int32_t layer, const int32_t *experts, int32_t choices) {
    if (!has_layer(p, layer)) return -EM_BAD_EXPERT;
    memset(p->wanted, 0, (size_t)p->setup.experts);
    int32_t count = 0;
    for (int32_t i = 0; i < choices; i++) {
        if (!has_expert(p, layer, experts[i])) return -EM_BAD_EXPERT;
        if (!p->wanted[experts[i]]) p->asked[count++] = experts[i];
        p->wanted[experts[i]] = EM_WANTED;
    }
    if (p->phase != EM_PROMPT) return count;
    count = 0;
    for (int32_t expert = 0; expert < p->setup.experts; expert++) {
        if (p->wanted[expert]) p->asked[count++] = expert;
    }
    return count;
}

/* Leaves out the asked experts that have no slot and whose share of the weights is below a threshold for every token
 * that uses them: their weights become 0. Sums are float64, in router order; a weight that is not a number keeps its
 * expert. Returns how many experts are left. */
static int32_t leave_out_cold(em_pager *p, const em_choice *c, int32_t layer, int32_t count) {
    const int32_t *row = p->setup.slots + (size_t)layer * (size_t)p->setup.experts;
    for (int32_t i = 0; i < count; i++) {
        if (row[p->asked[i]] == NONE) p->wanted[p->asked[i]] = EM_LEFT_OUT; /* unless a token needs it */
    }
    for (int32_t t = 0; t < c->tokens; t++) {
        const float *weights = c->weights + (size_t)t * (size_t)c->top_k;
        double sum = 0;
        for (int32_t k = 0; k < c->top_k; k++) sum += weights[k];
        for (int32_t k = 0; k < c->top_k; k++) {
            if (!(weights[k] < (double)c->drop_cold * sum)) p->wanted[c->experts[t * c->top_k + k]] = EM_WANTED;
        }
    }
    int32_t left = 0;
    for (int32_t i = 0; i < count; i++) {
        if (p->wanted[p->asked[i]] == EM_WANTED) p->asked[left++] = p->asked[i];
    }
    for (int32_t i = 0; i < c->tokens * c->top_k; i++) {
        if (p->wanted[c->experts[i]] == EM_LEFT_OUT) c->weights[i] = 0;
    }
    p->setup.counters->dropped += count - left;
    return left;
}

int32_t em_pager_fetch(em_pager *p, int32_t layer, const em_choice *c) {
    em_pager_end(p);
    int32_t count = list_asked(p, layer, c->experts, c->tokens * c->top_k);
    if (count < 0) return -count;
    for (int32_t i = 0; p->noted && i < count; i++) {
        em_pager_loaded(p, layer * p->setup.experts + p->asked[i], 1,
                        p->noted + layer * p->setup.experts + p->asked[i]);
    }
    if (c->weights && c->drop_cold > 0) count = leave_out_cold(p, c, layer, count);
    const bool scan = p->phase == EM_PROMPT && (int64_t)count * p->routed_layers > p->setup.slot_count;
    int32_t status = begin_use(p, layer, p->asked, count, scan);
    const int32_t *experts;
    if (status == EM_OK) status = em_pager_wave(p, &experts, &count);
    p->use.first_waits = status == EM_OK;
    return status;
}

int32_t em_pager_next(em_pager *p, int32_t layer, const int32_t **experts, int32_t *count) {
    use *u = &p->use;
    if (!u->open || u->layer != layer) return EM_BAD_ARGUMENT; /* nothing was fetched for it */
    if (!u->first_waits) return em_pager_wave(p, experts, count);
    u->first_waits = false;
    *experts = u->begun + u->wave_first;
    *count = u->begun_first - u->wave_first;
    return EM_OK;
}

const uint8_t *em_pager_wanted(const em_pager *p) { return p->wanted; }

uint64_t em_pager_waited_ns(const em_pager *p) { return p->waited_ns; }

static int32_t slot_in_use(const em_pager *p, int32_t expert) {
    return p->setup.slots[p->use.layer * p->setup.experts + expert];
}

int32_t em_pager_land(em_pager *p, int32_t expert, bool *landed) {
    const em_source *source = &p->setup.source;
    const int32_t slot = slot_in_use(p, expert);
    const int64_t ticket = p->setup.tickets[slot];
    *landed = ticket < 0;
    if (ticket < 0) return EM_OK;
    const int32_t done = source->done(source->context, ticket);
    if (done < 0) return -done;
    if (!done) return EM_OK;
    int64_t detail;
    const int32_t status = source->wait(source->context, ticket, 0, &detail);
    if (status != EM_OK) return status;
    release_ticket(p, slot);
    *landed = true;
    return EM_OK;
}

int32_t em_pager_await(em_pager *p, const int32_t *experts, int32_t count) {
    /* Waiting for some of the reads would be correct; this waits for all, up to a limit that bounds the stack. */
    enum { TICKETS_AT_ONCE = 256 };
    int64_t tickets[TICKETS_AT_ONCE];
    const int32_t awaited = count < TICKETS_AT_ONCE ? count : TICKETS_AT_ONCE;
    for (int32_t i = 0; i < awaited; i++) tickets[i] = p->setup.tickets[slot_in_use(p, experts[i])];
    const em_source *source = &p->setup.source;
    const uint64_t begin = em_now_ns();
    const int32_t status = source->wait_any(source->context, tickets, awaited, p->setup.timeout_us);
    p->waited_ns += em_now_ns() - begin;
    return status;
}

int32_t em_pager_set_phase(em_pager *p, int32_t phase) {
    if (!p || phase < EM_PROMPT || phase > EM_VERIFY) return EM_BAD_ARGUMENT;
    p->phase = phase;
    return EM_OK;
}

int32_t em_pager_note(em_pager *p, uint8_t *noted) {
    if (!p) return EM_BAD_ARGUMENT;
    p->noted = noted;
    return EM_OK;
}

/* ---- reads ahead ------------------------------------------------------------------------------------------------ */

int32_t em_pager_prefetch(em_pager *p, int32_t layer, const int32_t *experts, int32_t count) {
    if (!p || !experts) return EM_BAD_ARGUMENT;
    if (!has_layer(p, layer) || count < 0) return EM_BAD_EXPERT;
    for (int32_t i = 0; i < count; i++) {
        if (!has_expert(p, layer, experts[i])) return EM_BAD_EXPERT;
    }
    memset(p->guessed, 0, (size_t)p->setup.experts);
    p->guessed_layer = layer;
    /* Those that are present are pinned meanwhile, so that one guess does not push out another. */
    const int32_t *row = p->setup.slots + (size_t)layer * (size_t)p->setup.experts;
    int32_t absent_count = 0;
    for (int32_t i = 0; i < count; i++) {
        const int32_t expert = experts[i], slot = row[expert];
        if (p->guessed[expert]) continue; /* by an earlier row */
        p->guessed[expert] = 1;
        p->held[expert] = slot == NONE || !p->pinned[slot];
        if (slot == NONE) {
            p->guesses[absent_count++] = expert;
        } else {
            p->pinned[slot] = 1;
        }
    }
    int32_t begun;
    const int32_t status = read_absent(p, layer, p->guesses, absent_count, true, false, &begun);
    for (int32_t i = 0; i < count; i++) {
        const int32_t slot = row[experts[i]];
        if (slot != NONE && p->held[experts[i]]) p->pinned[slot] = 0;
    }
    return status;
}

/* Gives the first `count` of `new_keys` back the state of absent experts. */
static void forget(em_pager *p, int32_t count) {
    for (int32_t i = 0; i < count; i++) p->setup.slots[p->new_keys[i]] = NONE;
}

int32_t em_pager_warm(em_pager *p, const int32_t *keys, int32_t count) {
    if (!p || !keys || count < 0) return EM_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++) {
        if (keys[i] < 0 || keys[i] >= p->setup.layers * p->setup.experts || p->setup.records[keys[i]].length == 0) {
            return EM_BAD_EXPERT;
        }
    }
    int32_t taken = 0;
    for (int32_t i = 0; i < count && p->free_count > 0; i++) {
        if (p->setup.slots[keys[i]] != NONE) continue;
        p->new_keys[taken] = keys[i];
        p->new_slots[taken] = p->free_slots[--p->free_count];
        p->setup.slots[keys[i]] = p->new_slots[taken++]; /* at once, for a key that is named twice */
    }
    const int32_t status = submit(p, taken, false, &p->setup.counters->warm_bytes);
    if (status != EM_OK) {
        forget(p, taken);
        return status;
    }
    for (int32_t i = 0; i < taken; i++) join_line(p, WARMING, p->new_slots[i]);
    /* From the coldest to the hottest, so that the hottest counts as used last. */
    for (int32_t slot = p->lines[WARMING].last; slot != NONE; slot = p->states[slot].previous) {
        em_policy_use(&p->policy, p->states[slot].key, slot);
    }
    return EM_OK;
}

int32_t em_pager_loaded(const em_pager *p, int32_t first, int32_t count, uint8_t *loaded) {
    if (!p || !loaded || first < 0 || count < 0 || first > p->setup.layers * p->setup.experts - count) {
        return EM_BAD_ARGUMENT;
    }
    for (int32_t i = 0; i < count; i++) {
        const int32_t slot = p->setup.slots[first + i];
        loaded[i] = slot != NONE && !is_loading(p, slot);
    }
    return EM_OK;
}

/* ---- beginning and end -------------------------------------------------------------------------------------------- */

static bool is_whole(const em_source *s) {
    return s->submit && s->wait && s->wait_any && s->done && s->promote && s->cancel && s->release;
}

static bool fits(const em_record *record, int64_t slot_bytes) {
    if (record->length == 0) return true;
    return record->length > 0 && record->length <= slot_bytes && record->offset >= 0 && record->crc32c <= UINT32_MAX;
}

static bool in_order(const em_pager_setup *s) {
    if (!is_whole(&s->source) || !s->records || !s->arena || !s->slots || !s->tickets || !s->counters || !s->failure) {
        return false;
    }
    if (s->slot_count < 1 || s->slot_bytes < 1 || s->layers < 1 || s->experts < 1) return false;
    if (s->layers > INT32_MAX / s->experts) return false;
    if (!em_policy_known(&s->policy)) return false;
    for (int32_t key = 0; key < s->layers * s->experts; key++) {
        if (!fits(&s->records[key], s->slot_bytes)) return false;
    }
    return true;
}

/* Lays all arrays of a pager out. */
static void lay_out_arrays(em_pager *p, em_layout *layout) {
    const size_t slots = (size_t)p->setup.slot_count, experts = (size_t)p->setup.experts;
    const size_t most = slots > experts ? slots : experts; /* reads of one submission: of a layer, or a warm start */
    p->states = em_lay_out(layout, slots * sizeof *p->states);
    p->pinned = em_lay_out(layout, slots * sizeof *p->pinned);
    p->free_slots = em_lay_out(layout, slots * sizeof *p->free_slots);
    p->use.begun = em_lay_out(layout, experts * sizeof *p->use.begun);
    p->use.absent = em_lay_out(layout, experts * sizeof *p->use.absent);
    p->wanted = em_lay_out(layout, experts * sizeof *p->wanted);
    p->asked = em_lay_out(layout, experts * sizeof *p->asked);
    p->held = em_lay_out(layout, experts * sizeof *p->held);
    p->guessed = em_lay_out(layout, experts * sizeof *p->guessed);
    p->guesses = em_lay_out(layout, experts * sizeof *p->guesses);
    p->reads = em_lay_out(layout, most * sizeof *p->reads);
    p->new_keys = em_lay_out(layout, most * sizeof *p->new_keys);
    p->new_slots = em_lay_out(layout, most * sizeof *p->new_slots);
    p->new_tickets = em_lay_out(layout, most * sizeof *p->new_tickets);
    em_policy_init(&p->policy, &p->setup.policy, p->setup.slot_count, p->setup.layers * p->setup.experts, layout);
}

uint64_t em_pager_bytes(int32_t slot_count, int32_t layers, int32_t experts) {
    em_pager p = {.setup = {.policy = {.kind = EM_LRUF}, .slot_count = slot_count, .layers = layers, .experts = experts}};
    em_layout layout = {0};
    lay_out_arrays(&p, &layout);
    return sizeof p + layout.bytes;
}

int32_t em_pager_create(const em_pager_setup *setup, em_pager **result) {
    if (!setup || !result || !in_order(setup)) return EM_BAD_ARGUMENT;
    em_pager *p = calloc(1, sizeof *p);
    if (!p) return EM_NO_MEMORY;
    p->setup = *setup;
    em_layout layout = {0};
    lay_out_arrays(p, &layout);
    layout = (em_layout){.base = p->memory = calloc(1, layout.bytes)};
    if (!p->memory) {
        free(p);
        return EM_NO_MEMORY;
    }
    lay_out_arrays(p, &layout);
    p->guessed_layer = NONE;
    for (int name = 0; name < LINES; name++) p->lines[name] = (line){NONE, NONE};
    for (int32_t slot = 0; slot < setup->slot_count; slot++) {
        setup->tickets[slot] = -1;
        p->states[slot].key = NONE;
        p->states[slot].line = NO_LINE;
        p->free_slots[slot] = setup->slot_count - 1 - slot; /* the last one is taken first */
    }
    p->free_count = setup->slot_count;
    for (int32_t layer = 0; layer < setup->layers; layer++) {
        bool routed = false;
        for (int32_t expert = 0; expert < setup->experts; expert++) {
            setup->slots[layer * setup->experts + expert] = NONE;
            routed = routed || has_expert(p, layer, expert);
        }
        p->routed_layers += routed;
    }
    *result = p;
    return EM_OK;
}

void em_pager_destroy(em_pager *p) {
    if (!p) return;
    free(p->memory);
    free(p);
}
