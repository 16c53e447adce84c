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
#include "src/landing_grid.h"

enum { FILE_BYTES = 1 << 20, SLOT_BYTES = 1 << 18, PADDING = 0xA5 };

static uint8_t content[FILE_BYTES];
static uint8_t slot[SLOT_BYTES] __attribute__((aligned(64)));

typedef struct kind {
    int32_t type, format, block_columns, block_bytes;
    int32_t scale, minimum; /* where they stand in a block; -1: nowhere */
} kind;

static const kind kinds[] = {
    {EM_ROWS_F32, EM_F32, 1, 4, -1, -1},         {EM_ROWS_F16, EM_F16, 1, 2, -1, -1},
    {EM_ROWS_BF16, EM_BF16, 1, 2, -1, -1},
    {EM_ROWS_Q8_0, EM_Q8, 32, 34, 0, -1},        {EM_ROWS_Q4_0, EM_Q4, 32, 18, 0, -1},
    {EM_ROWS_Q4_1, EM_Q4M, 32, 20, 0, 2},        {EM_ROWS_MXFP4, EM_M4, 32, 17, -1, -1},
    {EM_ROWS_Q5_0, EM_Q5, 32, 22, 0, -1},        {EM_ROWS_Q5_1, EM_Q5M, 32, 24, 0, 2},
    {EM_ROWS_Q2_K, EM_Q2K, 256, 84, 80, 82},     {EM_ROWS_Q3_K, EM_Q3K, 256, 110, 108, -1},
    {EM_ROWS_Q4_K, EM_Q4K, 256, 144, 0, 2},      {EM_ROWS_Q5_K, EM_Q5K, 256, 176, 0, 2},
    {EM_ROWS_Q6_K, EM_Q6K, 256, 210, 208, -1},   {EM_ROWS_IQ4_NL, EM_IQ4NL, 32, 18, 0, -1},
    {EM_ROWS_IQ4_XS, EM_IQ4XS, 256, 136, 0, -1}, {EM_ROWS_NVFP4, EM_NV4, 64, 36, -1, -1},
    {EM_ROWS_TQ1_0, EM_TQ2, 256, 54, 52, -1},    {EM_ROWS_TQ2_0, EM_TQ2, 256, 66, 64, -1},
    {EM_ROWS_Q2_0, EM_Q2, 64, 18, 0, -1},        {EM_ROWS_Q1_0, EM_Q1, 128, 18, 0, -1},
    {EM_ROWS_IQ2_XXS, EM_IQ2XXS, 256, 66, 0, -1}, {EM_ROWS_IQ2_XS, EM_IQ2XS, 256, 74, 0, -1},
    {EM_ROWS_IQ2_S, EM_IQ2S, 256, 82, 0, -1},     {EM_ROWS_IQ3_XXS, EM_IQ3XXS, 256, 98, 0, -1},
    {EM_ROWS_IQ3_S, EM_IQ3S, 256, 110, 0, -1},    {EM_ROWS_IQ1_S, EM_IQ1S, 256, 50, 0, -1},
    {EM_ROWS_IQ1_M, EM_IQ1M, 256, 56, 54, -1}, /* bit 14 of its scale is that of the word there */
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int64_t row_bytes(const kind *k, int32_t columns) { return (int64_t)columns / k->block_columns * k->block_bytes; }

/* Makes the numbers of a block of a file finite: bytes of random bits may be any. */
static void make_finite(const kind *k, uint8_t *block) {
    if (k->type == EM_ROWS_F32) block[3] &= 0xBF;
    if (k->type == EM_ROWS_BF16 || k->type == EM_ROWS_F16) block[1] &= 0xBF;
    if (k->type == EM_ROWS_MXFP4) block[0] &= 0xBF;
    if (k->scale >= 0) block[k->scale + 1] &= 0xBF;
    if (k->minimum >= 0) block[k->minimum + 1] &= 0xBF;
    for (int i = 0; i < 4 && k->type == EM_ROWS_NVFP4; i++) block[i] &= 0x77;
}

/* ---- what a block says, number by number, in the words of ggml's layouts -------------------------------------- */

static int bits_at(const uint8_t *from, int first, int count) {
    int found = 0;
    for (int i = 0; i < count; i++) found |= (from[(first + i) / 8] >> (first + i) % 8 & 1) << i;
    return found;
}

static int three_at(const uint8_t *block, int c) {
    const int run = c < 160 ? 32 : c < 240 ? 16 : 4, in_run = c < 160 ? c : c < 240 ? c - 160 : c - 240;
    uint8_t fraction = block[(c < 160 ? 0 : c < 240 ? 32 : 48) + in_run % run];
    for (int i = in_run / run; i > 0; i--) fraction = (uint8_t)(fraction * 3);
    return fraction * 3 >> 8;
}

static int code_at(const kind *k, const uint8_t *block, int c) {
    const int half = c / 128, in_half = c % 128, quarter = in_half / 32, in_group = c % 32;
    const int shift = c % 32 < 16 ? 0 : 4; /* of a nibble in blocks of 32 columns */
    switch (k->type) {
    case EM_ROWS_Q8_0: return block[2 + c];
    case EM_ROWS_Q4_0:
    case EM_ROWS_IQ4_NL: return block[2 + c % 16] >> shift & 15;
    case EM_ROWS_Q4_1: return block[4 + c % 16] >> shift & 15;
    case EM_ROWS_MXFP4: return block[1 + c % 16] >> shift & 15;
    case EM_ROWS_Q5_0: return (block[6 + c % 16] >> shift & 15) | bits_at(block + 2, c, 1) << 4;
    case EM_ROWS_Q5_1: return (block[8 + c % 16] >> shift & 15) | bits_at(block + 4, c, 1) << 4;
    case EM_ROWS_Q2_K: return block[16 + half * 32 + in_group] >> 2 * quarter & 3;
    case EM_ROWS_Q3_K:
        return (block[32 + half * 32 + in_group] >> 2 * quarter & 3) | (block[in_group] >> (c / 32) & 1) << 2;
    case EM_ROWS_Q4_K: return block[16 + c / 64 * 32 + in_group] >> (c / 32 % 2 * 4) & 15;
    case EM_ROWS_Q5_K:
        return (block[48 + c / 64 * 32 + in_group] >> (c / 32 % 2 * 4) & 15) | (block[16 + in_group] >> (c / 32) & 1) << 4;
    case EM_ROWS_Q6_K:
        return (block[half * 64 + in_half % 64] >> (in_half / 64 * 4) & 15) |
               (block[128 + half * 32 + in_group] >> 2 * quarter & 3) << 4;
    case EM_ROWS_IQ4_XS: return block[8 + c / 32 * 16 + c % 16] >> shift & 15;
    case EM_ROWS_NVFP4: return block[4 + c / 16 * 8 + c % 8] >> (c % 16 < 8 ? 0 : 4) & 15;
    case EM_ROWS_TQ1_0: return three_at(block, c);
    case EM_ROWS_TQ2_0: return block[half * 32 + in_group] >> 2 * quarter & 3;
    case EM_ROWS_Q2_0: return bits_at(block + 2, 2 * c, 2);
    default: return bits_at(block + 2, c, 1); /* Q1_0 */
    }
}

/* Factor i of a block, as its format has it, and offset i where it has offsets of their own. */
static uint8_t factor_at(const kind *k, const uint8_t *block, int i, uint8_t *offset) {
    const uint8_t *pairs = block + 4, *sixteen = block + 96;
    switch (k->type) {
    case EM_ROWS_Q2_K: return block[i];
    case EM_ROWS_Q3_K:
        return (uint8_t)((sixteen[i % 8] >> (i < 8 ? 0 : 4) & 15) + ((sixteen[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32);
    case EM_ROWS_Q4_K:
    case EM_ROWS_Q5_K:
        if (i < 4) {
            *offset = pairs[i + 4] & 63;
            return pairs[i] & 63;
        }
        *offset = (uint8_t)(pairs[i + 4] >> 4 | pairs[i] >> 6 << 4);
        return (uint8_t)((pairs[i + 4] & 15) | pairs[i - 4] >> 6 << 4);
    case EM_ROWS_Q6_K: return block[192 + i];
    case EM_ROWS_IQ4_XS: return (uint8_t)((block[4 + i / 2] >> i % 2 * 4 & 15) + (bits_at(block + 2, 2 * i, 2) << 4) - 32);
    default: return block[i]; /* NVFP4 */
    }
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

/* Puts a code where the table of edgemoe/kernels/formats.py has it, plane by plane. */
static void put_code(const kind *k, uint8_t *payload, int r, int c, int code) {
    const int bits = em_numbers(k->format).bits, low = bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    for (int first = 0, plane = low; first < bits; first += plane, plane = bits - low) {
        const int own = code >> first & ((1 << plane) - 1);
        const int in_field = plane == 8 ? c : plane == 4 ? c % 16 : plane == 2 ? c % 8 : c % 4;
        const int field = plane == 8 ? 0 : plane == 4 ? c / 16 : plane == 2 ? c / 8 : c / 4;
        payload[(first + in_field / 4) * 64 + r * 4 + in_field % 4] |= (uint8_t)(own << field * plane);
    }
}

/* One panel, byte for byte, element by element; of formats with a grid, whose places tests in Python know, as it lands at
 * once. */
static void expect_panel(const kind *k, const uint8_t *rows_in_file, int32_t rows, int32_t columns, float scale,
                         uint8_t *panel) {
    const em_format_numbers numbers = em_numbers(k->format);
    const int32_t groups = em_group_count(columns), size = k->format == EM_F32 ? 4 : 2, block_columns = k->block_columns;
    const em_sections at = em_sections_of(k->format, groups);
    if (numbers.grid != EM_GRID_NONE) {
        CHECK(em_land_grid_rows(k->format, columns, k->block_bytes, rows, rows_in_file, panel));
        return;
    }
    memset(panel, 0, em_panel_bytes(k->format, columns));
    for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
        const uint8_t *row = r < rows ? rows_in_file + r * row_bytes(k, columns) : NULL;
        for (int32_t c = 0; c < groups * EM_GROUP_COLUMNS; c++) {
            uint8_t *payload = panel + (size_t)(c / 32) * em_payload_bytes(k->format);
            if (block_columns == 1) {
                if (!row || c >= columns) continue;
                const float value = float_at(k, row + (size_t)c * (size_t)k->block_bytes);
                if (size == 4) {
                    memcpy(payload + (c % 32 * 16 + r) * 4, &value, 4);
                } else {
                    memcpy(payload + (c % 32 * 16 + r) * 2, row + (size_t)c * 2, 2);
                }
                continue;
            }
            const int code = row ? code_at(k, row + c / block_columns * k->block_bytes, c % block_columns) : numbers.zero;
            put_code(k, payload, r, c % 32, code);
        }
        if (block_columns == 1) continue;
        if (k->format == EM_NV4 && row) memcpy(panel + at.scales + r * 4, &scale, 4);
        for (int32_t b = 0; b < columns / block_columns; b++) {
            const uint8_t *block = row ? row + b * k->block_bytes : NULL;
            if (k->format == EM_M4) panel[at.scales + (size_t)(b * 16 + r)] = block ? block[0] : 127;
            if (!block) continue;
            if (k->scale >= 0) memcpy(panel + at.scales + (b * 16 + r) * 2, block + k->scale, 2);
            if (k->minimum >= 0) memcpy(panel + at.minimums + (b * 16 + r) * 2, block + k->minimum, 2);
            const int count = numbers.factor == EM_FACTOR_NONE ? 0 : block_columns / 32 * numbers.halves;
            for (int i = 0; i < count; i++) {
                uint8_t offset = 0;
                panel[at.factors + (size_t)((b * count + i) * 16 + r)] = factor_at(k, block, i, &offset);
                if (at.end > at.offsets) panel[at.offsets + (size_t)((b * count + i) * 16 + r)] = offset;
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
