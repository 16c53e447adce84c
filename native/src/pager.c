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

#include "landing.h"
#include "layout.h"
#include "pager_state.h"

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

/* ---- reads ahead ------------------------------------------------------------------------------------------------ */

int32_t em_pager_prefetch(em_pager *p, int32_t layer, const int32_t *experts, int32_t count) {
    if (!p || !experts) return EM_BAD_ARGUMENT;
    if (!has_layer(p, layer) || count < 0) return EM_BAD_EXPERT;
    for (int32_t i = 0; i < count; i++) {
        if (experts[i] != EM_NO_EXPERT && !has_expert(p, layer, experts[i])) return EM_BAD_EXPERT;
    }
    memset(p->guessed, 0, (size_t)p->setup.experts);
    p->guessed_layer = layer;
    /* Those that are present are pinned meanwhile, so that one guess does not push out another. */
    const int32_t *row = p->setup.slots + (size_t)layer * (size_t)p->setup.experts;
    int32_t absent_count = 0;
    for (int32_t i = 0; i < count; i++) {
        const int32_t expert = experts[i];
        if (expert == EM_NO_EXPERT || p->guessed[expert]) continue; /* by an earlier row */
        const int32_t slot = row[expert];
        p->guessed[expert] = 1;
        p->held[expert] = slot == NONE || !p->pinned[slot];
        if (slot == NONE) {
            p->guesses[absent_count++] = expert;
        } else {
            p->pinned[slot] = 1;
        }
    }
    int32_t begun;
    const int32_t status = em_slots_read_absent(p, layer, p->guesses, absent_count, GUESSED, false, &begun);
    for (int32_t i = 0; i < count; i++) {
        const int32_t slot = experts[i] == EM_NO_EXPERT ? NONE : row[experts[i]];
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
    const int32_t status = em_slots_submit(p, taken, false, &p->setup.counters->warm_bytes);
    if (status != EM_OK) {
        forget(p, taken);
        return status;
    }
    for (int32_t i = 0; i < taken; i++) em_slot_join_line(p, WARMING, p->new_slots[i]);
    /* From the coldest to the hottest, so that the hottest counts as used last. */
    for (int32_t slot = p->lines[WARMING].last; slot != NONE; slot = p->states[slot].previous) {
        em_policy_use(&p->policy, p->states[slot].key, slot);
    }
    return EM_OK;
}

int32_t em_pager_give_up(em_pager *p, int32_t layer, int32_t expert) {
    if (!p) return EM_BAD_ARGUMENT;
    if (!has_layer(p, layer) || !has_expert(p, layer, expert)) return EM_BAD_EXPERT;
    const int32_t slot = p->setup.slots[layer * p->setup.experts + expert];
    if (slot != NONE && !p->pinned[slot] && p->setup.tickets[slot] < 0) em_slot_drop(p, slot);
    return EM_OK;
}

int32_t em_pager_loaded(const em_pager *p, int32_t first, int32_t count, uint8_t *loaded) {
    if (!p || !loaded || first < 0 || count < 0 || first > p->setup.layers * p->setup.experts - count) {
        return EM_BAD_ARGUMENT;
    }
    for (int32_t i = 0; i < count; i++) {
        const int32_t slot = p->setup.slots[first + i];
        loaded[i] = slot != NONE && !em_slot_is_loading(p, slot);
    }
    return EM_OK;
}

/* ---- settings -------------------------------------------------------------------------------------------------- */

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

/* ---- beginning and end -------------------------------------------------------------------------------------------- */

static bool is_whole(const em_source *s) {
    return s->submit && s->wait && s->wait_any && s->done && s->promote && s->cancel && s->release;
}

static bool parts_fit(const em_record *record, int64_t slot_bytes) {
    if (!record->parts || !record->places) return false;
    for (int32_t i = 0; i < record->part_count; i++) {
        if (!em_part_is_sound(&record->parts[i]) || em_part_end(&record->parts[i]) > slot_bytes) return false;
    }
    return true;
}

static bool fits(const em_record *record, int64_t slot_bytes) {
    if (record->length == 0) return true;
    if (record->length < 0 || record->offset < 0 || record->crc32c > UINT32_MAX || record->part_count < 0) return false;
    return record->part_count ? parts_fit(record, slot_bytes) : record->length <= slot_bytes;
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
    p->aside = em_lay_out(layout, experts * sizeof *p->aside);
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
