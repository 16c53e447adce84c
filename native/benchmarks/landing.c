/* How fast blocks of GGUF files land: bytes of the file in a second of one thread's processor time.
 *
 *   benchmark_landing [TYPE...]      (all types of blocks, where none is named)
 *
 * Matrices of 1024 x 2048 weights land one after the other, in the steps of a reader thread: from and to memory far larger
 * than the caches, and again and again from and to the same. The best of some passes is printed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "../kernels/kernels.h"
#include "../src/file_blocks.h"
#include "../src/landing.h"

enum { ROWS = 1024, COLUMNS = 2048, MATRICES = 64, PASSES = 5, STAGING_BYTES = 512 << 10 };

#define NAME_OF(NAME, ...) [EM_ROWS_##NAME] = #NAME,
static const char *const names[EM_ROWS_COUNT] = {EM_ROW_TYPES(NAME_OF)};

static uint8_t *allocate(size_t bytes) {
    void *memory;
    if (posix_memalign(&memory, 2 << 20, bytes) != 0) {
        fprintf(stderr, "not enough memory\n");
        exit(1);
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds in which a matrix lands: the next one each time, or the first again. */
static double seconds_of(const em_part *part, const uint8_t *from, uint8_t *to, size_t slot_bytes, int again) {
    const int64_t step = em_part_step(part, STAGING_BYTES);
    double best = 1e9;
    for (int pass = 0; pass < PASSES; pass++) {
        const double began = processor_seconds();
        for (int m = 0; m < MATRICES; m++) {
            const size_t own = again ? 0 : (size_t)m;
            for (int64_t begin = 0; begin < part->bytes; begin += step) {
                const int64_t left = part->bytes - begin;
                em_part_land(part, 1, begin, left < step ? left : step, from + own * (size_t)part->bytes + begin,
                             to + own * slot_bytes);
            }
        }
        const double seconds = (processor_seconds() - began) / MATRICES;
        if (seconds < best) best = seconds;
    }
    return best;
}

static void measure(int32_t type) {
    const em_row_type kind = em_row_types[type];
    const size_t bytes = (size_t)ROWS * (COLUMNS / kind.columns) * (size_t)kind.bytes;
    const size_t stride = em_panel_bytes(kind.format, COLUMNS), slot_bytes = stride * (ROWS / EM_PANEL_ROWS);
    const em_part part = {.bytes = (int64_t)bytes, .panel_stride = (int64_t)stride, .landing = EM_PANELS, .type = type,
                          .format = kind.format, .rows = ROWS, .columns = COLUMNS};
    if (!em_part_is_sound(&part)) return;
    uint8_t *from = allocate(MATRICES * bytes), *to = allocate(MATRICES * slot_bytes);
    for (size_t i = 0; i < MATRICES * bytes; i++) from[i] = (uint8_t)(i * 2654435761u >> 7 & 0x3b); /* finite scales */
    memset(to, 0, MATRICES * slot_bytes);
    const double memory = seconds_of(&part, from, to, slot_bytes, 0), cache = seconds_of(&part, from, to, slot_bytes, 1);
    printf("%-8s %6.2f GB/s from memory, %6.2f within caches\n", names[type], (double)bytes * 1e-9 / memory,
           (double)bytes * 1e-9 / cache);
    free(from);
    free(to);
}

int main(int count, char **arguments) {
    for (int32_t type = 0; type < EM_ROWS_COUNT; type++) {
        int named = count < 2 && em_row_types[type].columns > 1;
        for (int i = 1; i < count; i++) named |= strcmp(arguments[i], names[type]) == 0;
        if (named) measure(type);
    }
    return 0;
}
