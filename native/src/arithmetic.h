/* The arithmetic of a thread: how it rounds, and whether it takes the smallest numbers for zeros.
 *
 * Another library of the process may have changed that: one that is linked with -ffast-math does so when it is loaded, for
 * the thread that loads it and those that this starts. No bit may depend on it. */
#ifndef EDGEMOE_ARITHMETIC_H
#define EDGEMOE_ARITHMETIC_H

#include <fenv.h>

/* From here on the calling thread computes as IEEE 754 says: it rounds to nearest and keeps the smallest numbers. */
static inline void em_plain_arithmetic(void) {
    fesetenv(FE_DFL_ENV);
}

#endif
