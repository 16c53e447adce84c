/* Where the next prefetch of a panel's groups goes. Payloads, scales, minimums, factors and offsets are streams of their own,
 * and after the last group that is read of a panel (its `span` groups from `first` on) they go on in the next panel, which
 * the processor's own prefetcher would have to find out anew each time. (Behind the last panel of all a prefetch does
 * nothing.) The format is known when this is compiled. */
#ifndef EDGEMOE_LOOKAHEAD_H
#define EDGEMOE_LOOKAHEAD_H

#include "../kernels.h"

typedef struct em_lookahead {
    const uint8_t *panel;
    int32_t group;
    int32_t left; /* groups before the streams go on in the next panel */
    int32_t first, span;
    size_t panel_bytes;
    em_sections at;
} em_lookahead;

static inline em_lookahead em_look_ahead(const uint8_t *panel, int32_t group_count, int32_t first, int32_t span,
                                         int format, size_t panel_bytes, int32_t groups_ahead) {
    const int32_t ahead = groups_ahead < span ? groups_ahead : span, in_span = ahead % span;
    return (em_lookahead){
        .panel = ahead == span ? panel + panel_bytes : panel,
        .group = first + in_span,
        .left = span - in_span,
        .first = first,
        .span = span,
        .panel_bytes = panel_bytes,
        .at = em_sections_of(format, group_count),
    };
}

static inline void em_prefetch_group(em_lookahead *next, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const size_t group = (size_t)next->group, shared = group >> numbers.scale_shift;
    const size_t payload_bytes = em_payload_bytes(format);
    const uint8_t *payload = next->panel + (group >> numbers.block_shift) * payload_bytes;
    if ((group & (((size_t)1 << numbers.block_shift) - 1)) == 0) {
        for (size_t line = 0; line < payload_bytes; line += EM_LINE_BYTES) __builtin_prefetch(payload + line);
    }
    const uint8_t *scales = next->panel + next->at.scales;
    if (numbers.factor == EM_FACTOR_BESIDE) { /* more than a line for the groups that share them */
        __builtin_prefetch(scales + (group * em_scales_bytes(format) >> numbers.scale_shift));
    } else {
        __builtin_prefetch(scales + shared * em_scales_bytes(format));
    }
    if (numbers.has_minimums) {
        __builtin_prefetch(next->panel + next->at.minimums + shared * em_minimums_bytes(format));
    }
    if (em_factors_bytes(format)) {
        __builtin_prefetch(next->panel + next->at.factors + group * em_factors_bytes(format));
    }
    if (em_offsets_bytes(format)) {
        __builtin_prefetch(next->panel + next->at.offsets + group * em_offsets_bytes(format));
    }
    next->group++;
    if (--next->left == 0) {
        next->panel += next->panel_bytes;
        next->group = next->first;
        next->left = next->span;
    }
}

#endif
