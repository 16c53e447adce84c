/* A parallel loop over workers that spin for a moment and then sleep.
 *
 * `state` holds, in one word, which job there is, whether it may be entered, and how many workers are inside:
 *
 *     bits 63..32 number of the job | bit 31 open | bits 30..0 workers inside
 *
 * A worker enters by raising the count while the job is open, in one compare-and-swap; only then does it look at
 * the job's fields. The caller works too; when no item is left it closes the job and waits for those inside, so
 * that a worker that wakes up late, or that the system holds back before it entered, delays nobody. The fields are
 * only written while the job is closed and empty. Items are taken from one counter, whoever comes first.
 *
 * Sleeping uses one mutex and two condition variables. Each side first announces itself (`sleepers`,
 * `caller_waits`) and then looks at `state` again; the other side first changes `state` and then looks at the
 * announcement. All four are sequentially consistent, so at least one of them sees the other: no wake-up is lost.
 *
 * Where other processes compete for the processors fewer threads may be faster (thread_trial.h). Workers whose number
 * is `active` or more are then benched: they sleep on a condition of their own and count neither as sleepers, which
 * each job would wake, nor as inside. */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "arithmetic.h"
#include "clock.h"
#include "thread_trial.h"

#define JOB_ONE (1ull << 32)
#define OPEN (1ull << 31)
#define INSIDE (OPEN - 1)

enum { CACHE_LINE = 64, PAUSES_PER_CLOCK = 64 };

typedef struct worker {
    pthread_t thread;
    em_pool *pool;
    int32_t number;
} worker;

struct em_pool {
    _Alignas(CACHE_LINE) _Atomic uint64_t state;
    _Alignas(CACHE_LINE) _Atomic int64_t next; /* first item that no thread has taken */
    _Alignas(CACHE_LINE) int64_t items;
    int64_t chunk;
    em_task *task;
    void *context;
    uint64_t *waited_ns; /* the caller's counter of waiting time, or NULL: not measured */

    _Alignas(CACHE_LINE) _Atomic int32_t sleepers;
    _Atomic int32_t active; /* threads that share out jobs, the caller among them */
    _Atomic bool caller_waits;
    _Atomic bool stopping;
    atomic_flag taken;
    pthread_mutex_t mutex;
    pthread_cond_t work;
    pthread_cond_t finished;
    pthread_cond_t called_back; /* benched workers sleep on it */
    em_thread_trial trial;

    pid_t process;
    uint64_t spin_ns;
    int32_t threads;
    int32_t started; /* workers that were started */
    worker workers[];
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The next items for one thread: half of an even share of what is left, and at least a chunk. Large pieces first keep
 * a thread on one stream of memory, which the processor can prefetch; small ones last let all threads end together. */
static bool take_items(em_pool *pool, int64_t *begin, int64_t *end) {
    *begin = atomic_load_explicit(&pool->next, memory_order_relaxed);
    do {
        const int64_t left = pool->items - *begin;
        if (left <= 0) return false;
        const int64_t share = left / (2 * atomic_load_explicit(&pool->active, memory_order_relaxed));
        const int64_t count = share > pool->chunk ? share : pool->chunk;
        *end = *begin + (count < left ? count : left);
    } while (!atomic_compare_exchange_weak_explicit(&pool->next, begin, *end, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static void work_on_items(em_pool *pool, int32_t thread) {
    int64_t begin, end;
    while (take_items(pool, &begin, &end)) pool->task(pool->context, begin, end, thread);
}

static inline bool is_new(em_pool *pool, uint64_t seen_job) {
    return atomic_load(&pool->state) / JOB_ONE != seen_job || atomic_load(&pool->stopping);
}

static inline bool is_benched(em_pool *pool, int32_t number) {
    return number >= atomic_load(&pool->active) && !atomic_load(&pool->stopping);
}

/* Returns when the worker takes part in jobs, or the pool stops. */
static void await_call(em_pool *pool, int32_t number) {
    if (!is_benched(pool, number)) return;
    pthread_mutex_lock(&pool->mutex);
    while (is_benched(pool, number)) pthread_cond_wait(&pool->called_back, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

/* Returns when there is another job than `seen_job`, or the pool stops. */
static void await_job(em_pool *pool, uint64_t seen_job) {
    const uint64_t start = em_now_ns();
    do {
        for (int i = 0; i < PAUSES_PER_CLOCK; i++) {
            if (is_new(pool, seen_job)) return;
            pause_briefly();
        }
    } while (em_now_ns() - start < pool->spin_ns);
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!is_new(pool, seen_job)) pthread_cond_wait(&pool->work, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void leave(em_pool *pool) {
    const uint64_t before = atomic_fetch_sub(&pool->state, 1);
    if ((before & INSIDE) == 1 && !(before & OPEN) && atomic_load(&pool->caller_waits)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->finished);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static void *work(void *argument) {
    const worker *self = argument;
    em_pool *pool = self->pool;
    uint64_t seen_job = 0;
    em_plain_arithmetic();
    for (;;) {
        await_call(pool, self->number);
        await_job(pool, seen_job);
        if (atomic_load(&pool->stopping)) return NULL;
        uint64_t state = atomic_load(&pool->state);
        seen_job = state / JOB_ONE;
        while ((state & OPEN) && state / JOB_ONE == seen_job && !is_benched(pool, self->number)) {
            if (atomic_compare_exchange_weak(&pool->state, &state, state + 1)) {
                work_on_items(pool, self->number);
                leave(pool);
                break;
            }
        }
    }
}

static void wake_workers(em_pool *pool) {
    const uint64_t start = pool->waited_ns ? em_now_ns() : 0;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    if (pool->waited_ns) *pool->waited_ns += em_now_ns() - start;
}

/* Waits until no worker is inside the job, which is closed. Returns the nanoseconds waited; 0, without reading the
 * clock, if no worker was inside. */
static uint64_t await_workers(em_pool *pool) {
    if (!(atomic_load(&pool->state) & INSIDE)) return 0;
    const uint64_t start = em_now_ns();
    do {
        for (int i = 0; i < PAUSES_PER_CLOCK; i++) {
            if (!(atomic_load(&pool->state) & INSIDE)) return em_now_ns() - start;
            pause_briefly();
        }
    } while (em_now_ns() - start < pool->spin_ns);
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->caller_waits, true);
    while (atomic_load(&pool->state) & INSIDE) pthread_cond_wait(&pool->finished, &pool->mutex);
    atomic_store(&pool->caller_waits, false);
    pthread_mutex_unlock(&pool->mutex);
    return em_now_ns() - start;
}

static void set_active(em_pool *pool, int32_t active) {
    const int32_t before = atomic_load(&pool->active);
    if (active == before) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->active, active);
    if (active > before) pthread_cond_broadcast(&pool->called_back);
    pthread_mutex_unlock(&pool->mutex);
}

/* Shares out a job; returns how long the caller waited for the workers at its end. */
static uint64_t share_out(em_pool *pool, int64_t items, int64_t chunk, em_task *task, void *context) {
    pool->items = items;
    pool->chunk = chunk;
    pool->task = task;
    pool->context = context;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    const uint64_t job = atomic_load(&pool->state) / JOB_ONE + 1;
    atomic_store(&pool->state, job * JOB_ONE | OPEN);
    if (atomic_load(&pool->sleepers) > 0) wake_workers(pool);
    work_on_items(pool, 0);
    atomic_fetch_and(&pool->state, ~OPEN);
    return await_workers(pool);
}

void em_pool_for(em_pool *pool, int64_t items, int64_t chunk, em_task *task, void *context) {
    if (items <= 0) return;
    if (chunk < 1) chunk = 1;
    if (items <= chunk || pool->started == 0) {
        task(context, 0, items, 0);
        return;
    }
    const uint64_t start = em_thread_trial_measures(&pool->trial) ? em_now_ns() : 0;
    uint64_t waited_ns = 0;
    if (atomic_load_explicit(&pool->active, memory_order_relaxed) > 1) {
        waited_ns = share_out(pool, items, chunk, task, context);
        if (pool->waited_ns) *pool->waited_ns += waited_ns;
    } else {
        task(context, 0, items, 0);
    }
    const uint64_t now = em_now_ns();
    /* Work is counted in chunks, since a chunk is about the same work in every job. */
    set_active(pool, em_thread_trial_add(&pool->trial, now, now - start, waited_ns, (double)items / (double)chunk));
}

int32_t em_pool_acquire(em_pool *pool) {
    if (getpid() != pool->process) return EM_FORKED;
    return atomic_flag_test_and_set(&pool->taken) ? EM_BUSY : EM_OK;
}

void em_pool_release(em_pool *pool) {
    pool->waited_ns = NULL;
    atomic_flag_clear(&pool->taken);
}

void em_pool_time(em_pool *pool, uint64_t *waited_ns) { pool->waited_ns = waited_ns; }

int32_t em_pool_threads(const em_pool *pool) { return pool->threads; }

static bool start_workers(em_pool *pool) {
    /* Workers block all signals, so that the caller's own threads handle them. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->started < pool->threads - 1) {
        worker *next = &pool->workers[pool->started];
        *next = (worker){.pool = pool, .number = pool->started + 1};
        if (pthread_create(&next->thread, NULL, work, next) != 0) break;
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool->started == pool->threads - 1;
}

int32_t em_pool_create(int32_t threads, int32_t spin_us, em_pool **result) {
    if (!result || threads < 1 || threads > EM_THREADS_MAX || spin_us < 0) return EM_BAD_ARGUMENT;
    const size_t bytes = sizeof(em_pool) + (size_t)(threads - 1) * sizeof(worker);
    em_pool *pool = aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    if (!pool) return EM_NO_MEMORY;
    *pool = (em_pool){.threads = threads, .spin_ns = (uint64_t)spin_us * 1000, .process = getpid()};
    atomic_flag_clear(&pool->taken);
    atomic_init(&pool->active, threads);
    em_thread_trial_begin(&pool->trial, threads);
    if (pthread_mutex_init(&pool->mutex, NULL) != 0 || pthread_cond_init(&pool->work, NULL) != 0 ||
        pthread_cond_init(&pool->finished, NULL) != 0 || pthread_cond_init(&pool->called_back, NULL) != 0) {
        free(pool);
        return EM_NO_MEMORY;
    }
    if (!start_workers(pool)) {
        em_pool_destroy(pool);
        return EM_NO_THREADS;
    }
    *result = pool;
    return EM_OK;
}

void em_pool_destroy(em_pool *pool) {
    if (!pool) return;
    /* In a forked child the workers do not exist, and the mutex may be held by one of them: leave it all alone. */
    if (getpid() != pool->process) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stopping, true);
    pthread_cond_broadcast(&pool->work);
    pthread_cond_broadcast(&pool->called_back);
    pthread_mutex_unlock(&pool->mutex);
    for (int32_t i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->called_back);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}
