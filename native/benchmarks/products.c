/* How fast the panel products are: for one activation row against plain reads of the same memory, for many in
 * multiply-adds. Windows of both are interleaved, since machines are shared; medians are printed.
 *
 *   benchmark_products [ISA] [threads] [FORMAT...]      (all formats, where none is named)
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../kernels/half.h"
#include "../kernels/kernels.h"
#include "../src/clock.h"
#include "../src/pool.h"

enum { WINDOWS = 41, ROWS_MAX = 64, MATRIX_BYTES = 1 << 30, WINDOW_BYTES = 1 << 24,
       READ_BYTES_AHEAD = 8192 };

typedef struct job {
    const em_kernels *kernels;
    const uint8_t *panels;
    size_t panel_bytes;
    em_activations x;
    int32_t format;
    int32_t count; /* activation rows; 0: read the bytes and do nothing */
    int64_t first;
} job;

static volatile uint64_t sink;

#define NAME_OF(NAME, name, ...) [EM_##NAME] = #name,
static const char *const names[EM_FORMAT_COUNT] = {EM_FORMATS(NAME_OF)};

/* One word of each line brings the whole line; without prefetches a read is far from the limit. */
static void read_bytes(const uint8_t *at, size_t bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += 64) {
        uint64_t word;
        __builtin_prefetch(at + i + READ_BYTES_AHEAD);
        memcpy(&word, at + i, sizeof word);
        sum += word;
    }
    sink += sum;
}

static void work(void *context, int64_t begin, int64_t end, int32_t thread) {
    const job *j = context;
    (void)thread;
    const uint8_t *panels = j->panels + (size_t)(j->first + begin) * j->panel_bytes;
    if (j->count == 0) {
        read_bytes(panels, (size_t)(end - begin) * j->panel_bytes);
        return;
    }
    const em_matrix matrix = {panels, j->format, (int32_t)(end - begin) * EM_PANEL_ROWS, j->x.columns};
    static _Thread_local float out[ROWS_MAX * 64 * EM_PANEL_ROWS];
    int32_t rows[ROWS_MAX];
    for (int32_t i = 0; i < j->count; i++) rows[i] = i;
    const int32_t most = j->count == 1 ? 64 : 16;
    const int32_t panel_count = (int32_t)(end - begin);
    for (int32_t panel = 0; panel < panel_count; panel += most) {
        const int32_t now = panel_count - panel < most ? panel_count - panel : most;
        j->kernels->panels[j->format](&matrix, panel, now, &j->x, rows, j->count, out, (size_t)(now | 1) * EM_PANEL_ROWS);
    }
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, WINDOWS, sizeof *values, by_size);
    return values[WINDOWS / 2];
}

static double seconds(em_pool *pool, job *j, int64_t panels) {
    const int64_t chunk = 32768 / (int64_t)(j->panel_bytes * (size_t)(j->count ? j->count : 1)) + 1;
    const uint64_t start = em_now_ns();
    em_pool_for(pool, panels, chunk, work, j);
    return (double)(em_now_ns() - start) * 1e-9;
}

static void measure(em_pool *pool, const em_kernels *kernels, uint8_t *memory, int32_t format, int32_t columns,
                    int32_t count) {
    const int32_t groups = em_group_count(columns);
    float *floats = malloc((size_t)ROWS_MAX * columns * sizeof *floats);
    int8_t *values = aligned_alloc(64, (size_t)ROWS_MAX * groups * EM_GROUP_COLUMNS);
    em_group *group_array = malloc((size_t)ROWS_MAX * groups * sizeof *group_array);
    for (int32_t i = 0; i < ROWS_MAX * columns; i++) floats[i] = (float)(i % 101) / 50.0f - 1.0f;
    for (int32_t i = 0; i < ROWS_MAX; i++) {
        kernels->quantise(floats + (size_t)i * columns, columns, values + (size_t)i * groups * EM_GROUP_COLUMNS,
                          group_array + (size_t)i * groups);
    }
    job j = {kernels, memory, em_panel_bytes(format, columns), {floats, values, group_array, columns, groups},
             format, count, 0};
    const int64_t panels_in_memory = (int64_t)(MATRIX_BYTES / j.panel_bytes);
    int64_t panels = (int64_t)(WINDOW_BYTES / j.panel_bytes);
    if (count > 1) panels = panels / count + 1;
    double times[WINDOWS], shares[WINDOWS];
    for (int w = 0; w < WINDOWS; w++) {
        /* Each window takes memory that no window before it has left in a cache. */
        j.count = count;
        j.first = (2 * w * panels) % (panels_in_memory - 2 * panels);
        times[w] = seconds(pool, &j, panels);
        j.count = 0;
        j.first += panels;
        shares[w] = seconds(pool, &j, panels) / times[w];
    }
    const double bytes = (double)panels * (double)j.panel_bytes;
    const double products = (double)panels * EM_PANEL_ROWS * columns * count;
    const double share = median(shares), time = median(times);
    printf("%-6s %5d columns %3d rows: %6.1f GB/s, %3.0f %% of plain reads, %6.1f billion multiply-adds a second\n",
           names[format], columns, count, bytes / time / 1e9, 100 * share, products / time / 1e9);
    free(floats);
    free(values);
    free(group_array);
}

/* Whether a format is among those that were asked for. */
static bool is_named(const char *name, int argc, char **argv) {
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) return true;
    }
    return argc <= 3;
}

int main(int argc, char **argv) {
    const char *isa = argc > 1 ? argv[1] : em_isa_name(0);
    const em_kernels *kernels = em_kernels_for(isa);
    em_pool *pool;
    if (!kernels || em_pool_create(argc > 2 ? atoi(argv[2]) : 2, 1000, &pool) != EM_OK) {
        fprintf(stderr, "usage: benchmark_products [ISA] [threads]; %s is not to be had here\n", isa);
        return 2;
    }
    /* Huge pages where there are any, as the package asks for them too. */
    uint8_t *memory = mmap(NULL, MATRIX_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
#ifdef MADV_HUGEPAGE
    madvise(memory, MATRIX_BYTES, MADV_HUGEPAGE);
#endif
    memset(memory, 0x35, MATRIX_BYTES); /* as a float16 it is 0.33 */
    const int32_t columns[] = {576, 1024, 2048, 2304}, counts[] = {1, 4, 16, 32};
    printf("%s, %d threads\n", isa, em_pool_threads(pool));
    for (size_t n = 0; n < 4; n++) {
        for (int32_t format = 0; format < EM_FORMAT_COUNT; format++) {
            if (!names[format] || !is_named(names[format], argc, argv)) continue; /* panels of sub1 differ in length */
            for (size_t c = 0; c < 4; c++) {
                if (argc > 3 || columns[c] == 2048) measure(pool, kernels, memory, format, columns[c], counts[n]);
            }
        }
    }
    em_pool_destroy(pool);
    munmap(memory, MATRIX_BYTES);
    return 0;
}
