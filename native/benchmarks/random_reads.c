/* How many pages of 4096 bytes a disk reads in a second from random places of a file, past the page cache: the limit of what
 * reads neurons as tokens need them.
 *
 *     cc -O2 -pthread native/benchmarks/random_reads.c -o random_reads && ./random_reads FILE [THREADS] [SECONDS] */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS_MAX = 256 };

static int descriptor;
static int64_t pages;
static double end_s;
static int64_t counts[THREADS_MAX];

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *read_pages(void *argument) {
    int64_t *count = argument;
    uint64_t state = (uint64_t)(count - counts) * 0x9e3779b97f4a7c15u + 1;
    void *memory;
    if (posix_memalign(&memory, PAGE, PAGE) != 0) return NULL;
    while (now_s() < end_s) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
        if (pread(descriptor, memory, PAGE, (off_t)(state % (uint64_t)pages * PAGE)) != PAGE) {
            perror("pread");
            exit(1);
        }
        ++*count;
    }
    free(memory);
    return NULL;
}

int main(int count, char **arguments) {
    const int threads = count > 2 ? atoi(arguments[2]) : 16;
    const double seconds = count > 3 ? atof(arguments[3]) : 2;
    if (count < 2 || threads < 1 || threads > THREADS_MAX) {
        fprintf(stderr, "usage: %s FILE [THREADS] [SECONDS]\n", arguments[0]);
        return 2;
    }
    struct stat status;
    descriptor = open(arguments[1], O_RDONLY | O_DIRECT);
    if (descriptor < 0 || fstat(descriptor, &status) != 0 || (pages = status.st_size / PAGE) < 1) {
        perror(arguments[1]);
        return 1;
    }
    pthread_t started[THREADS_MAX];
    const double begin_s = now_s();
    end_s = begin_s + seconds;
    for (int i = 0; i < threads; i++) pthread_create(&started[i], NULL, read_pages, &counts[i]);
    int64_t all = 0;
    for (int i = 0; i < threads; i++) pthread_join(started[i], NULL), all += counts[i];
    printf("%d threads: %.0f pages a second, %.1f MB/s\n", threads, (double)all / (now_s() - begin_s),
           1e-6 * PAGE * (double)all / (now_s() - begin_s));
    return 0;
}
