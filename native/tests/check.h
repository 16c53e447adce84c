/* The little that the C tests share. A test is a program that prints what is wrong and exits with 1. */
#ifndef EDGEMOE_CHECK_H
#define EDGEMOE_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                       \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                            \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)

#define CHECK_STATUS(expected, expression)                                                                     \
    do {                                                                                                       \
        const int found_status = (int)(expression);                                                            \
        if (found_status != (int)(expected)) {                                                                 \
            fprintf(stderr, "%s:%d: %s: expected status %d, found %d\n", __FILE__, __LINE__, #expression,      \
                    (int)(expected), found_status);                                                            \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)

/* Repeatable numbers (xorshift). */
static uint32_t random_state = 2463534242u;

static inline uint32_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

/* Between -1 and 1. */
static inline float random_float(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

static inline void *allocate(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    CHECK(memory);
    return memory;
}

static inline float *random_floats(size_t count) {
    float *values = allocate(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = random_float();
    return values;
}

/* The bits of results, for a comparison with what another processor's kernels gave (FNV-1a). */
static uint64_t digest = 14695981039346656037u;

static inline void add_to_digest(const void *results, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) digest = (digest ^ ((const uint8_t *)results)[i]) * 1099511628211u;
}

static inline void print_digest(const char *of_what) {
    printf("%016" PRIx64 " %s\n", digest, of_what);
}

#endif
