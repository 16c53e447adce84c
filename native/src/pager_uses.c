/* Uses of the experts of a layer: pins, waves, and the choice of a run that asks for them. */
#include <string.h>

#include "clock.h"
#include "pager_state.h"

/* ---- uses ------------------------------------------------------------------------------------------------------ */

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
        em_slot_drop(p, slot);
    }
}

/* Pins an expert if it has a slot, and counts a hit or a miss. */
static int32_t pin_if_present(em_pager *p, int32_t expert) {
    use *u = &p->use;
    em_pager_counters *counters = p->setup.counters;
    const int32_t key = u->layer * p->setup.experts + expert;
    int32_t slot = p->setup.slots[key];
    if (slot != NONE && p->states[slot].line == WARMING) em_slot_join_line(p, LOADING, slot);
    if (slot != NONE && p->states[slot].line == LOADING && !em_slot_is_loading(p, slot)) {
        const int32_t status = em_slot_settle(p, slot);
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
        em_slots_read_absent(p, u->layer, experts, u->absent_end - u->absent_first, DEMANDED, u->scan, &begun);
    memcpy(u->begun + u->begun_end, experts, (size_t)begun * sizeof *experts);
    u->begun_end += begun;
    u->absent_first += begun;
    return status;
}

/* Waits for one read to end, where reads that no kernel waits for have taken every slot. */
static int32_t await_slot(em_pager *p) {
    return p->lines[LOADING].first == NONE ? EM_BUSY : em_slot_settle(p, p->lines[LOADING].first);
}

int32_t em_pager_wave(em_pager *p, const int32_t **experts, int32_t *count) {
    if (!p || !experts || !count) return EM_BAD_ARGUMENT;
    use *u = &p->use;
    *count = 0;
    if (!u->open) return EM_OK;
    for (int32_t i = u->wave_first; i < u->begun_first; i++) { /* the kernels are done with the last wave */
        const int32_t slot = slot_of_begun(p, i);
        if (slot == NONE) continue;
        em_slot_leave_line(p, slot);
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
        if (slot == NONE || em_slot_is_loading(p, slot)) continue;
        const int32_t status = em_slot_finish(p, slot);
        if (status != EM_OK) return status;
    }
    for (int32_t i = u->wave_first; i < u->begun_first; i++) {
        const int32_t slot = slot_of_begun(p, i);
        if (slot != NONE && p->setup.tickets[slot] >= 0) {
            return em_slot_note_failure(p, p->states[slot].key, EM_TIMEOUT, 0);
        }
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
        if (experts[i] == EM_NO_EXPERT) continue;
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
            const int32_t expert = c->experts[t * c->top_k + k];
            if (expert != EM_NO_EXPERT && !(weights[k] < (double)c->drop_cold * sum)) p->wanted[expert] = EM_WANTED;
        }
    }
    int32_t left = 0;
    for (int32_t i = 0; i < count; i++) {
        if (p->wanted[p->asked[i]] == EM_WANTED) p->asked[left++] = p->asked[i];
    }
    for (int32_t i = 0; i < c->tokens * c->top_k; i++) {
        if (c->experts[i] != EM_NO_EXPERT && p->wanted[c->experts[i]] == EM_LEFT_OUT) c->weights[i] = 0;
    }
    p->setup.counters->dropped += count - left;
    return left;
}

/* Sets the asked experts aside whose records are not in RAM: they are computed from their bases. One whose read has
 * failed stays among the asked, so that its error is told. Returns how many experts are left. */
static int32_t set_aside(em_pager *p, int32_t layer, int32_t count) {
    int32_t left = 0;
    for (int32_t i = 0; i < count; i++) {
        const int32_t expert = p->asked[i], key = layer * p->setup.experts + expert, slot = p->setup.slots[key];
        if (slot != NONE && !em_slot_is_loading(p, slot)) {
            p->asked[left++] = expert;
            continue;
        }
        p->wanted[expert] = EM_FROM_BASE;
        if (slot == NONE) {
            p->aside[p->aside_count++] = expert;
        } else {
            em_policy_use(&p->policy, key, slot);
        }
    }
    p->setup.counters->misses += count - left;
    p->setup.counters->from_base += count - left;
    return left;
}

/* The number of reads that may be begun behind those under way. */
static int32_t room_behind(const em_pager *p) {
    int32_t room = MOST_BEHIND;
    for (int32_t slot = p->lines[LOADING].first; slot != NONE && room > 0; slot = p->states[slot].next) {
        room -= em_slot_is_loading(p, slot);
    }
    return room;
}

/* Begins the reads of the experts set aside, for later uses. */
static int32_t read_behind(em_pager *p, int32_t layer) {
    const int32_t room = p->aside_count ? room_behind(p) : 0;
    if (room == 0) return EM_OK;
    int32_t begun;
    const int32_t count = p->aside_count < room ? p->aside_count : room;
    const int32_t status = em_slots_read_absent(p, layer, p->aside, count, BEHIND, false, &begun);
    for (int32_t i = 0; i < begun; i++) p->pinned[p->setup.slots[layer * p->setup.experts + p->aside[i]]] = 0;
    return status;
}

int32_t em_pager_fetch(em_pager *p, int32_t layer, const em_choice *c) {
    em_pager_end(p);
    p->aside_count = 0;
    int32_t count = list_asked(p, layer, c->experts, c->tokens * c->top_k);
    if (count < 0) return -count;
    for (int32_t i = 0; p->noted && i < count; i++) {
        em_pager_loaded(p, layer * p->setup.experts + p->asked[i], 1,
                        p->noted + layer * p->setup.experts + p->asked[i]);
    }
    if (c->weights && c->drop_cold > 0) count = leave_out_cold(p, c, layer, count);
    if (c->from_base && p->phase != EM_PROMPT) count = set_aside(p, layer, count);
    const bool scan = p->phase == EM_PROMPT && (int64_t)count * p->routed_layers > p->setup.slot_count;
    int32_t status = begin_use(p, layer, p->asked, count, scan);
    const int32_t *experts;
    if (status == EM_OK) status = em_pager_wave(p, &experts, &count);
    p->use.first_waits = status == EM_OK;
    return status == EM_OK ? read_behind(p, layer) : status;
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
    em_slot_release_ticket(p, slot);
    *landed = true;
    return EM_OK;
}

bool *em_pager_checked(em_pager *p, int32_t expert) { return &p->states[slot_in_use(p, expert)].checked; }

int32_t em_pager_refuse(em_pager *p, int32_t expert) {
    return em_slot_note_failure(p, p->states[slot_in_use(p, expert)].key, EM_BAD_RECORD, 0);
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
