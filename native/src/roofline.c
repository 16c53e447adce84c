/* Plain reads of memory by all threads: an upper bound on the speed of every kernel that must read its weights once. */
#include <stdatomic.h>

#include "clock.h"
#include "pool.h"

enum {
    PIECE_BYTES = 1 << 20,
    LINE_BYTES = 64,
    /* Prefetch distance. Without prefetches a core waits for memory far more than it must. At this distance a line
     * arrives before it is read, and the lines on their way still fit in the first-level cache. */
    AHEAD_BYTES = 4096,
};

typedef struct read_task {
    const uint8_t *data;
    uint64_t bytes;
    _Atomic uint64_t sum;
} read_task;

/* Memory is read in whole lines, so the loop reads one word of each; then only memory limits it. Reading all words
 * reached four fifths of this speed. */
static void read_pieces(void *context, int64_t begin, int64_t end, int32_t thread) {
    read_task *task = context;
    const uint64_t last = (uint64_t)end * PIECE_BYTES;
    const uint64_t stop = last < task->bytes ? last : task->bytes;
    uint64_t sum = 0;
    (void)thread;
    for (uint64_t at = (uint64_t)begin * PIECE_BYTES; at < stop; at += LINE_BYTES) {
        __builtin_prefetch(task->data + at + AHEAD_BYTES);
        sum += *(const uint64_t *)(const void *)(task->data + at);
    }
    atomic_fetch_add(&task->sum, sum);
}

int32_t em_read_memory(em_pool *pool, const void *data, uint64_t bytes, uint64_t *sum, uint64_t *elapsed_ns) {
    if (!pool || !data || !sum || !elapsed_ns) return EM_BAD_ARGUMENT;
    if ((uintptr_t)data % LINE_BYTES || bytes % LINE_BYTES || bytes > INT64_MAX) return EM_BAD_ARGUMENT;
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
