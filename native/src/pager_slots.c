/* The slots of the pager: the lines in which they stand, the reads into them, and the choice of an expert that leaves. */
#include "clock.h"
#include "pager_state.h"

/* ---- lines of slots ---------------------------------------------------------------------------------------- */

void em_slot_leave_line(em_pager *p, int32_t slot) {
    slot_state *s = &p->states[slot];
    if (s->line == NO_LINE) return;
    line *l = &p->lines[s->line];
    *(s->previous == NONE ? &l->first : &p->states[s->previous].next) = s->next;
    *(s->next == NONE ? &l->last : &p->states[s->next].previous) = s->previous;
    s->line = NO_LINE;
}

void em_slot_join_line(em_pager *p, line_name name, int32_t slot) {
    slot_state *s = &p->states[slot];
    if (s->line == name) return;
    em_slot_leave_line(p, slot);
    line *l = &p->lines[name];
    s->line = (int8_t)name;
    s->previous = l->last;
    s->next = NONE;
    *(l->last == NONE ? &l->first : &p->states[l->last].next) = slot;
    l->last = slot;
}

/* ---- reads into slots ---------------------------------------------------------------------------------------- */

bool em_slot_is_loading(const em_pager *p, int32_t slot) {
    const int64_t ticket = p->setup.tickets[slot];
    return ticket >= 0 && p->setup.source.done(p->setup.source.context, ticket) != 1;
}

void em_slot_release_ticket(em_pager *p, int32_t slot) {
    const int64_t ticket = p->setup.tickets[slot];
    if (ticket < 0) return;
    p->setup.tickets[slot] = -1;
    p->setup.source.release(p->setup.source.context, ticket);
}

void em_slot_drop(em_pager *p, int32_t slot) {
    em_slot_release_ticket(p, slot);
    em_slot_leave_line(p, slot);
    p->setup.slots[p->states[slot].key] = NONE;
    p->states[slot].key = NONE;
    p->states[slot].prefetched = false;
    p->pinned[slot] = 0;
    p->free_slots[p->free_count++] = slot;
}

int32_t em_slot_note_failure(em_pager *p, int32_t key, int32_t status, int64_t detail) {
    const int32_t experts = p->setup.experts;
    *p->setup.failure =
        (em_read_failure){.detail = detail, .status = status, .layer = key / experts, .expert = key % experts};
    return status;
}

int32_t em_slot_finish(em_pager *p, int32_t slot) {
    const em_source *source = &p->setup.source;
    if (p->setup.tickets[slot] >= 0) {
        int64_t detail = 0;
        const uint64_t begin = em_now_ns();
        const int32_t status =
            source->wait(source->context, p->setup.tickets[slot], p->setup.timeout_us, &detail);
        p->waited_ns += em_now_ns() - begin;
        if (status != EM_OK) {
            em_slot_note_failure(p, p->states[slot].key, status, detail);
            if (!em_slot_is_loading(p, slot)) em_slot_drop(p, slot);
            return status;
        }
    }
    em_slot_leave_line(p, slot);
    em_slot_release_ticket(p, slot);
    return EM_OK;
}

int32_t em_slot_settle(em_pager *p, int32_t slot) {
    const int32_t status = em_slot_finish(p, slot);
    return p->setup.tickets[slot] >= 0 ? status : EM_OK;
}

/* ---- slots ----------------------------------------------------------------------------------------------------- */

/* Gives up the coldest read of a warm start if it has not begun; else treats it as an ordinary read. */
static int32_t take_from_warming(em_pager *p) {
    const int32_t slot = p->lines[WARMING].last;
    const em_source *source = &p->setup.source;
    em_slot_leave_line(p, slot);
    if (!p->pinned[slot] && source->cancel(source->context, p->setup.tickets[slot]) == EM_OK) {
        p->setup.counters->warm_bytes -= record_of(p, slot)->length;
        em_slot_drop(p, slot);
    } else if (!p->pinned[slot] && !em_slot_is_loading(p, slot)) {
        return em_slot_settle(p, slot);
    } else {
        em_slot_join_line(p, LOADING, slot);
    }
    return EM_OK;
}

/* `*slot` becomes a free slot, emptied for this if need be, or NONE where every expert is pinned or loading. */
static int32_t take_slot(em_pager *p, int32_t *slot) {
    int32_t status = EM_OK;
    if (p->free_count == 0) {
        for (int32_t next, s = p->lines[LOADING].first; s != NONE && status == EM_OK; s = next) {
            next = p->states[s].next;
            if (!p->pinned[s] && !em_slot_is_loading(p, s)) status = em_slot_settle(p, s);
        }
    }
    while (status == EM_OK && p->free_count == 0 && p->lines[WARMING].last != NONE) status = take_from_warming(p);
    *slot = NONE;
    if (status != EM_OK) return status;
    if (p->free_count == 0) {
        const int32_t victim = em_policy_victim(&p->policy, p->setup.slot_count, p->pinned, p->setup.tickets);
        if (victim < 0) return EM_OK;
        em_slot_drop(p, victim);
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

int32_t em_slots_submit(em_pager *p, int32_t count, bool demand, int64_t *bytes) {
    if (count == 0) return EM_OK;
    const em_pager_setup *setup = &p->setup;
    for (int32_t i = 0; i < count; i++) {
        const em_record *record = &setup->records[p->new_keys[i]];
        p->reads[i] = (em_read){.offset = record->offset,
                                .length = record->length,
                                .destination = setup->arena + (size_t)p->new_slots[i] * (size_t)setup->slot_bytes,
                                .crc32c = record->crc32c,
                                .descriptor = record->descriptor,
                                .part_count = record->part_count,
                                .parts = record->parts,
                                .places = record->places};
    }
    const int32_t status = setup->source.submit(setup->source.context, p->reads, count, demand, p->new_tickets);
    if (status != EM_OK) {
        give_back(p, count);
        return em_slot_note_failure(p, p->new_keys[0], status, 0);
    }
    for (int32_t i = 0; i < count; i++) {
        const int32_t slot = p->new_slots[i];
        setup->tickets[slot] = p->new_tickets[i];
        setup->slots[p->new_keys[i]] = slot;
        p->states[slot].key = p->new_keys[i];
        p->states[slot].checked = false;
        *bytes += p->reads[i].length;
    }
    return EM_OK;
}

int32_t em_slots_read_absent(em_pager *p, int32_t layer, const int32_t *experts, int32_t count, read_reason reason,
                             bool scan, int32_t *begun) {
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
    int64_t *bytes = reason == GUESSED ? &counters->prefetched_bytes : &counters->demand_bytes;
    const int32_t status = em_slots_submit(p, taken, reason == DEMANDED, bytes);
    if (status != EM_OK) return status;
    for (int32_t i = 0; i < taken; i++) {
        slot = p->new_slots[i];
        em_slot_join_line(p, LOADING, slot);
        p->states[slot].prefetched = reason == GUESSED;
        if (scan) {
            em_policy_scan(&p->policy, slot);
        } else {
            em_policy_use(&p->policy, p->states[slot].key, slot);
        }
    }
    counters->prefetched_reads += reason == GUESSED ? taken : 0;
    *begun = taken;
    return EM_OK;
}
