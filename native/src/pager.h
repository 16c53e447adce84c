/* The pager as the operations see it: what a run routes to, and the records as they land. */
#ifndef EDGEMOE_PAGER_H
#define EDGEMOE_PAGER_H

#include <stdbool.h>

#include "edgemoe.h"

/* The choice of a router for the tokens of a run. */
typedef struct em_choice {
    const int32_t *experts; /* (tokens, top_k) */
    float *weights;         /* (tokens, top_k), or NULL: no expert is left out */
    int32_t tokens;
    int32_t top_k;
    float drop_cold; /* absent experts of a smaller share of each token's weights are left out */
    bool from_base;  /* those that tokens beyond a prompt miss are computed from their bases */
} em_choice;

/* What the use under way makes of an expert. */
typedef enum em_wish { EM_NOT_WANTED = 0, EM_WANTED = 1, EM_LEFT_OUT = 2, EM_FROM_BASE = 3 } em_wish;

/* Begins a use of the experts that a run routes to, and the reads of those that are missing, as far as slots are
 * available. It ends the use before it, which a run that failed may have left open. */
int32_t em_pager_fetch(em_pager *pager, int32_t layer, const em_choice *choice);
/* As em_pager_wave, for the use that em_pager_fetch began; EM_BAD_ARGUMENT if it was of another layer. */
int32_t em_pager_next(em_pager *pager, int32_t layer, const int32_t **experts, int32_t *count);
/* What the use under way makes of each expert of its layer (em_wish). */
const uint8_t *em_pager_wanted(const em_pager *pager);
/* `*landed` becomes whether the record of an expert of the present wave is there. The status of a read that failed. */
int32_t em_pager_land(em_pager *pager, int32_t expert, bool *landed);
/* Whether the record of an expert of the present wave was checked since it landed; it may be set. */
bool *em_pager_checked(em_pager *pager, int32_t expert);
/* Notes that the record of an expert of the present wave is not as it must be, and returns EM_BAD_RECORD. */
int32_t em_pager_refuse(em_pager *pager, int32_t expert);
/* Waits until the record of one of these experts of the present wave lands, or its read fails. */
int32_t em_pager_await(em_pager *pager, const int32_t *experts, int32_t count);
/* Nanoseconds for which the pager has waited for reads so far. */
uint64_t em_pager_waited_ns(const em_pager *pager);

#endif
