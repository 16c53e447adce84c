/* What the pool makes of its share of the processors while other processes compete for them.
 *
 *   benchmark_contention [threads] [microseconds of work in a job]
 *
 * Jobs of the size that decoding has are shared out beside 0, 1, 2 and 4 processes that do nothing but run. The fair
 * share of N threads beside B such processes on C processors is N * C / (N + B) processors, at most N. Printed is the
 * speed over that of one thread alone times the fair share: medians of interleaved windows, with their range. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../src/clock.h"
#include "../src/pool.h"

enum { ROUNDS = 7, ITEMS = 16, BUSY_MAX = 4, SPIN_US = 100 };

static const double ALONE_S = .4, BESIDE_S = 2, SETTLE_S = 1;

static volatile double sink;
static int64_t steps_per_item;

static void work(void *context, int64_t begin, int64_t end, int32_t thread) {
    (void)context;
    (void)thread;
    double x = 1;
    for (int64_t step = 0; step < (end - begin) * steps_per_item; step++) x = x * 1.0000001 + 1e-9;
    sink = x;
}

static void calibrate(double job_us) {
    double least_ns = 1e18;
    steps_per_item = 1000;
    for (int i = 0; i < 100; i++) {
        const uint64_t start = em_now_ns();
        work(NULL, 0, ITEMS, 0);
        const double ns = (double)(em_now_ns() - start);
        least_ns = ns < least_ns ? ns : least_ns;
    }
    steps_per_item = (int64_t)(1000 * job_us * 1000 / least_ns);
}

/* Jobs a second, over some seconds. */
static double rate(em_pool *pool, double seconds) {
    int64_t jobs = 0;
    const uint64_t start = em_now_ns();
    uint64_t now;
    em_pool_acquire(pool);
    do {
        for (int i = 0; i < 20; i++, jobs++) em_pool_for(pool, ITEMS, 1, work, NULL);
        now = em_now_ns();
    } while ((double)(now - start) < seconds * 1e9);
    em_pool_release(pool);
    return (double)jobs * 1e9 / (double)(now - start);
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void signal_all(const pid_t *processes, int count, int number) {
    for (int i = 0; i < count; i++) kill(processes[i], number);
}

static int start_processes(pid_t *processes) {
    for (int i = 0; i < BUSY_MAX; i++) {
        processes[i] = fork();
        if (processes[i] < 0) {
            perror("fork");
            signal_all(processes, i, SIGKILL);
            return 1;
        }
        if (processes[i] == 0) {
            const pid_t parent = getppid();
            while (getppid() == parent) work(NULL, 0, 1000, 0);
            _exit(0);
        }
        kill(processes[i], SIGSTOP);
    }
    return 0;
}

static void measure(em_pool *one, em_pool *all, int32_t threads, const pid_t *processes, int busy) {
    const double processors = (double)sysconf(_SC_NPROCESSORS_ONLN);
    const double even = threads * processors / (threads + busy), share = even < threads ? even : threads;
    double of_share[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        const double alone = rate(one, ALONE_S);
        signal_all(processes, busy, SIGCONT);
        rate(all, SETTLE_S);
        of_share[i] = rate(all, BESIDE_S) / (alone * share);
        signal_all(processes, busy, SIGSTOP);
    }
    qsort(of_share, ROUNDS, sizeof *of_share, compare);
    printf("beside %d: %.2f (%.2f-%.2f) of a fair share of %.2f processors\n", busy, of_share[ROUNDS / 2],
           of_share[0], of_share[ROUNDS - 1], share);
}

int main(int argc, char **argv) {
    const int32_t threads = argc > 1 ? atoi(argv[1]) : (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
    const double job_us = argc > 2 ? atof(argv[2]) : 32;
    static const int busy[] = {0, 1, 2, 4};
    em_pool *one, *all;
    pid_t processes[BUSY_MAX];
    if (job_us <= 0 || em_pool_create(1, SPIN_US, &one) || em_pool_create(threads, SPIN_US, &all)) {
        fprintf(stderr, "expected 1 to %d threads and some microseconds\n", EM_THREADS_MAX);
        return 2;
    }
    calibrate(job_us);
    if (start_processes(processes)) return 1;
    for (size_t i = 0; i < sizeof busy / sizeof *busy; i++) measure(one, all, threads, processes, busy[i]);
    signal_all(processes, BUSY_MAX, SIGKILL);
    while (wait(NULL) > 0) continue;
    em_pool_destroy(all);
    em_pool_destroy(one);
    return 0;
}
