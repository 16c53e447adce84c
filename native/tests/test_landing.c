/* Records in parts: every type, odd sizes, any alignment in the file, any number of threads and size of their buffers;
 * and everything that can go wrong with one. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file_numbers.h"
#include "src/landing.h"

enum { FILE_BYTES = 1 << 20, SLOT_BYTES = 1 << 18, PADDING = 0xA5 };

static uint8_t content[FILE_BYTES];
static uint8_t slot[SLOT_BYTES] __attribute__((aligned(64)));

static int open_content(void) {
    char path[] = "/tmp/edgemoe-landing-XXXXXX";
    const int descriptor = mkstemp(path);
    CHECK(descriptor >= 0);
    unlink(path);
    CHECK(write(descriptor, content, FILE_BYTES) == FILE_BYTES);
    return descriptor;
}

static em_part matrix_part(const kind *k, int32_t rows, int32_t columns, int64_t place, int64_t panels_apart) {
    return (em_part){.bytes = rows * row_bytes(k, columns),
                     .place = place,
                     .panel_stride = panels_apart * (int64_t)em_panel_bytes(k->format, columns),
                     .landing = EM_PANELS,
                     .type = k->type,
                     .format = k->format,
                     .rows = rows,
                     .columns = columns};
}

static void fill(const kind *k, int64_t offset, int32_t rows, int32_t columns) {
    for (int64_t i = 0; i < rows * row_bytes(k, columns); i++) content[offset + i] = (uint8_t)random_bits();
    for (int64_t i = 0; i < rows * row_bytes(k, columns); i += k->block_bytes) make_finite(k, content + offset + i);
}

static int32_t land(em_reader *reader, const em_part *parts, const em_place *places, int32_t count, int64_t crc32c,
                    int64_t *detail) {
    em_read read = {.destination = slot, .crc32c = crc32c, .part_count = count, .parts = parts, .places = places};
    for (int32_t i = 0; i < count; i++) read.length += parts[i].bytes;
    int64_t ticket;
    const int32_t refused = em_reader_submit(reader, &read, 1, 1, &ticket);
    if (refused != EM_OK) return refused;
    const int32_t status = em_reader_wait(reader, ticket, -1, detail);
    CHECK_STATUS(EM_OK, em_reader_release(reader, ticket));
    return status;
}

/* Gate and up interleaved, down and a bias: of every type, from unaligned places of a file. */
static void test_every_type(int32_t threads, int64_t staging_bytes) {
    static uint8_t expected[SLOT_BYTES];
    em_reader *reader;
    CHECK_STATUS(EM_OK, em_reader_create(threads, 4, 1000, staging_bytes, &reader));
    for (size_t n = 0; n < KINDS; n++) {
        const kind *k = &kinds[n];
        const int32_t rows = 16 * 3 + 1 + (int32_t)(random_bits() % 16);
        const int32_t columns = k->block_columns == 1 ? 33 : k->block_columns == 32 ? 96 : 2 * k->block_columns;
        const int64_t panel = (int64_t)em_panel_bytes(k->format, columns), panels = em_panel_count(rows);
        const int64_t offsets[3] = {1 + random_bits() % 8191, 300001, 600007};
        for (int i = 0; i < 2; i++) fill(k, offsets[i], rows, columns);
        fill(&kinds[2], offsets[2], 1, rows);
        const int file = open_content();
        const em_part parts[3] = {
            matrix_part(k, rows, columns, 0, 2),
            matrix_part(k, rows, columns, panel, 2),
            {.bytes = 2 * rows, .place = 2 * panels * panel, .landing = EM_VECTOR, .type = EM_ROWS_BF16,
             .format = EM_F32, .rows = rows, .columns = 1},
        };
        const float scales[] = {0.75f, -3};
        const em_place places[3] = {
            {offsets[0], -1, file, scales[0]}, {offsets[1], -1, file, scales[1]}, {offsets[2], -1, file, 1}};
        memset(expected, PADDING, SLOT_BYTES);
        uint32_t crc = 0;
        for (int i = 0; i < 2; i++) {
            crc = em_crc32c(em_kernels_for(em_isa_name(0)), crc, content + offsets[i], (uint64_t)parts[i].bytes);
            for (int32_t p = 0; p < panels; p++) {
                const int32_t left = rows - 16 * p;
                expect_panel(k, content + offsets[i] + 16 * p * row_bytes(k, columns), left < 16 ? left : 16, columns,
                             scales[i], expected + (2 * p + i) * panel);
            }
        }
        crc = em_crc32c(em_kernels_for(em_isa_name(0)), crc, content + offsets[2], (uint64_t)parts[2].bytes);
        float *bias = (float *)(void *)(expected + parts[2].place);
        for (int32_t i = 0; i < 16 * panels; i++) {
            bias[i] = i < rows ? float_at(&kinds[2], content + offsets[2] + 2 * i) : 0;
        }
        int64_t detail;
        for (int checked = 0; checked < 2; checked++) {
            memset(slot, PADDING, SLOT_BYTES);
            CHECK_STATUS(EM_OK, land(reader, parts, places, 3, checked ? (int64_t)crc : -1, &detail));
            CHECK(detail == parts[0].bytes + parts[1].bytes + parts[2].bytes);
            CHECK(memcmp(slot, expected, SLOT_BYTES) == 0);
        }
        CHECK_STATUS(EM_BAD_CHECKSUM, land(reader, parts, places, 3, (int64_t)(crc ^ 1), &detail));
        for (int i = 0; i < 3; i++) CHECK(em_part_end(&parts[i]) <= SLOT_BYTES);
        CHECK(em_part_end(&parts[2]) == parts[2].place + 64 * panels);
        close(file);
    }
    em_reader_destroy(reader);
}

/* Direct reads, where the file system has them: the whole pages around a part, also at the file's unaligned end. */
static void test_direct_reads(void) {
#ifdef O_DIRECT
    const kind *k = &kinds[4];
    const int32_t rows = 20, columns = 64;
    char path[] = "/var/tmp/edgemoe-landing-XXXXXX";
    const int written = mkstemp(path);
    if (written < 0) return;
    const int64_t offset = FILE_BYTES - rows * row_bytes(k, columns) - 3;
    fill(k, offset, rows, columns);
    CHECK(write(written, content, FILE_BYTES - 3) == FILE_BYTES - 3);
    CHECK(fsync(written) == 0);
    const int file = open(path, O_RDONLY | O_DIRECT);
    unlink(path);
    close(written);
    if (file < 0) return;
    em_reader *reader;
    CHECK_STATUS(EM_OK, em_reader_create(2, 4, 1 << 20, 3 * EM_PAGE_BYTES, &reader));
    em_part part = matrix_part(k, rows, columns, 64, 1);
    em_place place = {offset, -1, file, 0};
    uint8_t expected[2048];
    int64_t detail;
    CHECK_STATUS(EM_OK, land(reader, &part, &place, 1, -1, &detail));
    for (int p = 0; p < 2; p++) {
        expect_panel(k, content + offset + 16 * p * row_bytes(k, columns), p ? 4 : 16, columns, 1, expected);
        CHECK(memcmp(slot + 64 + p * part.panel_stride, expected, em_panel_bytes(k->format, columns)) == 0);
    }
    place.offset++; /* one byte less than the part */
    CHECK_STATUS(EM_SHORT_READ, land(reader, &part, &place, 1, -1, &detail));
    CHECK(detail == part.bytes - 1);
    em_reader_destroy(reader);
    close(file);
#endif
}

static void test_failures(void) {
    const kind *k = &kinds[4];
    em_reader *reader, *without;
    CHECK_STATUS(EM_OK, em_reader_create(3, 4, 1000, 3 * EM_PAGE_BYTES, &reader));
    CHECK_STATUS(EM_OK, em_reader_create(1, 4, 1000, 0, &without));
    fill(k, 0, 100, 64);
    const int file = open_content();
    const em_part part = matrix_part(k, 100, 64, 0, 1);
    struct stat status;
    CHECK(fstat(file, &status) == 0);
#ifdef __APPLE__
    const struct timespec at = status.st_mtimespec;
#else
    const struct timespec at = status.st_mtim;
#endif
    em_place place = {0, (int64_t)at.tv_sec * 1000000000 + at.tv_nsec, file, 0};
    int64_t detail;
    CHECK_STATUS(EM_OK, land(reader, &part, &place, 1, -1, &detail));
    place.modified_ns++;
    CHECK_STATUS(EM_CHANGED_FILE, land(reader, &part, &place, 1, -1, &detail));
    place = (em_place){FILE_BYTES - 700, -1, file, 0};
    CHECK_STATUS(EM_SHORT_READ, land(reader, &part, &place, 1, -1, &detail));
    CHECK(detail == 700);
    place = (em_place){2 * FILE_BYTES, -1, file, 0};
    CHECK_STATUS(EM_SHORT_READ, land(reader, &part, &place, 1, -1, &detail));
    CHECK(detail == 0);
    place = (em_place){0, -1, -1, 0};
    CHECK_STATUS(EM_READ_FAILED, land(reader, &part, &place, 1, -1, &detail));
    CHECK(detail == EBADF);
    /* what is no part, or has no room */
    place = (em_place){0, -1, file, 0};
    CHECK_STATUS(EM_BAD_ARGUMENT, land(without, &part, &place, 1, -1, &detail));
    CHECK_STATUS(EM_BAD_ARGUMENT, land(reader, NULL, &place, 0, -1, &detail));
    em_part wrong[14];
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) wrong[i] = part;
    wrong[0].type = EM_ROWS_COUNT;
    wrong[1].type = -1;
    wrong[2].format = EM_Q8;
    wrong[3].rows = 0;
    wrong[4].columns = 63;
    wrong[5].bytes--;
    wrong[6].place = 32;
    wrong[7].place = -64;
    wrong[8].panel_stride -= 64;
    wrong[9].landing = 2;
    wrong[10].landing = EM_VECTOR;
    wrong[11].rows = INT32_MAX;
    wrong[12].panel_stride = INT64_MAX / 64 * 64; /* where its last panel ends is beyond 64 bits */
    wrong[13].place = INT64_MAX / 64 * 64;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_STATUS(EM_BAD_ARGUMENT, land(reader, &wrong[i], &place, 1, -1, &detail));
    }
    const em_part wide = matrix_part(k, 16, 1 << 15, 0, 1); /* a panel larger than the buffer */
    CHECK_STATUS(EM_BAD_ARGUMENT, land(reader, &wide, &place, 1, -1, &detail));
    em_read read = {.length = part.bytes, .destination = slot, .crc32c = -1, .part_count = 1, .parts = &part};
    int64_t ticket;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, &read, 1, 1, &ticket)); /* no places */
    read.places = &place, read.length++;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, &read, 1, 1, &ticket));
    read.length--, read.part_count = -1;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_submit(reader, &read, 1, 1, &ticket));
    em_reader_destroy(reader);
    em_reader_destroy(without);
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(1, 1, 1, 4095, &reader));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_reader_create(1, 1, 1, -4096, &reader));
    close(file);
}

/* A scale or weight that is not finite is found wherever it stands. */
static void test_finite_numbers(void) {
    for (size_t n = 0; n < KINDS; n++) {
        const kind *k = &kinds[n];
        const int32_t rows = 19, columns = k->block_columns > 64 ? k->block_columns : 64;
        const int64_t bytes = rows * row_bytes(k, columns), block = bytes / k->block_bytes - 1 - (int64_t)(n % 3);
        const em_part part = matrix_part(k, rows, columns, 0, 1);
        fill(k, 0, rows, columns);
        CHECK(em_part_land(&part, 1, 0, bytes, content, slot));
        uint8_t *head = content + block * k->block_bytes;
        if (k->type == EM_ROWS_MXFP4) {
            memset(head + 1, 0x55, 16); /* 6, doubled */
            head[0] = 253;
            CHECK(em_part_land(&part, 1, 0, bytes, content, slot));
            head[7] = 0xE5; /* -8 */
            CHECK(!em_part_land(&part, 1, 0, bytes, content, slot));
            memset(head + 1, 0xB3, 16);
            head[0] = 254;
            CHECK(em_part_land(&part, 1, 0, bytes, content, slot));
            head[16] = 0xB4;
            CHECK(!em_part_land(&part, 1, 0, bytes, content, slot));
            memset(head + 1, 0, 16);
            head[0] = 255;
        } else if (k->type == EM_ROWS_F32) {
            memcpy(head, (uint8_t[]){0, 0, 0x80, 0x7f}, 4);
        } else if (k->type == EM_ROWS_BF16) {
            memcpy(head, (uint8_t[]){0x80, 0xff}, 2);
        } else if (k->type == EM_ROWS_NVFP4) {
            head[n % 4] = 0x7F;
        } else if (k->type == EM_ROWS_IQ1_M) {
            head[53] |= 0xC0; /* all bits of the exponent */
            head[55] |= 0x70;
        } else if (k->block_columns == 1) {
            memcpy(head, (uint8_t[]){0x01, 0x7c}, 2);
        } else {
            if (k->minimum >= 0) {
                const uint8_t before = head[k->minimum + 1];
                head[k->minimum + 1] = 0xfc;
                CHECK(!em_part_land(&part, 1, 0, bytes, content, slot));
                head[k->minimum + 1] = before;
                CHECK(em_part_land(&part, 1, 0, bytes, content, slot));
            }
            memcpy(head + k->scale, (uint8_t[]){0x01, 0x7c}, 2);
        }
        CHECK(!em_part_land(&part, 1, 0, bytes, content, slot));
    }
}

/* Multiplies a row of activations by landed panels, on every set: whatever their numbers are, no kernel reads elsewhere. */
static void multiply(const em_part *part, const uint8_t *panels) {
    enum { MOST_COLUMNS = 1024, MOST_ROWS = 48 };
    static float floats[MOST_COLUMNS], products[2 * MOST_ROWS];
    static int8_t values[MOST_COLUMNS];
    static em_group groups[MOST_COLUMNS / EM_GROUP_COLUMNS];
    static const int32_t rows[2] = {0, 0};
    const int32_t group_count = em_group_count(part->columns), panel_count = em_panel_count(part->rows);
    const em_matrix matrix = {panels, part->format, part->rows, part->columns};
    CHECK(part->columns <= MOST_COLUMNS && EM_PANEL_ROWS * panel_count <= MOST_ROWS);
    for (int32_t i = 0; i < part->columns; i++) floats[i] = random_float();
    for (int32_t set = 0; set < em_isa_count(); set++) {
        const em_kernels *kernels = em_kernels_for(em_isa_name(set));
        if (!kernels) continue;
        kernels->quantise(floats, part->columns, values, groups);
        const em_activations x = {floats, values, groups, part->columns, group_count};
        for (int32_t count = 1; count <= 2; count++) {
            kernels->panels[part->format](&matrix, 0, panel_count, &x, rows, count, products, MOST_ROWS);
        }
    }
}

/* Blocks of any bits, as a damaged file has, 100,000 and more: whatever they mean, they land as they are, number by
 * number; nothing but the panels is written, and kernels read nothing else. */
static void test_any_bits(void) {
    enum { ROUNDS = 90 };
    static uint8_t expected[SLOT_BYTES];
    int64_t all = 0;
    for (size_t n = 0; n < KINDS; n++) {
        const kind *k = &kinds[n];
        for (int round = 0; round < ROUNDS; round++) {
            const int32_t rows = 1 + (int32_t)(random_bits() % 40), blocks = k->block_columns == 1 ? 70 : 1 + round % 3;
            const em_part part = matrix_part(k, rows, blocks * k->block_columns, 64, 1);
            const int64_t end = em_part_end(&part);
            CHECK(end + 4096 <= SLOT_BYTES);
            for (int64_t i = 0; i < part.bytes; i++) content[i] = (uint8_t)random_bits();
            memset(slot, PADDING, (size_t)end + 4096);
            em_part_land(&part, 1, 0, part.bytes, content, slot);
            for (int64_t i = 0; i < 64; i++) CHECK(slot[i] == PADDING);
            for (int64_t i = end; i < end + 4096; i++) CHECK(slot[i] == PADDING);
            for (int32_t p = 0; p < em_panel_count(rows) && em_numbers(k->format).grid == EM_GRID_NONE; p++) {
                const int32_t left = rows - 16 * p;
                expect_panel(k, content + 16 * p * row_bytes(k, part.columns), left < 16 ? left : 16, part.columns, 1, expected);
                CHECK(memcmp(slot + 64 + p * part.panel_stride, expected, (size_t)part.panel_stride) == 0);
            }
            for (int64_t i = 0; i < part.bytes; i += k->block_bytes) make_finite(k, content + i);
            CHECK(em_part_land(&part, 1, 0, part.bytes, content, slot));
            if (round % 3 == 0) multiply(&part, slot + 64);
            all += rows * blocks;
        }
    }
    CHECK(all >= 100000);
}

int main(void) {
    const int64_t rooms[] = {4 * EM_PAGE_BYTES, 5 * EM_PAGE_BYTES, 64 * EM_PAGE_BYTES};
    for (int i = 0; i < 3; i++) {
        for (int32_t threads = 1; threads <= 4; threads += 3) test_every_type(threads, rooms[i]);
    }
    test_direct_reads();
    test_failures();
    test_finite_numbers();
    test_any_bits();
    return 0;
}
