/* Replacement policies: every slot has a score, and the expert in the slot of the least score leaves first.
 *
 * edgemoe/experts/policy.py says what each policy means. Every score here is computed by the same operations in the same
 * order, so that both choose the same victims. */
#ifndef EDGEMOE_POLICY_H
#define EDGEMOE_POLICY_H

#include <stdbool.h>

#include "edgemoe.h"
#include "layout.h"

typedef struct em_policy {
    em_policy_settings settings;
    double *scores;  /* (slots) */
    double *history; /* (keys), or NULL for a policy that keeps none; it outlives a key's stay in the cache */
    int64_t clock;   /* uses so far */
} em_policy;

/* Whether the settings are those of a policy. */
bool em_policy_known(const em_policy_settings *settings);
/* Lays a policy out and, where the layout has memory, begins it. */
void em_policy_init(em_policy *policy, const em_policy_settings *settings, int32_t slots, int32_t keys,
                    em_layout *layout);

/* Notes that the expert `key` in `slot` is used, whether it was there or has just been given the slot. */
void em_policy_use(em_policy *policy, int32_t key, int32_t slot);
/* Notes that a scan put an expert into `slot`: it leaves before all others. */
void em_policy_scan(em_policy *policy, int32_t slot);

/* The slot of the least score among those that are not pinned and have no pending read, the first of equals; -1 if there
 * is none. A pass over all slots: some microseconds for the thousands that a budget has room for,
 * before a read that takes a hundred and more. */
int32_t em_policy_victim(const em_policy *policy, int32_t slots, const uint8_t *pinned, const int64_t *tickets);

#endif
