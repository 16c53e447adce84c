/* The state machine of thread_trial.h. */
#include "thread_trial.h"

enum {
    TURNS = 6,
    /* Two or three time slices of the scheduler (3 to 10 ms each). */
    TURN_NS = 20 * 1000 * 1000,
    WATCH_NS = 100 * 1000 * 1000,
    PAUSE_NS = 400 * 1000 * 1000,
    /* With this pause at most some 3 % of the time is spent on the slower of the two thread counts. */
    PAUSE_NS_MAX = 4 * PAUSE_NS,

    /* Shorter waits at the end of a job are normal even if every thread has a processor. */
    STALL_NS = 200 * 1000,
    /* A trial of fewer threads begins only if stalls take at least 1 / STALLED_SHARE of the time. */
    STALLED_SHARE = 16,
};

/* Fewer threads are adopted only if faster by this factor: a burst of other work in a trial may look like a gain. */
static const double GAIN = 1.1;

void em_thread_trial_begin(em_thread_trial *trial, int32_t threads) {
    *trial = (em_thread_trial){.threads = threads, .active = threads, .other = threads, .pause_ns = PAUSE_NS};
}

static void begin_trial(em_thread_trial *trial, int32_t other) {
    trial->other = other;
    trial->turn = 1;
    trial->turn_ns = 0;
    for (int i = 0; i < 2; i++) {
        trial->work[i] = 0;
        trial->took_ns[i] = 0;
    }
}

static void end_trial(em_thread_trial *trial, uint64_t now_ns) {
    double rates[2];
    for (int i = 0; i < 2; i++) rates[i] = trial->work[i] / (double)trial->took_ns[i];
    const bool more = trial->other > trial->active;
    if (rates[1] > rates[0] * (more ? 1 : GAIN)) {
        trial->active = trial->other;
        trial->pause_ns = PAUSE_NS;
        trial->rest_ns[!more] = now_ns + PAUSE_NS; /* the same direction may be tried again at once, the other later */
    } else {
        trial->rest_ns[more] = now_ns + trial->pause_ns;
        if (trial->pause_ns < PAUSE_NS_MAX) trial->pause_ns *= 2;
    }
    trial->turn = 0;
}

static void add_to_trial(em_thread_trial *trial, uint64_t now_ns, uint64_t took_ns, double work) {
    const int which = trial->turn % 2;
    trial->turn_ns += took_ns;
    trial->took_ns[which] += took_ns;
    trial->work[which] += work;
    if (trial->turn_ns < TURN_NS) return;
    trial->turn_ns = 0;
    if (trial->turn++ == TURNS) end_trial(trial, now_ns);
}

static void add_to_watch(em_thread_trial *trial, uint64_t now_ns, uint64_t waited_ns) {
    if (trial->watched_ns == 0) trial->watched_ns = now_ns - waited_ns;
    if (waited_ns >= STALL_NS) trial->stalled_ns += waited_ns;
    const uint64_t watched_for_ns = now_ns - trial->watched_ns;
    if (watched_for_ns < WATCH_NS) return;
    const bool stalls = trial->stalled_ns >= watched_for_ns / STALLED_SHARE;
    trial->watched_ns = trial->stalled_ns = 0;
    if (stalls && trial->active > 1 && now_ns >= trial->rest_ns[0]) {
        begin_trial(trial, trial->active - 1);
    } else if (trial->active < trial->threads && now_ns >= trial->rest_ns[1]) {
        begin_trial(trial, trial->active + 1);
    }
}

int32_t em_thread_trial_add(em_thread_trial *trial, uint64_t now_ns, uint64_t took_ns, uint64_t waited_ns,
                            double work) {
    if (trial->turn > 0) {
        add_to_trial(trial, now_ns, took_ns, work);
    } else {
        add_to_watch(trial, now_ns, waited_ns);
    }
    return trial->turn % 2 ? trial->other : trial->active;
}
