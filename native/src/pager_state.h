/* The state of the pager and its work on slots, which its files share. pager.c says what it all means. */
#ifndef EDGEMOE_PAGER_STATE_H
#define EDGEMOE_PAGER_STATE_H

#include "pager.h"
#include "policy.h"

enum {
    NONE = -1,
    MOST_BEHIND = 32, /* as in edgemoe/kernels/expert_operations.py */
};

typedef enum line_name { NO_LINE = -1, LOADING = 0, WARMING = 1, LINES = 2 } line_name;

/* The first and last slot of a line. */
typedef struct line {
    int32_t first, last;
} line;

/* All that the pager knows of a slot besides its ticket and its pin. */
typedef struct slot_state {
    int32_t key; /* of the expert in it, or NONE */
    int32_t previous, next; /* in its line */
    int8_t line;
    bool prefetched; /* on a guess, and not used yet */
    bool checked;    /* by what uses it, since it landed */
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
    int32_t *aside;        /* (experts): those of them that are absent, and computed from their bases */
    int32_t aside_count;
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

static inline const em_record *record_of(const em_pager *p, int32_t slot) {
    return &p->setup.records[p->states[slot].key];
}

static inline bool has_layer(const em_pager *p, int32_t layer) { return layer >= 0 && layer < p->setup.layers; }

static inline bool has_expert(const em_pager *p, int32_t layer, int32_t expert) {
    return expert >= 0 && expert < p->setup.experts &&
           p->setup.records[layer * p->setup.experts + expert].length > 0;
}

/* ---- slots (pager_slots.c) --------------------------------------------------------------------------------------- */

void em_slot_leave_line(em_pager *p, int32_t slot);
/* Puts a slot at the end of a line; one that stands in it already keeps its place. */
void em_slot_join_line(em_pager *p, line_name name, int32_t slot);
/* Whether the read into a slot has not ended. */
bool em_slot_is_loading(const em_pager *p, int32_t slot);
void em_slot_release_ticket(em_pager *p, int32_t slot);
/* Makes the expert in a slot absent; its read, if it had one, has ended. */
void em_slot_drop(em_pager *p, int32_t slot);
int32_t em_slot_note_failure(em_pager *p, int32_t key, int32_t status, int64_t detail);
/* Waits for the read into a slot, if there is one, and notes a failure. A failed read leaves its expert absent. One that
 * is still going on after the time limit keeps its slot, since it may yet write there. */
int32_t em_slot_finish(em_pager *p, int32_t slot);
/* As `em_slot_finish`, for a read that no kernel waits for: if it failed its expert is absent, which is no error until
 * something asks for it. One that is stuck is an error: its slot cannot be had. */
int32_t em_slot_settle(em_pager *p, int32_t slot);
/* Gives the first `count` of `new_slots` to `new_keys`, and begins their reads in one submission: each submission wakes
 * reader threads, which compete with all other threads for processors. `*bytes` grows by the records' lengths. */
int32_t em_slots_submit(em_pager *p, int32_t count, bool demand, int64_t *bytes);
/* Why absent experts are read: a use waits for them, a guess names them, or later uses may want them. */
typedef enum read_reason { DEMANDED, GUESSED, BEHIND } read_reason;
/* Begins the reads of absent experts, in order, while slots are available; `*begun` becomes their number. They are
 * pinned. */
int32_t em_slots_read_absent(em_pager *p, int32_t layer, const int32_t *experts, int32_t count, read_reason reason,
                             bool scan, int32_t *begun);

#endif
