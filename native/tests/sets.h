/* The instruction sets that a test goes through, best first. */
#ifndef EDGEMOE_SETS_H
#define EDGEMOE_SETS_H

#include <string.h>

#include "check.h"
#include "kernels/kernels.h"

enum { SETS_MAX = 8 };

static const em_kernels *sets[SETS_MAX];
static int32_t set_count;

/* All that run here. `best`: the one that must be the best, or NULL. */
static inline void find_sets(const char *best) {
    set_count = em_isa_count();
    CHECK(set_count >= 1 && set_count <= SETS_MAX);
    for (int32_t s = 0; s < set_count; s++) {
        sets[s] = em_kernels_for(em_isa_name(s));
        CHECK(sets[s] && strcmp(sets[s]->isa, em_isa_name(s)) == 0);
    }
    CHECK(!best || strcmp(em_isa_name(0), best) == 0);
    CHECK(strcmp(em_isa_name(set_count - 1), "generic") == 0);
    CHECK(em_isa_name(set_count) == NULL && em_isa_name(-1) == NULL && em_kernels_for("none") == NULL);
}

#endif
