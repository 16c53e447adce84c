/* See policy.h. */
#include "policy.h"

#include <math.h>

static bool has_history(int32_t kind) { return kind == EM_LFU || kind == EM_LRUF; }

bool em_policy_known(const em_policy_settings *settings) {
    if (settings->kind < 0 || settings->kind >= EM_POLICY_COUNT) return false;
    return !has_history(settings->kind) || (settings->rate > 0 && isfinite(settings->rate) && settings->weight >= 0);
}

void em_policy_init(em_policy *policy, const em_policy_settings *settings, int32_t slots, int32_t keys,
                    em_layout *layout) {
    *policy = (em_policy){.settings = *settings};
    policy->scores = em_lay_out(layout, (size_t)slots * sizeof *policy->scores);
    for (int32_t slot = 0; policy->scores && slot < slots; slot++) policy->scores[slot] = 0;
    if (!has_history(settings->kind)) return;
    policy->history = em_lay_out(layout, (size_t)keys * sizeof *policy->history);
    for (int32_t key = 0; policy->history && key < keys; key++) policy->history[key] = -INFINITY;
}

/* The logarithm of a key's decayed count of uses, this one included: 0 for the first. */
static double count_use(em_policy *policy, int32_t key, double now) {
    const double count = log1p(exp(policy->history[key] - now));
    policy->history[key] = now + count;
    return count;
}

void em_policy_use(em_policy *policy, int32_t key, int32_t slot) {
    const em_policy_settings *settings = &policy->settings;
    const double t = (double)++policy->clock;
    double *score = &policy->scores[slot];
    switch (settings->kind) {
    case EM_LFU:
        count_use(policy, key, settings->rate * t);
        *score = policy->history[key];
        break;
    case EM_LRUF: *score = t + settings->weight * count_use(policy, key, settings->rate * t); break;
    default: *score = t; break;
    }
}

void em_policy_scan(em_policy *policy, int32_t slot) { policy->scores[slot] = -(double)++policy->clock; }

int32_t em_policy_victim(const em_policy *policy, int32_t slots, const uint8_t *pinned, const int64_t *tickets) {
    int32_t victim = -1;
    for (int32_t slot = 0; slot < slots; slot++) {
        if (victim >= 0 && policy->scores[slot] >= policy->scores[victim]) continue;
        if (!pinned[slot] && tickets[slot] < 0) victim = slot;
    }
    return victim;
}
