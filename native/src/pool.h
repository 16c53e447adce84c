/* The pool as the operations see it: a parallel loop. */
#ifndef EDGEMOE_POOL_H
#define EDGEMOE_POOL_H

#include "edgemoe.h"

/* Does items begin .. end - 1; `thread` is 0 .. threads - 1 and no other call has the same one at the time. */
typedef void em_task(void *context, int64_t begin, int64_t end, int32_t thread);

/* Takes the pool for one caller. EM_BUSY or EM_FORKED if it cannot be had. */
int32_t em_pool_acquire(em_pool *pool);
void em_pool_release(em_pool *pool);

/* Until the pool is released `*waited_ns` grows by what em_pool_for spends on waking workers and waiting for them. */
void em_pool_time(em_pool *pool, uint64_t *waited_ns);

/* Every item once, at least `chunk` at a time, by the caller and whichever workers are awake; returns when all are
 * done. The pool must have been acquired. A single chunk is done by the caller at once. */
void em_pool_for(em_pool *pool, int64_t items, int64_t chunk, em_task *task, void *context);

#endif
