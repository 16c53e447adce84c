/* edgemoe's native library: the operations of a decoder, a thread pool, and reader threads for experts.
 *
 * operations.py, state_operations.py and expert_operations.py in edgemoe/kernels define every operation, reference/ there
 * says what it computes, and edgemoe/kernels/formats.py the bytes of a matrix.
 * edgemoe_operations.h has the structs of operations, written from those definitions. All arrays are C-contiguous.
 *
 * Results are the same to the bit for any number of threads, any instruction set, any way of cutting a prompt into
 * runs, and any other sequences in them: threads share out output rows, never a sum, and every sum has one written order.
 *
 * No function aborts, and none allocates memory during a run; functions return a status. */
#ifndef EDGEMOE_H
#define EDGEMOE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EM_API __attribute__((visibility("default")))

/* Incremented with every change to this header that a caller must adapt to. */
#define EM_ABI_VERSION 16

/* A choice of a router that is of no expert: it passes on what experts read, and nothing is read for it. */
enum { EM_NO_EXPERT = -1 };

typedef enum em_status {
    EM_OK = 0,
    EM_BAD_ARGUMENT = 1,   /* a count, pointer or option outside its range */
    EM_NO_MEMORY = 2,
    EM_NO_THREADS = 3,     /* the system refused to start a thread */
    EM_FORKED = 4,         /* the pool or reader belongs to the process that forked this one */
    EM_BUSY = 5,           /* another thread is running on this pool; or a read is still under way */
    EM_BAD_OPERATION = 6,  /* an unknown kind of operation or format */
    EM_BAD_POSITION = 7,   /* a row's position, sequence or page that does not exist */
    EM_BAD_TOKEN_ID = 8,   /* a token id outside the vocabulary */
    EM_BAD_EXPERT = 9,     /* an expert number or slot out of range */
    EM_SMALL_SCRATCH = 10, /* less scratch than em_program_scratch_bytes says */
    EM_TIMEOUT = 11,
    EM_CANCELLED = 12,
    EM_READ_FAILED = 13,   /* the system's error number is in em_read_result */
    EM_SHORT_READ = 14,    /* the file ended early */
    EM_FULL = 15,          /* no free request in the reader */
    EM_BAD_TICKET = 16,    /* a ticket that was never issued, or that was released */
    EM_BAD_CHECKSUM = 17,  /* the bytes read do not have the expected checksum */
    EM_NOT_FINITE = 18,    /* a weight or scale that landed is infinite or not a number */
    EM_CHANGED_FILE = 19,  /* the file was written to since its places were taken */
    EM_BAD_RECORD = 20,    /* a matrix in the code sub1 contradicts itself */
} em_status;

EM_API int32_t em_abi_version(void);
EM_API const char *em_status_text(int32_t status);

/* ---- instruction sets ------------------------------------------------------------------------------- */

typedef struct em_kernels em_kernels;

/* The instruction sets that this build contains and this processor and system can run: their number and names, best
 * first. */
EM_API int32_t em_isa_count(void);
EM_API const char *em_isa_name(int32_t index);
/* The kernels of the set with this name, or NULL if em_isa_name lists no such name. */
EM_API const em_kernels *em_kernels_for(const char *isa);

/* ---- checksums -------------------------------------------------------------------------------------- */

/* Continues a CRC-32C (Castagnoli; RFC 3720 has examples): `crc` is the checksum of the preceding bytes, 0 if none. */
EM_API uint32_t em_crc32c(const em_kernels *kernels, uint32_t crc, const void *data, uint64_t bytes);
/* The CRC-32C of two parts put together, from the checksum of each part and the length of the second. */
EM_API uint32_t em_crc32c_combine(uint32_t first, uint32_t second, uint64_t second_bytes);

/* ---- encoding in trellis formats -------------------------------------------------------------------- */

/* A trellis format (edgemoe/kernels/trellis.py) with the tables of one matrix. */
typedef struct em_trellis {
    int32_t step_bits, step_weights, lag;
    int32_t level_count;    /* at most 256 */
    const float *levels;    /* (step_weights, level_count): numbers that weights can be, ascending */
    const uint8_t *numbers; /* (windows, step_weights): which of them each window stands for */
    float dearest;          /* what a weight costs at most; times step_weights * 2^step_bits at most 2^28 (step_bits 1: 2^26) */
} em_trellis;

/* What em_trellis_search needs; 0 for what it refuses. */
EM_API uint64_t em_trellis_scratch_bytes(const em_trellis *trellis, int32_t columns);
/* Finds the codes (rows, columns / step_weights) for weights (rows, columns), columns in whole blocks, of the smallest sum
 * of penalty * (weight * inverse - level)^2, where the penalty is gain * importance, inverses and gains are
 * (rows, columns / 32), and importance is (columns). All are finite, and penalties at least 0. Costs are rounded down to
 * whole numbers. */
EM_API int32_t em_trellis_search(const em_kernels *kernels, const em_trellis *trellis, const float *weights,
                                 const float *inverses, const float *gains, const float *importance, int32_t rows,
                                 int32_t columns, uint8_t *codes, void *scratch);

/* Columns of rows whose errors feed back (edgemoe/quant/feedback.py), in whole blocks: `kept` of them get codes, and those
 * behind are searched with them. A unit is what a chain has of a block: 8 steps. */
typedef struct em_trellis_fed {
    const float *targets;    /* (rows, columns), `target_floats` from row to row */
    const float *inverses;   /* (rows, columns / 32), as of em_trellis_search; and */
    const float *gains;      /* (rows, columns / 32), and */
    const float *steps;      /* (rows, columns / 32): what a level of 1 is worth */
    const float *importance; /* (columns) */
    const float *factors;    /* (units kept, columns of a unit, as many): what is left of errors of a unit by its columns */
    const float *rates;      /* (kept, columns), `rate_floats` from row to row: what a rest takes from later targets */
    int64_t target_floats, rate_floats;
    int32_t rows, columns, kept;
    int32_t ahead; /* columns that a search goes beyond its block, if there are as many */
} em_trellis_fed;

/* What em_trellis_feed_back needs; 0 for what it refuses. */
EM_API uint64_t em_trellis_feedback_scratch_bytes(const em_trellis *trellis, const em_trellis_fed *fed);
/* Finds codes (rows, kept / step_weights) unit by unit: each on the cheapest path for the targets that the units before it
 * left. `states` (rows, 4) are the bits of each chain's stream that later windows see, before and then after these
 * columns; `rests` (rows, kept) become what is left of errors, for the targets of columns that are not here. */
EM_API int32_t em_trellis_feed_back(const em_kernels *kernels, const em_trellis *trellis, const em_trellis_fed *fed,
                                    uint8_t *states, uint8_t *codes, float *rests, void *scratch);

/* ---- the code sub1 ---------------------------------------------------------------------------------- */

/* The most bytes of a panel; 0 for no column, or levels of other than 2 and 4 bytes. */
EM_API uint64_t em_sub1_panel_bytes(int32_t columns, int32_t level_bytes);
/* Encodes trits (rows, columns) of -1, 0 and 1 as panels, one after the other in `out`; each of `ends` becomes the end of a
 * panel. `levels` are those of each panel as it begins with them. With `out` NULL it finds the ends alone. */
EM_API int32_t em_sub1_pack(const int8_t *trits, int32_t rows, int32_t columns, const uint8_t *levels, int32_t level_bytes,
                            uint8_t *out, uint64_t *ends);
/* Whether `bytes` bytes begin with a whole matrix of these rows and columns whose panels are as long as their classes say,
 * and whose levels are finite: `*used` becomes its length. Else EM_BAD_RECORD. Nothing behind `bytes` is read. */
EM_API int32_t em_sub1_check(const uint8_t *data, uint64_t bytes, int32_t rows, int32_t columns, uint64_t *used);
/* Decodes it: trits (rows, columns), and levels (rows, 2), minus and plus. EM_BAD_RECORD as above, but for levels. */
EM_API int32_t em_sub1_unpack(const uint8_t *data, uint64_t bytes, int32_t rows, int32_t columns, int8_t *trits,
                              float *levels);

/* ---- thread pool ------------------------------------------------------------------------------------ */

typedef struct em_pool em_pool;

#define EM_THREADS_MAX 256

/* `threads` includes the caller, so threads - 1 workers start. A worker without work spins for `spin_us`
 * and then sleeps. A pool runs one program at a time: a second caller gets EM_BUSY. */
EM_API int32_t em_pool_create(int32_t threads, int32_t spin_us, em_pool **pool);
EM_API void em_pool_destroy(em_pool *pool);
EM_API int32_t em_pool_threads(const em_pool *pool);

/* Reads `bytes` of memory once, shared out over the pool's threads, and does nothing else: it measures the memory
 * bandwidth with which the speed of kernels is compared. `data` is 64-byte aligned, `bytes` a multiple of 64. `*sum`
 * becomes the sum of the first 64-bit word of each 64 bytes, `*elapsed_ns` the time that the read took. */
EM_API int32_t em_read_memory(em_pool *pool, const void *data, uint64_t bytes, uint64_t *sum, uint64_t *elapsed_ns);

/* ---- operations ------------------------------------------------------------------------------------- */

/* A matrix of weights, in one of the formats (em_format). */
typedef struct em_matrix {
    const uint8_t *data; /* 64-byte aligned */
    int32_t format;
    int32_t rows;
    int32_t columns;
} em_matrix;

/* The pages of keys or values of one layer. Element i of a row of EM_Q8 is (float)int8 * (float)scale of its group of 32. */
typedef struct em_cache {
    void *elements;   /* (N, G, 64, W): float32, float16 or int8, by the format */
    uint16_t *scales; /* (N, G, 64, groups of 32 of W): float16, for EM_Q8; else NULL */
    int32_t format;   /* EM_F32, EM_F16 or EM_Q8 */
} em_cache;

typedef struct em_pager em_pager; /* see "the pager" below */
typedef struct em_row_pager em_row_pager; /* see "the row pager" below */

#include "edgemoe_operations.h"

#define EM_KIND(kind, name) EM_##kind,
typedef enum em_kind { EM_OPERATIONS(EM_KIND) EM_KIND_COUNT } em_kind;
#undef EM_KIND

#define EM_MEMBER(kind, name) em_##name name;
typedef struct em_operation {
    int32_t kind;
    int32_t reserved;
    union {
        EM_OPERATIONS(EM_MEMBER)
    } as;
} em_operation;
#undef EM_MEMBER

/* Working memory that programs share, since one runs at a time: 64-byte aligned, owned by the caller. */
typedef struct em_scratch {
    uint8_t *data;
    uint64_t bytes;
} em_scratch;

/* Time that the runs of a program spent in one operation: each run adds to it, the owner resets it to zero. */
typedef struct em_operation_time {
    uint64_t elapsed_ns;
    uint64_t waited_ns; /* the part in which the caller's thread woke workers and waited for them to finish */
    uint64_t disk_ns;   /* the part in which the caller had nothing to do until a read ended */
} em_operation_time;

typedef struct em_program_times {
    em_operation_time *operations; /* (operation_count) */
    uint64_t elapsed_ns;           /* whole runs, from call to return: slightly more than the sum over operations */
} em_program_times;

typedef struct em_program {
    const em_kernels *kernels;
    em_pool *pool;
    const em_operation *operations;
    const em_scratch *scratch;
    em_program_times *times; /* NULL: runs are not timed and read no clock */
    uint64_t scratch_bytes;  /* the result of em_program_scratch_bytes for `tokens_max` */
    int32_t operation_count;
    int32_t tokens_max;
    int32_t failed_operation; /* written by a run that fails: index of the operation that failed, or -1 */
    int32_t reserved;
} em_program;

/* Bytes of scratch that runs of up to `tokens` tokens need. */
EM_API uint64_t em_program_scratch_bytes(const em_operation *operations, int32_t count, int32_t tokens);

/* Runs every operation in order for the first `tokens` rows of the buffers. */
EM_API int32_t em_program_run(em_program *program, int32_t tokens);

/* Runs `count` operations from operation `first` on, as a part of such a run. */
EM_API int32_t em_program_run_some(em_program *program, int32_t tokens, int32_t first, int32_t count);

/* ---- expert reads ----------------------------------------------------------------------------------- */

typedef struct em_reader em_reader;

typedef struct em_read_counters {
    uint64_t bytes_read;
    uint64_t read_ns;       /* time inside reads, summed over threads */
    uint64_t queue_wait_ns; /* from submission to the start of the read, summed over requests */
    uint64_t reads;         /* finished requests, failed ones included */
    uint64_t failed;
    uint64_t cancelled;
} em_read_counters;

/* Starts `threads` reader threads for up to `capacity` requests that are not yet released. A request is read in pieces
 * of `piece_bytes` (a multiple of the alignment of direct I/O), by all reader threads that are free, so that the first
 * request in the queue ends first. With more than one thread, at most all but one read prefetches at a time, so that a
 * demand finds a free thread. If the system starts fewer threads, the reader runs with those; EM_NO_THREADS if none.
 * Each thread has `staging_bytes` of memory, a multiple of 4096, for records in parts: 0 where there will be none. */
EM_API int32_t em_reader_create(int32_t threads, int32_t capacity, int64_t piece_bytes, int64_t staging_bytes,
                                em_reader **reader);
/* Drops queued requests, waits for reads under way, joins the threads. */
EM_API void em_reader_destroy(em_reader *reader);

/* What the bytes of a part become: a vector of float32, filled up with zeros to a multiple of 16 elements; or the panels
 * of a matrix. */
typedef enum em_landing { EM_VECTOR = 0, EM_PANELS = 1 } em_landing;

/* A part of a record whose bytes in the file are not those that kernels read: the reader thread that has read them
 * brings them into the slot. All weights are kept exactly. */
typedef struct em_part {
    int64_t bytes;        /* in the file */
    int64_t place;        /* the first byte in the slot, a multiple of 64 */
    int64_t panel_stride; /* EM_PANELS: bytes from one panel to the next */
    int32_t landing;      /* em_landing */
    int32_t type;         /* em_rows */
    int32_t format;       /* em_format in the slot: the twin of the type; EM_F32 for a vector */
    int32_t rows;         /* or elements */
    int32_t columns;      /* 1 for a vector */
    int32_t reserved;
} em_part;

/* Where a part lies: any offset of an open file. The low 63 bits of its time of modification must be `modified_ns`, unless
 * that is negative. */
typedef struct em_place {
    int64_t offset;
    int64_t modified_ns;
    int32_t descriptor;
    float scale; /* what all blocks are multiplied by, of a type whose scale is that of a row (NVFP4); elsewhere unused */
} em_place;

/* One request: read `length` bytes at `offset` into `destination`, which must stay valid until the request is done or
 * cancelled. The descriptor may be opened with O_DIRECT if offset, length and destination are aligned for it.
 *
 * Or, with a `part_count`, read so many parts, each from its place, and land them in the slot at `destination`, which must
 * have room for them; `length` is the sum of their bytes, and nothing needs to be aligned in a file. The arrays stay valid
 * as long as the destination. */
typedef struct em_read {
    int64_t offset;
    int64_t length;
    void *destination;
    int64_t crc32c; /* expected checksum of the bytes in the file; negative: not known, not checked */
    int32_t descriptor;
    int32_t part_count;
    const em_part *parts;
    const em_place *places;
} em_read;

/* Queue `count` reads at once, and write the ticket of each. If one is invalid, or there is no room for all (EM_FULL),
 * none is queued. Demands are read before prefetches, each kind in the order of submission. */
EM_API int32_t em_reader_submit(em_reader *reader, const em_read *reads, int32_t count, int32_t demand,
                                int64_t *tickets);
/* Wait for the end of a read, at most `timeout_us` (negative: no limit). EM_OK, EM_TIMEOUT, EM_CANCELLED,
 * EM_READ_FAILED (`*detail` = errno), EM_SHORT_READ (`*detail` = bytes that were there), EM_BAD_CHECKSUM (`*detail` =
 * the checksum that was found), EM_NOT_FINITE or EM_CHANGED_FILE. */
EM_API int32_t em_reader_wait(em_reader *reader, int64_t ticket, int64_t timeout_us, int64_t *detail);
/* Wait until one of `count` reads has succeeded, failed or been cancelled, at most `timeout_us` (negative: no limit).
 * EM_OK, EM_TIMEOUT, or EM_BAD_TICKET if one of the tickets is invalid. */
EM_API int32_t em_reader_wait_any(em_reader *reader, const int64_t *tickets, int32_t count, int64_t timeout_us);
/* 1 if the read has succeeded, failed or been cancelled, 0 if not; negative status for a bad ticket. */
EM_API int32_t em_reader_done(em_reader *reader, int64_t ticket);
/* Make a queued prefetch a demand, behind the demands already queued. */
EM_API int32_t em_reader_promote(em_reader *reader, int64_t ticket);
/* EM_OK if the request is cancelled: no piece of it was or will be read. EM_BUSY if its read has begun or is over. */
EM_API int32_t em_reader_cancel(em_reader *reader, int64_t ticket);
/* Release the ticket. EM_BUSY while the request is queued or being read. */
EM_API int32_t em_reader_release(em_reader *reader, int64_t ticket);
EM_API int32_t em_reader_counters(em_reader *reader, em_read_counters *counters);

/* ---- the pager: which experts are in memory ------------------------------------------------------------ */

/* An expert's key is `layer * experts + expert`. A slot of the arena holds one expert's record as kernels read it.
 * edgemoe/experts/cache.py says what the pager means: it takes the same decisions, victim by victim.
 *
 * The operations Fetch, Experts and Prefetch ask it themselves. No function here locks: one thread at a time uses a pager,
 * that which runs the programs. */

/* Where records are read from. `em_reader_source` makes that of a reader; a function returns what the function of the
 * reader with its name returns. */
typedef struct em_source {
    void *context;
    int32_t (*submit)(void *context, const em_read *reads, int32_t count, int32_t demand, int64_t *tickets);
    int32_t (*wait)(void *context, int64_t ticket, int64_t timeout_us, int64_t *detail);
    int32_t (*wait_any)(void *context, const int64_t *tickets, int32_t count, int64_t timeout_us);
    int32_t (*done)(void *context, int64_t ticket);
    int32_t (*promote)(void *context, int64_t ticket);
    int32_t (*cancel)(void *context, int64_t ticket);
    int32_t (*release)(void *context, int64_t ticket);
} em_source;

EM_API void em_reader_source(em_reader *reader, em_source *source);

typedef enum em_policy_kind { EM_LRU = 0, EM_LFU = 1, EM_LRUF = 2, EM_POLICY_COUNT = 3 } em_policy_kind;

typedef struct em_policy_settings {
    double rate;   /* EM_LFU, EM_LRUF: log(2) by the half-life in uses */
    double weight; /* EM_LRUF: in uses */
    int32_t kind;
    int32_t reserved;
} em_policy_settings;

/* Where an expert's record lies, and how it lands, as in em_read. A layer has no experts beyond its own number: their
 * `length` is 0. */
typedef struct em_record {
    int64_t offset;
    int64_t length;
    int64_t crc32c;
    int32_t descriptor;
    int32_t part_count;
    const em_part *parts;
    const em_place *places;
} em_record;

/* Counts since the pager was made; `CacheStatistics` in cache.py, of the same order, explains each. */
typedef struct em_pager_counters {
    int64_t hits;
    int64_t misses;
    int64_t late_prefetches;
    int64_t demand_bytes;
    int64_t prefetched_bytes;
    int64_t prefetched_reads;
    int64_t useful_prefetches;
    int64_t guessable_uses;
    int64_t guessed_uses;
    int64_t warm_bytes;
    int64_t dropped;
    int64_t from_base;
} em_pager_counters;

/* The read that failed last. */
typedef struct em_read_failure {
    int64_t detail; /* as of em_reader_wait */
    int32_t status;
    int32_t layer;
    int32_t expert;
    int32_t reserved;
} em_read_failure;

/* All arrays are the caller's and stay valid as long as the pager. */
typedef struct em_pager_setup {
    em_source source;
    const em_record *records;    /* (layers, experts) */
    uint8_t *arena;              /* (slot_count, slot_bytes) */
    int32_t *slots;              /* (layers, experts): the pager keeps here the slot of each expert, -1 if it is absent */
    int64_t *tickets;            /* (slot_count): the ticket of the pending read into each slot, or -1 */
    em_pager_counters *counters;
    em_read_failure *failure;
    em_policy_settings policy;
    int64_t slot_bytes;
    int64_t timeout_us;          /* the longest wait for one read; negative: no limit */
    int32_t slot_count;
    int32_t layers;
    int32_t experts;             /* of the layer that has most */
    int32_t reserved;
} em_pager_setup;

/* The most bytes that em_pager_create allocates for these sizes, whatever the policy. */
EM_API uint64_t em_pager_bytes(int32_t slot_count, int32_t layers, int32_t experts);
EM_API int32_t em_pager_create(const em_pager_setup *setup, em_pager **pager);
/* The reads under way must have ended, or the reader be destroyed, before the arena goes. */
EM_API void em_pager_destroy(em_pager *pager);

/* A use of experts of one layer: em_pager_request, then em_pager_wave until it gives no experts, then em_pager_end,
 * which is harmless when repeated and also breaks a use off.
 *
 * A request pins the experts that have a slot, counts hits and misses, promotes prefetches that turned out to be right
 * and cancels those that turned out to be wrong. `scan`: this use does not predict the next one, so experts that are read
 * for it leave before all others. It ends the use before it. EM_BAD_EXPERT for an unknown expert or one named twice. */
EM_API int32_t em_pager_request(em_pager *pager, int32_t layer, const int32_t *experts, int32_t count, int32_t scan);
/* The experts that come next, whose number is `*count`: all that were requested if there are slots for them, else about
 * half of those that have a slot, so that one half is read while the other is computed. They stay pinned until the next
 * call. Reads of a wave may be under way: the caller waits for those in `tickets`, releases each ticket and sets it to
 * -1. An error ends the use, and `failure` says which read it is about. */
EM_API int32_t em_pager_wave(em_pager *pager, const int32_t **experts, int32_t *count);
EM_API void em_pager_end(em_pager *pager);
/* Finds the read of the present wave that failed, or that does not end, and notes it in `failure`; a failed one leaves
 * its expert absent. Returns its status, or EM_OK where all reads of the wave are in order. */
EM_API int32_t em_pager_blame(em_pager *pager);

/* Begins to read experts that a layer will probably use, each once however often it is named; demands go first. */
EM_API int32_t em_pager_prefetch(em_pager *pager, int32_t layer, const int32_t *experts, int32_t count);
/* Begins to read experts, the hottest first, into free slots. They give these up to all others, the coldest first, and
 * do not count as prefetches. Keys that are present or named twice are passed over. */
EM_API int32_t em_pager_warm(em_pager *pager, const int32_t *keys, int32_t count);

/* Makes an expert absent whose record another tier has, so that its slot is free. One that is pinned or loading stays. */
EM_API int32_t em_pager_give_up(em_pager *pager, int32_t layer, int32_t expert);

/* What the tokens of a run are. */
typedef enum em_phase {
    EM_PROMPT = 0, /* of a prompt: experts that are read for more of them than there are slots are a scan */
    EM_DECODE = 1, /* generated */
    EM_VERIFY = 2, /* guessed, and checked by this run */
} em_phase;

/* The phase of the runs that follow; EM_PROMPT at first. */
EM_API int32_t em_pager_set_phase(em_pager *pager, int32_t phase);
/* From now on a fetch notes in `noted` (layers, experts), the caller's, whether each expert that it asks for is in memory:
 * 1 or 0. NULL: it does not. */
EM_API int32_t em_pager_note(em_pager *pager, uint8_t *noted);
/* Whether each expert's record is in memory: 1 or 0 for `count` keys from `first` on. */
EM_API int32_t em_pager_loaded(const em_pager *pager, int32_t first, int32_t count, uint8_t *loaded);

/* ---- the row pager: which pages of small rows are in memory --------------------------------------------- */

/* Rows of one length that follow one another in a file, some to a page, which is the unit that is read and that a slot of
 * the arena holds. Rows number in the order of the file. All arrays are the caller's and stay valid as long as the pager.
 * The operation Neurons asks it. It does not lock: one thread at a time uses a pager, that which runs the programs.
 *
 * A page stays in its slot until another one needs it. Slots make way in turn, those that were used since their last turn
 * once more later (the clock algorithm). */
typedef struct em_row_pager_setup {
    em_source source;
    uint8_t *arena;              /* (slot_count, row_bytes * rows_per_page) */
    int32_t *slots;              /* (pages): the pager keeps here the slot of each page, -1 if it is absent */
    const uint32_t *crc32c;      /* (row_count): the checksum of each row */
    em_pager_counters *counters; /* `hits` and `misses` of rows, `demand_bytes` */
    em_read_failure *failure;    /* `expert` is the row */
    int64_t offset;              /* of the first row in the file, a multiple of 4096 */
    int64_t row_bytes;
    int64_t timeout_us;          /* the longest wait for one read; negative: no limit */
    int32_t descriptor;
    int32_t row_count;
    int32_t rows_per_page;       /* rows_per_page * row_bytes is a multiple of 4096 */
    int32_t slot_count;
} em_row_pager_setup;

/* The most bytes that em_row_pager_create allocates for so many slots. */
EM_API uint64_t em_row_pager_bytes(int32_t slot_count);
EM_API int32_t em_row_pager_create(const em_row_pager_setup *setup, em_row_pager **pager);
/* The reads under way must have ended, or the reader be destroyed, before the arena goes. */
EM_API void em_row_pager_destroy(em_row_pager *pager);

/* ---- layout, for a binding to check its mirror of the structs ------------------------------------------ */

/* Describes every struct of this interface: a line "type 0 size" for each, then "type.field offset size" for each of its
 * fields. Writes at most `room` bytes with the final zero, and returns the length without it. */
EM_API uint64_t em_describe_layout(char *text, uint64_t room);

#ifdef __cplusplus
}
#endif

#endif
