/* edgemoe's native library: the operations of a decoder, a thread pool, and reader threads for experts.
 *
 * The meaning of every operation stands in edgemoe/kernels/operations.py and reference.py, the bytes of a
 * matrix in formats.py; this header mirrors their fields. All arrays are C-contiguous. Letters:
 *   T tokens of a run, D model width, H query heads, G key/value heads, W head width, E experts,
 *   K experts used per token, F FFN width, C context length, V vocabulary.
 *
 * Results are the same to the bit for any number of threads, any instruction set, and any way of cutting
 * a prompt into runs: threads share out output rows, never a sum, and every sum has one written order.
 *
 * Nothing here aborts or allocates during a run; functions return a status. */
#ifndef EDGEMOE_H
#define EDGEMOE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EM_API __attribute__((visibility("default")))

/* Raised by one with every change to this header that a caller must know of. */
#define EM_ABI_VERSION 6

typedef enum em_status {
    EM_OK = 0,
    EM_BAD_ARGUMENT = 1,   /* a count, pointer or option outside its range */
    EM_NO_MEMORY = 2,
    EM_NO_THREADS = 3,     /* the system refused to start a thread */
    EM_FORKED = 4,         /* the pool or reader belongs to the process that forked this one */
    EM_BUSY = 5,           /* another thread is running on this pool; or a read is still under way */
    EM_BAD_OPERATION = 6,  /* an unknown kind of operation or format */
    EM_BAD_POSITION = 7,   /* position + tokens is beyond the context */
    EM_BAD_TOKEN_ID = 8,   /* a token id outside the vocabulary */
    EM_BAD_EXPERT = 9,     /* an expert number or slot out of range */
    EM_SMALL_SCRATCH = 10, /* less scratch than em_program_scratch_bytes says */
    EM_TIMEOUT = 11,
    EM_CANCELLED = 12,
    EM_READ_FAILED = 13,   /* the system's error number is in em_read_result */
    EM_SHORT_READ = 14,    /* the file ended early */
    EM_FULL = 15,          /* no free request in the reader */
    EM_BAD_TICKET = 16,    /* a ticket that was never given, or is released */
    EM_BAD_CHECKSUM = 17,  /* what was read is not what was written */
} em_status;

EM_API int32_t em_abi_version(void);
EM_API const char *em_status_text(int32_t status);

/* ---- instruction sets ------------------------------------------------------------------------------- */

typedef struct em_kernels em_kernels;

/* The names of the sets that this build holds and this processor and system can run, best first. */
EM_API int32_t em_isa_count(void);
EM_API const char *em_isa_name(int32_t index);
/* Kernels of that name, or NULL where it is not among the above. */
EM_API const em_kernels *em_kernels_for(const char *isa);

/* ---- checksums -------------------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli; RFC 3720 has examples) of bytes that follow those whose checksum is `crc`, 0 at the beginning. */
EM_API uint32_t em_crc32c(const em_kernels *kernels, uint32_t crc, const void *data, uint64_t bytes);
/* That of bytes of two parts, from the checksum of each by itself and the length of the second. */
EM_API uint32_t em_crc32c_combine(uint32_t first, uint32_t second, uint64_t second_bytes);

/* ---- thread pool ------------------------------------------------------------------------------------ */

typedef struct em_pool em_pool;

#define EM_THREADS_MAX 256

/* `threads` counts the caller, so that threads - 1 workers start. A worker without work spins for
 * `spin_us` and then sleeps. One run at a time: a second caller is told EM_BUSY. */
EM_API int32_t em_pool_create(int32_t threads, int32_t spin_us, em_pool **pool);
EM_API void em_pool_destroy(em_pool *pool);
EM_API int32_t em_pool_threads(const em_pool *pool);

/* Reads `bytes` of memory once, shared out over the pool's threads, and nothing else: what memory can give, against
 * which kernels are held. `data` is 64-byte aligned, `bytes` a multiple of 64. `*sum` becomes the sum of the first
 * 64-bit word of each 64 bytes, `*elapsed_ns` how long it took. */
EM_API int32_t em_read_memory(em_pool *pool, const void *data, uint64_t bytes, uint64_t *sum, uint64_t *elapsed_ns);

/* ---- operations ------------------------------------------------------------------------------------- */

typedef enum em_format { EM_F32 = 0, EM_F16 = 1, EM_Q8 = 2, EM_Q4 = 3, EM_Q4M = 4, EM_FORMAT_COUNT = 5 } em_format;

typedef struct em_matrix {
    const uint8_t *data; /* 64-byte aligned */
    int32_t format;
    int32_t rows;
    int32_t columns;
    int32_t reserved;
} em_matrix;

typedef struct em_embed {
    const int32_t *ids; /* (T) */
    float *output;      /* (T, D) */
    em_matrix matrix;   /* (V, D) */
    float scale;
    int32_t reserved;
} em_embed;

typedef struct em_rms_norm {
    const float *input;  /* (T, heads * width) */
    const float *weight; /* (width) */
    float *output;       /* as input, or the same buffer */
    float epsilon;
    int32_t heads;
    int32_t width;
    int32_t reserved;
} em_rms_norm;

#define EM_LINEAR_PARTS 4

typedef struct em_linear_part {
    em_matrix matrix;
    const float *bias; /* (rows), or NULL */
    float *output;     /* (T, rows) */
} em_linear_part;

typedef struct em_linear {
    const float *input; /* (T, columns) */
    em_linear_part parts[EM_LINEAR_PARTS];
    int32_t part_count;
    int32_t accumulate;
    float scale;
    int32_t reserved;
} em_linear;

typedef struct em_rope {
    float *values;       /* (T, heads * width) */
    const float *cosine; /* (C, width / 2) */
    const float *sine;   /* (C, width / 2) */
    int32_t heads;
    int32_t width;
    int32_t context;
    int32_t reserved;
} em_rope;

/* Keys or values of one layer. Element i of a row of EM_Q8 is (float)int8 * (float)scale of its group of 32. */
typedef struct em_cache {
    void *elements;   /* (G, C, W): float32, float16 or int8, by the operation's `format` */
    uint16_t *scales; /* (G, C, groups of 32 of W): float16, of EM_Q8; else NULL */
} em_cache;

typedef struct em_store_kv {
    const float *keys;   /* (T, G * W) */
    const float *values; /* (T, G * W) */
    em_cache key_cache;
    em_cache value_cache;
    int32_t format; /* of both caches: EM_F32, EM_F16 or EM_Q8 */
    int32_t groups;
    int32_t width;
    int32_t context;
} em_store_kv;

typedef struct em_attention {
    const float *query; /* (T, H * W) */
    float *output;      /* (T, H * W) */
    em_cache key_cache;
    em_cache value_cache;
    int32_t format; /* of both caches: EM_F32, EM_F16 or EM_Q8 */
    int32_t heads;
    int32_t groups;
    int32_t width;
    int32_t context;
    float scale;
} em_attention;

typedef struct em_route {
    const float *logits;      /* (T, E) */
    int32_t *experts;         /* (T, K) */
    float *weights;           /* (T, K) */
    const int32_t *in_memory; /* (E): not 0 where an expert gets the bonus; or NULL */
    int32_t expert_count;
    int32_t used;
    int32_t renormalise;
    float bonus; /* as a share of each token's range of logits */
} em_route;

typedef struct em_gated_ffn {
    const float *input; /* (T, D) */
    float *output;      /* (T, D) */
    em_matrix gate_up;  /* (2 * F rounded up to 16, D), gate and up panels interleaved */
    em_matrix down;     /* (D, F) */
} em_gated_ffn;

typedef struct em_reader em_reader; /* see "expert reads" below */

/* Records that may still be on their way into the arena when an operation begins. */
typedef struct em_arrivals {
    em_reader *reader;   /* NULL: every record is there */
    int64_t *tickets;    /* (slot_count): of the read into a slot, or -1 where its record is there */
    int64_t timeout_us;  /* for which the next record is awaited; negative: for ever */
} em_arrivals;

/* Experts whose records are there are computed first, the others as they land. The ticket of a record that was awaited
 * is released, and becomes -1. Where a read fails, or none ends in time, the run ends with that status; the tickets
 * of what it did not use are left as they are. */
typedef struct em_experts {
    const float *input;     /* (T, D) */
    const int32_t *experts; /* (T, K) */
    const int32_t *slots;   /* (E): a record's place in the arena, or -1: then the expert's rows are left */
    const uint8_t *arena;   /* (slot_count, slot_bytes) */
    float *output;          /* (T, K, D) */
    int64_t slot_bytes;
    int64_t down_offset; /* of the down matrix in a record; gate_up is at 0 */
    int32_t slot_count;
    int32_t expert_count;
    int32_t used;
    int32_t model_width;
    int32_t ffn_width;
    int32_t gate_up_format;
    int32_t down_format;
    int32_t reserved;
    em_arrivals arrivals;
} em_experts;

typedef struct em_combine {
    float *residual;          /* (T, D) */
    const float *routed;      /* (T, K, D), or NULL */
    const float *weights;     /* (T, K), or NULL with `routed` */
    const float *shared;      /* (T, D), or NULL */
    const float *shared_gate; /* (T, 1), or NULL */
    int32_t used;
    int32_t width;
    float scale;
    int32_t reserved;
} em_combine;

typedef enum em_kind {
    EM_EMBED = 0,
    EM_RMS_NORM = 1,
    EM_LINEAR = 2,
    EM_ROPE = 3,
    EM_STORE_KV = 4,
    EM_ATTENTION = 5,
    EM_ROUTE = 6,
    EM_GATED_FFN = 7,
    EM_EXPERTS = 8,
    EM_COMBINE = 9,
    EM_KIND_COUNT = 10
} em_kind;

typedef struct em_operation {
    int32_t kind;
    int32_t reserved;
    union {
        em_embed embed;
        em_rms_norm rms_norm;
        em_linear linear;
        em_rope rope;
        em_store_kv store_kv;
        em_attention attention;
        em_route route;
        em_gated_ffn gated_ffn;
        em_experts experts;
        em_combine combine;
    } as;
} em_operation;

/* Working memory that programs share, since one runs at a time: 64-byte aligned, owned by the caller. */
typedef struct em_scratch {
    uint8_t *data;
    uint64_t bytes;
} em_scratch;

/* Where the runs of a program spent their time: each run adds to it, the owner sets it to zero. */
typedef struct em_operation_time {
    uint64_t elapsed_ns;
    uint64_t waited_ns; /* of it, the caller's thread woke workers and waited for them to finish their part */
    uint64_t disk_ns;   /* of it, there was nothing to do until a record landed */
} em_operation_time;

typedef struct em_program_times {
    em_operation_time *operations; /* (operation_count) */
    uint64_t elapsed_ns;           /* whole runs, from call to return: a little more than all operations */
} em_program_times;

typedef struct em_program {
    const em_kernels *kernels;
    em_pool *pool;
    const em_operation *operations;
    const em_scratch *scratch;
    em_program_times *times; /* NULL: no clock is read */
    uint64_t scratch_bytes;  /* that em_program_scratch_bytes says for `tokens_max` */
    int32_t operation_count;
    int32_t tokens_max;
    int32_t failed_operation; /* written by a run that fails: which one it was, or -1 */
    int32_t reserved;
} em_program;

/* Scratch for runs of up to `tokens` tokens. */
EM_API uint64_t em_program_scratch_bytes(const em_operation *operations, int32_t count, int32_t tokens);

/* Every operation in order for `tokens` tokens, the first of which stands at `position`. */
EM_API int32_t em_program_run(em_program *program, int32_t tokens, int32_t position);

/* ---- expert reads ----------------------------------------------------------------------------------- */

typedef struct em_read_counters {
    uint64_t bytes_read;
    uint64_t read_ns;       /* time inside reads, summed over threads */
    uint64_t queue_wait_ns; /* from submission to the start of the read, summed over requests */
    uint64_t reads;         /* finished, failed ones too */
    uint64_t failed;
    uint64_t cancelled;
} em_read_counters;

/* Starts `threads` readers for up to `capacity` requests that are not yet released. A request is read in pieces of
 * `piece_bytes` (a multiple of what direct I/O asks for), by as many readers as are free, so that the first in the
 * queue lands first. With more than one thread, one of them never takes a piece of a prediction, so that a demand
 * finds a reader free. Where the system starts fewer threads, those read; EM_NO_THREADS if it starts none. */
EM_API int32_t em_reader_create(int32_t threads, int32_t capacity, int64_t piece_bytes, em_reader **reader);
/* Drops what is queued, waits for the reads under way, joins the threads. */
EM_API void em_reader_destroy(em_reader *reader);

/* `length` bytes at `offset` into `destination`, which must stay valid until the request is done or cancelled. The
 * descriptor may be opened with O_DIRECT if offset, length and destination are aligned for it. */
typedef struct em_read {
    int64_t offset;
    int64_t length;
    void *destination;
    int64_t crc32c; /* that the bytes must have, negative where none is known */
    int32_t descriptor;
    int32_t reserved;
} em_read;

/* Queue `count` reads at once, and give each its ticket; none of them unless all are in order and there is room
 * (EM_FULL). Demands go before predictions, each kind in its order. */
EM_API int32_t em_reader_submit(em_reader *reader, const em_read *reads, int32_t count, int32_t demand,
                                int64_t *tickets);
/* Wait for the end of a read, at most `timeout_us` (negative: for ever). EM_OK, EM_TIMEOUT, EM_CANCELLED,
 * EM_READ_FAILED (`*detail` = errno), EM_SHORT_READ (`*detail` = bytes that were there) or EM_BAD_CHECKSUM (`*detail` =
 * the checksum that was found). */
EM_API int32_t em_reader_wait(em_reader *reader, int64_t ticket, int64_t timeout_us, int64_t *detail);
/* Wait until one of `count` reads is over (well or not) or cancelled, at most `timeout_us` (negative: for ever). EM_OK,
 * EM_TIMEOUT, or EM_BAD_TICKET where one of them is none. */
EM_API int32_t em_reader_wait_any(em_reader *reader, const int64_t *tickets, int32_t count, int64_t timeout_us);
/* 1 if the read is over (well or not) or cancelled, 0 if not; negative status for a bad ticket. */
EM_API int32_t em_reader_done(em_reader *reader, int64_t ticket);
/* Make a queued prediction a demand, behind the demands already queued. */
EM_API int32_t em_reader_promote(em_reader *reader, int64_t ticket);
/* EM_OK if no piece of the request had begun and now none will, EM_BUSY if it has begun or is over. */
EM_API int32_t em_reader_cancel(em_reader *reader, int64_t ticket);
/* Give the ticket back. EM_BUSY while the request is queued or being read. */
EM_API int32_t em_reader_release(em_reader *reader, int64_t ticket);
EM_API int32_t em_reader_counters(em_reader *reader, em_read_counters *counters);

/* ---- sizes, for a binding to check its mirror of the structs ------------------------------------------ */

EM_API uint64_t em_sizeof_operation(void);
EM_API uint64_t em_sizeof_kind(int32_t kind); /* of one member of the union; 0 for an unknown kind */
EM_API uint64_t em_sizeof_program(void);
EM_API uint64_t em_sizeof_program_times(void);
EM_API uint64_t em_sizeof_read(void);
EM_API uint64_t em_sizeof_read_counters(void);

#ifdef __cplusplus
}
#endif

#endif
