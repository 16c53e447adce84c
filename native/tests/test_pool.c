/* Every item is done once, whatever the threads and chunks; and what the pool refuses. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "src/pool.h"

enum { ITEMS = 1000 };

typedef struct tally {
    int32_t threads;
    uint8_t done[ITEMS]; /* plain memory: two threads on one item would be a race that ThreadSanitizer sees */
    _Atomic int32_t busy[EM_THREADS_MAX];
} tally;

static void count(void *context, int64_t begin, int64_t end, int32_t thread) {
    tally *t = context;
    CHECK(thread >= 0 && thread < t->threads);
    CHECK(atomic_fetch_add(&t->busy[thread], 1) == 0);
    for (int64_t i = begin; i < end; i++) t->done[i]++;
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void run_loops(int32_t threads, int32_t spin_us, int loops, int pause_us) {
    em_pool *pool;
    CHECK_STATUS(EM_OK, em_pool_create(threads, spin_us, &pool));
    CHECK(em_pool_threads(pool) == threads);
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    for (int loop = 0; loop < loops; loop++) {
        tally t = {.threads = threads};
        const int64_t items = random_bits() % (ITEMS + 1), chunk = 1 + random_bits() % 40;
        em_pool_for(pool, items, chunk, count, &t);
        for (int64_t i = 0; i < ITEMS; i++) CHECK(t.done[i] == (i < items));
        if (pause_us) nanosleep(&(struct timespec){.tv_nsec = pause_us * 1000L}, NULL);
    }
    em_pool_release(pool);
    em_pool_destroy(pool);
}

/* One job after the other with no work in it: workers come late, and closing races with entering. */
static void test_stress(void) {
    const int32_t threads[] = {1, 2, 3, 4, 8};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        run_loops(threads[i], 20, 400, 0);
        run_loops(threads[i], 0, 200, 0);  /* workers sleep at once */
        run_loops(threads[i], 0, 20, 200); /* all are asleep when a job comes */
    }
}

static void doze(void *context, int64_t begin, int64_t end, int32_t thread) {
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        atomic_fetch_add((_Atomic int *)context, 1);
    }
}

/* The caller is done first and goes to sleep: a worker has to wake it. */
static void test_caller_sleeps(void) {
    em_pool *pool;
    CHECK_STATUS(EM_OK, em_pool_create(4, 0, &pool));
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    for (int i = 0; i < 30; i++) {
        _Atomic int done = 0;
        em_pool_for(pool, 4, 1, doze, &done);
        CHECK(done == 4);
    }
    em_pool_release(pool);
    em_pool_destroy(pool);
}

/* The worker has hold of a long item when the caller has done the rest: the caller waits for it, and knows how long. */
typedef struct turn {
    _Atomic int worker_began;
    int patience_ms; /* for which the caller waits until a worker has begun */
} turn;

static void let_worker_be_last(void *context, int64_t begin, int64_t end, int32_t thread) {
    turn *t = context;
    (void)begin;
    (void)end;
    if (thread > 0) {
        atomic_store(&t->worker_began, 1);
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    } else {
        for (int ms = 0; !atomic_load(&t->worker_began) && ms < t->patience_ms; ms++) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
    }
}

static void test_waiting_is_timed(void) {
    em_pool *pool;
    uint64_t waited_ns = 0, later_ns;
    CHECK_STATUS(EM_OK, em_pool_create(2, 20, &pool));
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    em_pool_time(pool, &waited_ns);
    em_pool_for(pool, 2, 1, let_worker_be_last, &(turn){.patience_ms = 60000});
    CHECK(waited_ns > 1000000 && waited_ns < 60000000000u);
    em_pool_release(pool);
    later_ns = waited_ns;
    CHECK_STATUS(EM_OK, em_pool_acquire(pool)); /* whoever comes next has not asked */
    /* The wait before may have started a trial with one thread fewer, in which no worker comes. */
    em_pool_for(pool, 2, 1, let_worker_be_last, &(turn){.patience_ms = 100});
    em_pool_release(pool);
    CHECK(waited_ns == later_ns);
    em_pool_destroy(pool);
}

/* A worker that the system keeps putting aside is played by one that sleeps in its items, the last for longest: with
 * each thread fewer, jobs end sooner. Were all to sleep alike, two of them would hold up a job no longer than one, and no
 * trial would find that fewer are better. */
typedef struct crowd {
    _Atomic int worker_items;
    bool worker_sleeps;
} crowd;

static void be_put_aside(void *context, int64_t begin, int64_t end, int32_t thread) {
    crowd *c = context;
    (void)begin;
    (void)end;
    if (thread > 0) {
        atomic_fetch_add(&c->worker_items, 1);
        if (c->worker_sleeps) nanosleep(&(struct timespec){.tv_nsec = 2000000L * thread}, NULL);
    } else {
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

/* Runs jobs until workers take part in none of a hundred, or in some; false where that never comes. */
static bool workers_end_up(em_pool *pool, crowd *c, bool taking_part) {
    for (int rounds = 0; rounds < 400; rounds++) {
        atomic_store(&c->worker_items, 0);
        for (int job = 0; job < 100; job++) em_pool_for(pool, 4, 1, be_put_aside, c);
        if ((atomic_load(&c->worker_items) > 0) == taking_part) return true;
    }
    return false;
}

static void test_slow_workers_are_benched_and_called_back(void) {
    em_pool *pool;
    crowd c = {.worker_sleeps = true};
    CHECK_STATUS(EM_OK, em_pool_create(3, 20, &pool));
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    CHECK(workers_end_up(pool, &c, false));
    c.worker_sleeps = false;
    CHECK(workers_end_up(pool, &c, true));
    em_pool_release(pool);
    em_pool_destroy(pool); /* whoever is benched then ends, too */

    c.worker_sleeps = true;
    CHECK_STATUS(EM_OK, em_pool_create(2, 20, &pool));
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    CHECK(workers_end_up(pool, &c, false));
    em_pool_release(pool);
    em_pool_destroy(pool);
}

/* Every word is read once, whatever the size and the threads. */
static void test_read_memory(void) {
    const uint64_t sizes[] = {0, 64, 256, 320, 1 << 20, (1 << 20) + 64, (5 << 20) + 4096 - 64};
    const uint64_t most = sizes[sizeof sizes / sizeof *sizes - 1];
    uint64_t *words = allocate(most), sum, elapsed_ns = 0;
    for (uint64_t i = 0; i < most / 8; i++) words[i] = (uint64_t)random_bits() << 32 | random_bits();
    for (int32_t threads = 1; threads <= 3; threads++) {
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(threads, 20, &pool));
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            uint64_t expected = 0;
            for (uint64_t i = 0; i < sizes[s] / 8; i += 8) expected += words[i];
            CHECK_STATUS(EM_OK, em_read_memory(pool, words, sizes[s], &sum, &elapsed_ns));
            CHECK(sum == expected);
        }
        CHECK(elapsed_ns > 0);
        CHECK_STATUS(EM_BAD_ARGUMENT, em_read_memory(NULL, words, 64, &sum, &elapsed_ns));
        CHECK_STATUS(EM_BAD_ARGUMENT, em_read_memory(pool, NULL, 64, &sum, &elapsed_ns));
        CHECK_STATUS(EM_BAD_ARGUMENT, em_read_memory(pool, words, 65, &sum, &elapsed_ns));
        CHECK_STATUS(EM_BAD_ARGUMENT, em_read_memory(pool, words + 1, 64, &sum, &elapsed_ns));
        CHECK_STATUS(EM_BAD_ARGUMENT, em_read_memory(pool, words, 64, NULL, &elapsed_ns));
        CHECK_STATUS(EM_OK, em_pool_acquire(pool));
        CHECK_STATUS(EM_BUSY, em_read_memory(pool, words, 64, &sum, &elapsed_ns));
        em_pool_release(pool);
        em_pool_destroy(pool);
    }
    free(words);
}

static void test_create_and_destroy(void) {
    for (int i = 0; i < 50; i++) {
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(1 + i % 5, i % 2 ? 0 : 50, &pool));
        em_pool_destroy(pool);
    }
    em_pool_destroy(NULL);
}

static void test_refusals(void) {
    em_pool *pool = NULL;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pool_create(0, 0, &pool));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pool_create(EM_THREADS_MAX + 1, 0, &pool));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pool_create(1, -1, &pool));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_pool_create(1, 0, NULL));
    CHECK(pool == NULL);
    CHECK_STATUS(EM_OK, em_pool_create(2, 0, &pool));
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    CHECK_STATUS(EM_BUSY, em_pool_acquire(pool));
    em_pool_release(pool);
    CHECK_STATUS(EM_OK, em_pool_acquire(pool));
    em_pool_release(pool);
    em_pool_destroy(pool);
}

static void test_fork(void) {
    em_pool *pool;
    CHECK_STATUS(EM_OK, em_pool_create(3, 0, &pool));
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const int32_t status = em_pool_acquire(pool);
        em_pool_destroy(pool); /* must not wait for threads that are not there */
        _exit(status == EM_FORKED ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    em_pool_destroy(pool);
}

int main(void) {
    test_stress();
    test_caller_sleeps();
    test_waiting_is_timed();
    test_slow_workers_are_benched_and_called_back();
    test_read_memory();
    test_create_and_destroy();
    test_refusals();
    test_fork();
    return 0;
}
