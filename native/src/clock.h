#ifndef EDGEMOE_CLOCK_H
#define EDGEMOE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds that only go forward. */
static inline uint64_t em_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
