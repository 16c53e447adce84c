/* Plain reads of memory by all threads: the roof over every kernel that must read its weights once. */
#include <stdatomic.h>

#include "clock.h"
#include "pool.h"

/* Wider than any register: the compiler makes of it whatever the target has. */
typedef uint64_t words __attribute__((vector_size(64)));

enum {
    PIECE_BYTES = 1 << 20,
    STREAMS = 4,                         /* sums that do not wait for one another */
    BLOCK_BYTES = STREAMS * sizeof(words),
    AHEAD_BYTES = 2048, /* further than a line takes to come, and still within reach of the first cache */
};

typedef struct read_task {
    const uint8_t *data;
    uint64_t bytes;
    _Atomic uint64_t sum;
} read_task;

static uint64_t sum_of(words w) {
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof w / sizeof sum; i++) sum += w[i];
    return sum;
}

static void read_pieces(void *context, int64_t begin, int64_t end, int32_t thread) {
    read_task *task = context;
    const uint8_t *at = task->data + (uint64_t)begin * PIECE_BYTES;
    const uint64_t last = (uint64_t)end * PIECE_BYTES;
    const uint8_t *const stop = task->data + (last < task->bytes ? last : task->bytes);
    words sums[STREAMS] = {{0}};
    (void)thread;
    for (; stop - at >= BLOCK_BYTES; at += BLOCK_BYTES) {
        for (int i = 0; i < STREAMS; i++) {
            const uint8_t *line = at + (size_t)i * sizeof(words);
            __builtin_prefetch(line + AHEAD_BYTES);
            sums[i] += *(const words *)(const void *)line;
        }
    }
    for (; at < stop; at += sizeof(words)) sums[0] += *(const words *)(const void *)at;
    for (int i = 1; i < STREAMS; i++) sums[0] += sums[i];
    atomic_fetch_add(&task->sum, sum_of(sums[0]));
}

int32_t em_read_memory(em_pool *pool, const void *data, uint64_t bytes, uint64_t *sum, uint64_t *elapsed_ns) {
    if (!pool || !data || !sum || !elapsed_ns) return EM_BAD_ARGUMENT;
    if ((uintptr_t)data % sizeof(words) || bytes % sizeof(words) || bytes > INT64_MAX) return EM_BAD_ARGUMENT;
    const int32_t status = em_pool_acquire(pool);
    if (status != EM_OK) return status;
    read_task task = {.data = data, .bytes = bytes};
    const uint64_t start = em_now_ns();
    em_pool_for(pool, (int64_t)((bytes + PIECE_BYTES - 1) / PIECE_BYTES), 1, read_pieces, &task);
    *elapsed_ns = em_now_ns() - start;
    *sum = task.sum;
    em_pool_release(pool);
    return EM_OK;
}
