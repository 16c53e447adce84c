/* Records in parts: every type, odd sizes, any alignment in the file, any number of threads and size of their buffers;
 * and everything that can go wrong with one. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "kernels/half.h"
#include "kernels/kernels.h"
#include "src/landing.h"

enum { FILE_BYTES = 1 << 20, SLOT_BYTES = 1 << 18, PADDING = 0xA5 };

static uint8_t content[FILE_BYTES];
static uint8_t slot[SLOT_BYTES] __attribute__((aligned(64)));

typedef struct kind {
    int32_t type, format, block_columns, block_bytes, head_bytes;
} kind;

static const kind kinds[] = {
    {EM_ROWS_F32, EM_F32, 1, 4, 0},      {EM_ROWS_F16, EM_F16, 1, 2, 0},    {EM_ROWS_F16, EM_F32, 1, 2, 0},
    {EM_ROWS_BF16, EM_F32, 1, 2, 0},     {EM_ROWS_Q8_0, EM_Q8, 32, 34, 2},  {EM_ROWS_Q4_0, EM_Q4, 32, 18, 2},
    {EM_ROWS_Q4_1, EM_Q4M, 32, 20, 4},   {EM_ROWS_MXFP4, EM_M4, 32, 17, 1},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int64_t row_bytes(const kind *k, int32_t columns) { return (int64_t)columns / k->block_columns * k->block_bytes; }

/* Makes a number of a file finite: bytes of random bits may be any. */
static void make_finite(const kind *k, uint8_t *block) {
    if (k->type == EM_ROWS_F32) block[3] &= 0xBF;
    if (k->type == EM_ROWS_BF16) block[1] &= 0xBF;
    if (k->type == EM_ROWS_F16 || k->type >= EM_ROWS_Q8_0) block[k->type == EM_ROWS_MXFP4 ? 0 : 1] &= 0xBF;
    if (k->type == EM_ROWS_Q4_1) block[3] &= 0xBF;
}

static int open_content(void) {
    char path[] = "/tmp/edgemoe-landing-XXXXXX";
    const int descriptor = mkstemp(path);
    CHECK(descriptor >= 0);
    unlink(path);
    CHECK(write(descriptor, content, FILE_BYTES) == FILE_BYTES);
    return descriptor;
}

static float float_at(const kind *k, const uint8_t *from) {
    uint32_t bits = 0;
    float value;
    if (k->type == EM_ROWS_F32) {
        memcpy(&value, from, 4);
        return value;
    }
    if (k->type == EM_ROWS_BF16) {
        bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 24;
        memcpy(&value, &bits, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, from, 2);
    return em_half_to_float(half);
}

/* One panel, byte for byte, as the table of edgemoe/kernels/formats.py places them: element by element. */
static void expect_panel(const kind *k, const uint8_t *rows_in_file, int32_t rows, int32_t columns, uint8_t *panel) {
    const int32_t groups = em_group_count(columns), size = k->format == EM_F16 ? 2 : 4;
    memset(panel, 0, em_panel_bytes(k->format, columns));
    uint8_t *scales = panel + (size_t)groups * em_payload_bytes(k->format);
    uint8_t *minimums = scales + (size_t)groups * em_scales_bytes(k->format);
    for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
        const uint8_t *row = r < rows ? rows_in_file + r * row_bytes(k, columns) : NULL;
        for (int32_t c = 0; c < groups * EM_GROUP_COLUMNS; c++) {
            const int32_t g = c / 32, in_group = c % 32;
            uint8_t *payload = panel + (size_t)g * em_payload_bytes(k->format);
            if (k->block_columns == 1) {
                if (!row || c >= columns) continue;
                const float value = float_at(k, row + (size_t)c * (size_t)k->block_bytes);
                if (size == 4) {
                    memcpy(payload + (in_group * 16 + r) * 4, &value, 4);
                } else {
                    memcpy(payload + (in_group * 16 + r) * 2, row + (size_t)c * 2, 2);
                }
                continue;
            }
            const uint8_t *values = row ? row + g * k->block_bytes + k->head_bytes : NULL;
            if (k->format == EM_Q8) {
                payload[in_group / 4 * 64 + r * 4 + in_group % 4] = values ? values[in_group] : 0;
                continue;
            }
            const int nibble = values ? values[in_group % 16] >> (in_group < 16 ? 0 : 4) & 15 : k->format == EM_Q4 ? 8 : 0;
            payload[in_group % 16 / 4 * 64 + r * 4 + in_group % 4] |= (uint8_t)(nibble << (in_group < 16 ? 0 : 4));
        }
        for (int32_t g = 0; g < groups && k->block_columns > 1; g++) {
            const uint8_t *block = row ? row + g * k->block_bytes : NULL;
            if (k->format == EM_M4) {
                scales[g * 16 + r] = block ? block[0] : 127;
            } else if (block) {
                memcpy(scales + (g * 16 + r) * 2, block, 2);
                if (k->format == EM_Q4M) memcpy(minimums + (g * 16 + r) * 2, block + 2, 2);
            }
        }
    }
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
        const int32_t columns = k->block_columns == 1 ? 33 : 96;
        const int64_t panel = (int64_t)em_panel_bytes(k->format, columns), panels = em_panel_count(rows);
        const int64_t offsets[3] = {1 + random_bits() % 8191, 300001, 600007};
        for (int i = 0; i < 2; i++) fill(k, offsets[i], rows, columns);
        fill(&kinds[3], offsets[2], 1, rows);
        const int file = open_content();
        const em_part parts[3] = {
            matrix_part(k, rows, columns, 0, 2),
            matrix_part(k, rows, columns, panel, 2),
            {.bytes = 2 * rows, .place = 2 * panels * panel, .landing = EM_VECTOR, .type = EM_ROWS_BF16,
             .format = EM_F32, .rows = rows, .columns = 1},
        };
        const em_place places[3] = {{offsets[0], -1, file, 0}, {offsets[1], -1, file, 0}, {offsets[2], -1, file, 0}};
        memset(expected, PADDING, SLOT_BYTES);
        uint32_t crc = 0;
        for (int i = 0; i < 2; i++) {
            crc = em_crc32c(em_kernels_for(em_isa_name(0)), crc, content + offsets[i], (uint64_t)parts[i].bytes);
            for (int32_t p = 0; p < panels; p++) {
                const int32_t left = rows - 16 * p;
                expect_panel(k, content + offsets[i] + 16 * p * row_bytes(k, columns), left < 16 ? left : 16, columns,
                             expected + (2 * p + i) * panel);
            }
        }
        crc = em_crc32c(em_kernels_for(em_isa_name(0)), crc, content + offsets[2], (uint64_t)parts[2].bytes);
        float *bias = (float *)(void *)(expected + parts[2].place);
        for (int32_t i = 0; i < 16 * panels; i++) {
            bias[i] = i < rows ? float_at(&kinds[3], content + offsets[2] + 2 * i) : 0;
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
    const kind *k = &kinds[5];
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
        expect_panel(k, content + offset + 16 * p * row_bytes(k, columns), p ? 4 : 16, columns, expected);
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
    const kind *k = &kinds[5];
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
        const int32_t rows = 19, columns = 64;
        const int64_t bytes = rows * row_bytes(k, columns), block = bytes / k->block_bytes - 1 - (int64_t)(n % 3);
        const em_part part = matrix_part(k, rows, columns, 0, 1);
        fill(k, 0, rows, columns);
        CHECK(em_part_land(&part, 0, bytes, content, slot));
        uint8_t *head = content + block * k->block_bytes;
        if (k->type == EM_ROWS_MXFP4) {
            memset(head + 1, 0x55, 16); /* 6, doubled */
            head[0] = 253;
            CHECK(em_part_land(&part, 0, bytes, content, slot));
            head[7] = 0xE5; /* -8 */
            CHECK(!em_part_land(&part, 0, bytes, content, slot));
            memset(head + 1, 0xB3, 16);
            head[0] = 254;
            CHECK(em_part_land(&part, 0, bytes, content, slot));
            head[16] = 0xB4;
            CHECK(!em_part_land(&part, 0, bytes, content, slot));
            memset(head + 1, 0, 16);
            head[0] = 255;
        } else if (k->type == EM_ROWS_F32) {
            memcpy(head, (uint8_t[]){0, 0, 0x80, 0x7f}, 4);
        } else if (k->type == EM_ROWS_BF16) {
            memcpy(head, (uint8_t[]){0x80, 0xff}, 2);
        } else {
            memcpy(head + (k->type == EM_ROWS_Q4_1 ? 2 : 0), (uint8_t[]){0x01, 0x7c}, 2);
        }
        CHECK(!em_part_land(&part, 0, bytes, content, slot));
    }
}

int main(void) {
    const int64_t rooms[] = {4 * EM_PAGE_BYTES, 5 * EM_PAGE_BYTES, 64 * EM_PAGE_BYTES};
    for (int i = 0; i < 3; i++) {
        for (int32_t threads = 1; threads <= 4; threads += 3) test_every_type(threads, rooms[i]);
    }
    test_direct_reads();
    test_failures();
    test_finite_numbers();
    return 0;
}
