/* Version, struct sizes and status texts; a binding compares them with its own to detect a mismatch. */
#include "edgemoe.h"

int32_t em_abi_version(void) { return EM_ABI_VERSION; }

uint64_t em_sizeof_operation(void) { return sizeof(em_operation); }

uint64_t em_sizeof_program(void) { return sizeof(em_program); }

uint64_t em_sizeof_program_times(void) { return sizeof(em_program_times); }

uint64_t em_sizeof_read(void) { return sizeof(em_read); }

uint64_t em_sizeof_read_counters(void) { return sizeof(em_read_counters); }

uint64_t em_sizeof_pager_setup(void) { return sizeof(em_pager_setup); }

uint64_t em_sizeof_pager_counters(void) { return sizeof(em_pager_counters); }

uint64_t em_sizeof_record(void) { return sizeof(em_record); }

uint64_t em_sizeof_read_failure(void) { return sizeof(em_read_failure); }

uint64_t em_sizeof_kind(int32_t kind) {
    switch (kind) {
    case EM_EMBED: return sizeof(em_embed);
    case EM_RMS_NORM: return sizeof(em_rms_norm);
    case EM_LINEAR: return sizeof(em_linear);
    case EM_ROPE: return sizeof(em_rope);
    case EM_STORE_KV: return sizeof(em_store_kv);
    case EM_ATTENTION: return sizeof(em_attention);
    case EM_ROUTE: return sizeof(em_route);
    case EM_GATED_FFN: return sizeof(em_gated_ffn);
    case EM_EXPERTS: return sizeof(em_experts);
    case EM_COMBINE: return sizeof(em_combine);
    default: return 0;
    }
}

const char *em_status_text(int32_t status) {
    switch (status) {
    case EM_OK: return "ok";
    case EM_BAD_ARGUMENT: return "an argument is out of range";
    case EM_NO_MEMORY: return "out of memory";
    case EM_NO_THREADS: return "the system refused to start a thread";
    case EM_FORKED: return "threads do not survive a fork: make a new backend in the child process";
    case EM_BUSY: return "already in use by another call";
    case EM_BAD_OPERATION: return "unknown kind of operation or weight format";
    case EM_BAD_POSITION: return "the tokens reach beyond the context";
    case EM_BAD_TOKEN_ID: return "a token id is outside the vocabulary";
    case EM_BAD_EXPERT: return "an expert number or its slot is out of range";
    case EM_SMALL_SCRATCH: return "the scratch memory is too small";
    case EM_TIMEOUT: return "not finished in time";
    case EM_CANCELLED: return "cancelled";
    case EM_READ_FAILED: return "the system could not read";
    case EM_SHORT_READ: return "the file ended early";
    case EM_FULL: return "too many requests are open";
    case EM_BAD_TICKET: return "no such request";
    case EM_BAD_CHECKSUM: return "what was read is not what was written";
    default: return "unknown status";
    }
}
