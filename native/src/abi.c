/* Version, layout of the structs and status texts; a binding compares them with its own to detect a mismatch. */
#include <stddef.h>
#include <stdio.h>

#include "edgemoe.h"

int32_t em_abi_version(void) { return EM_ABI_VERSION; }

typedef struct place {
    const char *name;
    size_t offset;
    size_t bytes;
} place;

#define DESCRIBE_STRUCT(type) {#type, 0, sizeof(type)},
#define DESCRIBE_FIELD(type, field) {#type "." #field, offsetof(type, field), sizeof(((type *)0)->field)},

static const place places[] = {EM_LAYOUT(DESCRIBE_STRUCT, DESCRIBE_FIELD)};

uint64_t em_describe_layout(char *text, uint64_t room) {
    uint64_t length = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const size_t left = length < room ? (size_t)(room - length) : 0;
        length += (uint64_t)snprintf(left ? text + length : NULL, left, "%s %zu %zu\n", places[i].name,
                                     places[i].offset, places[i].bytes);
    }
    return length;
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
    case EM_BAD_POSITION: return "a row's position, sequence or page does not exist";
    case EM_BAD_TOKEN_ID: return "a token id is outside the vocabulary";
    case EM_BAD_EXPERT: return "an expert number, its slot or its layout is out of range, or its record contradicts itself";
    case EM_SMALL_SCRATCH: return "the scratch memory is too small";
    case EM_TIMEOUT: return "not finished in time";
    case EM_CANCELLED: return "cancelled";
    case EM_READ_FAILED: return "the system could not read";
    case EM_SHORT_READ: return "the file ended early";
    case EM_FULL: return "too many requests are open";
    case EM_BAD_TICKET: return "no such request";
    case EM_BAD_CHECKSUM: return "what was read is not what was written";
    case EM_NOT_FINITE: return "a weight or scale is not a finite number";
    case EM_CHANGED_FILE: return "the file was changed while it was open";
    case EM_BAD_RECORD: return "a matrix in the code sub1 contradicts itself";
    default: return "unknown status";
    }
}
