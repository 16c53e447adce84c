/* The row pager: which pages are in slots, what reads them, and reads that fail. */
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "kernels/kernels.h"
#include "src/row_pager.h"

enum { ROW_BYTES = 1024, PER_PAGE = 4, ROWS = 42, PAGES = (ROWS + PER_PAGE - 1) / PER_PAGE, SLOTS = 3, PAGE = 4096 };

typedef struct paged_rows {
    uint8_t rows[PAGES][PAGE];
    uint8_t *arena;
    int32_t slots[PAGES];
    uint32_t crc32c[ROWS];
    em_pager_counters counters;
    em_read_failure failure;
    em_reader *reader;
    em_row_pager *pager;
    int file;
} paged_rows;

/* A row, as a byte of the array of all pages. */
static const uint8_t *row_at(const paged_rows *p, int32_t row) {
    return (const uint8_t *)p->rows + (size_t)row * ROW_BYTES;
}

static void write_rows(const paged_rows *p) {
    CHECK(pwrite(p->file, p->rows, sizeof p->rows, PAGE) == (ssize_t)sizeof p->rows);
}

static paged_rows *make_rows(void) {
    char path[] = "/tmp/edgemoe-rows-XXXXXX";
    paged_rows *p = calloc(1, sizeof *p);
    CHECK(p);
    p->arena = aligned_alloc(PAGE, SLOTS * PAGE);
    p->file = mkstemp(path);
    CHECK(p->arena && p->file >= 0);
    unlink(path);
    for (size_t i = 0; i < sizeof p->rows; i++) p->rows[i / PAGE][i % PAGE] = (uint8_t)random_bits();
    for (int32_t row = 0; row < ROWS; row++) {
        p->crc32c[row] = em_crc32c(em_kernels_for(em_isa_name(0)), 0, row_at(p, row), ROW_BYTES);
    }
    write_rows(p);
    CHECK_STATUS(EM_OK, em_reader_create(2, 1024, PAGE, 0, &p->reader));
    em_row_pager_setup setup = {.arena = p->arena, .slots = p->slots, .crc32c = p->crc32c, .counters = &p->counters,
                                .failure = &p->failure, .offset = PAGE, .row_bytes = ROW_BYTES, .timeout_us = -1,
                                .descriptor = p->file, .row_count = ROWS, .rows_per_page = PER_PAGE, .slot_count = SLOTS};
    em_reader_source(p->reader, &setup.source);
    CHECK_STATUS(EM_OK, em_row_pager_create(&setup, &p->pager));
    setup.rows_per_page = 3;
    em_row_pager *none;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_row_pager_create(&setup, &none));
    return p;
}

static void free_rows(paged_rows *p) {
    em_row_pager_destroy(p->pager);
    em_reader_destroy(p->reader);
    close(p->file);
    free(p->arena);
    free(p);
}

static void check_there(const paged_rows *p, int32_t row) {
    const int32_t slot = p->slots[row / PER_PAGE];
    CHECK(slot >= 0 && slot < SLOTS);
    CHECK(memcmp(p->arena + slot * PAGE + row % PER_PAGE * ROW_BYTES, row_at(p, row), ROW_BYTES) == 0);
}

static void test_rows_that_are_asked_for_are_there(void) {
    paged_rows *p = make_rows();
    for (int i = 0; i < 300; i++) {
        int32_t rows[8];
        const int32_t first = (int32_t)(random_bits() % 5), count = 1 + (int32_t)(random_bits() % 3);
        for (int32_t n = 0; n < count; n++) rows[n] = (int32_t)(random_bits() % (uint32_t)(ROWS - first));
        CHECK_STATUS(EM_OK, em_row_pager_fetch(p->pager, rows, count, first));
        for (int32_t n = 0; n < count; n++) check_there(p, first + rows[n]);
        int32_t held = 0;
        for (int32_t page = 0; page < PAGES; page++) held += p->slots[page] >= 0;
        CHECK(held <= SLOTS);
    }
    CHECK(p->counters.hits > 0 && p->counters.misses > 0);
    CHECK(p->counters.demand_bytes > p->counters.misses * PAGE / 2);
    free_rows(p);
}

static void test_more_pages_than_slots(void) {
    paged_rows *p = make_rows();
    const int32_t rows[] = {0, 1, 4, 8, 12}, few[] = {0, 8};
    CHECK_STATUS(EM_FULL, em_row_pager_fetch(p->pager, rows, 5, 0));
    CHECK_STATUS(EM_OK, em_row_pager_fetch(p->pager, few, 2, 0));
    check_there(p, 8);
    CHECK_STATUS(EM_BAD_EXPERT, em_row_pager_fetch(p->pager, rows, 5, ROWS - 4));
    free_rows(p);
}

static void test_a_damaged_row_is_told_and_read_again(void) {
    paged_rows *p = make_rows();
    const int32_t rows[] = {20, 9};
    p->rows[2][2 * ROW_BYTES + 7] ^= 1; /* row 10, of the page of row 9 */
    write_rows(p);
    for (int i = 0; i < 2; i++) {
        CHECK_STATUS(EM_BAD_CHECKSUM, em_row_pager_fetch(p->pager, rows, 2, 0));
        CHECK(p->failure.status == EM_BAD_CHECKSUM && p->failure.expert == 10);
        CHECK(p->slots[2] == -1);
    }
    p->rows[2][2 * ROW_BYTES + 7] ^= 1;
    write_rows(p);
    CHECK_STATUS(EM_OK, em_row_pager_fetch(p->pager, rows, 2, 0));
    check_there(p, 9);
    CHECK(ftruncate(p->file, 3 * PAGE) == 0);
    const int32_t lost[] = {40};
    CHECK_STATUS(EM_SHORT_READ, em_row_pager_fetch(p->pager, lost, 1, 0));
    CHECK(p->failure.status == EM_SHORT_READ && p->failure.expert == 40);
    free_rows(p);
}

int main(void) {
    test_rows_that_are_asked_for_are_there();
    test_more_pages_than_slots();
    test_a_damaged_row_is_told_and_read_again();
    return 0;
}
