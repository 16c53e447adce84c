/* How many of a pool's threads share out a job, where other processes compete for the processors.
 *
 * A thread that the system puts aside in the middle of a job makes all others wait until it runs again, which takes
 * milliseconds, while a job takes microseconds. With fewer threads nobody waits. Which is faster depends on how many
 * processes compete and on the system's scheduler, so it is found out by trial: while jobs stall, one thread fewer is
 * tried, and from time to time one thread more, until all threads share out jobs again. What the threads compute does
 * not depend on how many they are.
 *
 * It is a plain state machine without a clock of its own; only the pool's caller uses it. */
#ifndef EDGEMOE_THREAD_TRIAL_H
#define EDGEMOE_THREAD_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct em_thread_trial {
    int32_t threads; /* of the pool */
    int32_t active;  /* that share out jobs by the last verdict */
    int32_t other;   /* that are tried in turn with `active`: one more or one fewer */
    int32_t turn;    /* of a trial, counted from 1, odd ones with `other` threads; 0: no trial goes on */

    uint64_t watched_ns; /* the time at which this watch began; 0: with the next job */
    uint64_t stalled_ns; /* what jobs stalled since then */
    uint64_t rest_ns[2]; /* the times before which neither fewer nor more threads are tried */
    uint64_t pause_ns;   /* until the same is tried again: grows while nothing changes */

    uint64_t turn_ns;    /* what the jobs of this turn took */
    double work[2];      /* done with `active` and with `other` threads, in the caller's unit */
    uint64_t took_ns[2]; /* what that took */
} em_thread_trial;

void em_thread_trial_begin(em_thread_trial *trial, int32_t threads);

/* Whether a trial goes on, which must know how long jobs take. Otherwise only long waits matter. */
static inline bool em_thread_trial_measures(const em_thread_trial *trial) { return trial->turn > 0; }

/* A job of `work` ended at `now_ns`, having taken `took_ns` (if a trial went on as it began), of which the caller
 * waited `waited_ns` for others. Returns how many threads shall share out the next. */
int32_t em_thread_trial_add(em_thread_trial *trial, uint64_t now_ns, uint64_t took_ns, uint64_t waited_ns,
                            double work);

#endif
