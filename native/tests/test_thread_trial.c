/* Made-up jobs on a made-up machine, whose speed depends on how many threads share out a job. */
#include "check.h"
#include "src/thread_trial.h"

#define MS (1000 * 1000ull)

enum { THREADS = 8, JOB_NS = 50 * 1000 };

/* Work a nanosecond with 1 .. THREADS threads, and the part of the time for which threads wait for others. */
typedef struct machine {
    double rates[THREADS + 1];
    double stalled[THREADS + 1];
} machine;

typedef struct runner {
    em_thread_trial trial;
    uint64_t now_ns;
    uint64_t debt_ns; /* stalls that are still to come: they come in pieces of 2 ms */
    int32_t active;
    uint64_t with[THREADS + 1]; /* time spent with so many threads */
} runner;

static runner begin(int32_t threads) {
    runner r = {.now_ns = 1, .active = threads};
    em_thread_trial_begin(&r.trial, threads);
    return r;
}

static void run(runner *r, const machine *m, uint64_t for_ns) {
    const uint64_t end_ns = r->now_ns + for_ns;
    for (int32_t i = 0; i <= THREADS; i++) r->with[i] = 0;
    while (r->now_ns < end_ns) {
        const bool measured = em_thread_trial_measures(&r->trial);
        uint64_t took_ns = JOB_NS, waited_ns = 0;
        r->debt_ns += (uint64_t)(m->stalled[r->active] * JOB_NS / (1 - m->stalled[r->active]));
        if (r->debt_ns >= 2 * MS) {
            waited_ns = r->debt_ns;
            r->debt_ns = 0;
        }
        took_ns += waited_ns;
        r->now_ns += took_ns;
        r->with[r->active] += took_ns;
        const double work = m->rates[r->active] * JOB_NS;
        r->active = em_thread_trial_add(&r->trial, r->now_ns, measured ? took_ns : 0, waited_ns, work);
        CHECK(r->active >= 1 && r->active <= r->trial.threads);
    }
}

/* With up to `free_threads` threads all run; each one more holds up all for most of the time. */
static machine crowded(int32_t free_threads) {
    machine m = {{0}, {0}};
    double running = 1;
    for (int32_t i = 1; i <= THREADS; i++) {
        if (i > free_threads) running *= .4;
        m.rates[i] = i;
        m.stalled[i] = 1 - running;
    }
    return m;
}

static void test_quiet(void) {
    const machine quiet = crowded(THREADS);
    runner r = begin(THREADS);
    run(&r, &quiet, 10000 * MS);
    CHECK(r.with[THREADS] >= 10000 * MS); /* nothing was ever tried */
}

/* A short wait is no stall, however many there are. */
static void test_scatter_is_no_stall(void) {
    runner r = begin(2);
    for (int i = 0; i < 100000; i++) {
        r.now_ns += JOB_NS;
        CHECK(em_thread_trial_add(&r.trial, r.now_ns, 0, JOB_NS / 2, 1) == 2);
    }
}

static void test_finds_the_free_processors(void) {
    for (int32_t free_threads = 1; free_threads < THREADS; free_threads++) {
        const machine m = crowded(free_threads);
        runner r = begin(THREADS);
        run(&r, &m, 5000 * MS);
        run(&r, &m, 20000 * MS);
        CHECK(r.trial.active == free_threads);
        CHECK(r.with[free_threads] >= 20000 * MS * 95 / 100); /* the rest went to trials */
    }
}

/* Stalls that fewer threads do not cure: all stay, and trials become rare. */
static void test_keeps_what_is_faster(void) {
    machine m = crowded(1);
    m.rates[2] = 1.2 / (1 - m.stalled[2]); /* 1.2 with the stalls */
    runner r = begin(2);
    run(&r, &m, 10000 * MS);
    CHECK(r.trial.active == 2);
    run(&r, &m, 20000 * MS);
    CHECK(r.with[1] <= 20000 * MS * 4 / 100);
}

/* Fewer threads that are faster by less than a trial's scatter are not taken. */
static void test_asks_for_a_gain(void) {
    machine m = crowded(1);
    m.rates[2] = .95 / (1 - m.stalled[2]); /* .95 with the stalls */
    runner r = begin(2);
    run(&r, &m, 10000 * MS);
    CHECK(r.trial.active == 2);
}

static void test_all_come_back(void) {
    const machine busy = crowded(1), quiet = crowded(THREADS);
    runner r = begin(THREADS);
    run(&r, &busy, 30000 * MS);
    CHECK(r.trial.active == 1);
    run(&r, &quiet, 8000 * MS); /* at most 2 s of rest, then a thread for each trial and the pause after it */
    CHECK(r.trial.active == THREADS);
    run(&r, &quiet, 10000 * MS);
    CHECK(r.with[THREADS] >= 10000 * MS);
}

int main(void) {
    test_quiet();
    test_scatter_is_no_stall();
    test_finds_the_free_processors();
    test_keeps_what_is_faster();
    test_asks_for_a_gain();
    test_all_come_back();
    return 0;
}
