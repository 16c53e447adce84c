/* Where the next prefetch of a panel's groups goes. Payloads, scales and minimums are streams of their own, and after
 * the last group that is read of a panel (its `span` groups from `first` on) they go on in the next panel, which the
 * processor's own prefetcher would have to find out anew each time. (Behind the last panel of all a prefetch does nothing.) The format
 * is known when this is compiled. */
#ifndef EDGEMOE_LOOKAHEAD_H
#define EDGEMOE_LOOKAHEAD_H

#include "../kernels.h"

typedef struct em_lookahead {
    const uint8_t *payload;
    const uint8_t *scales;
    int32_t left; /* groups before the streams go on in the next panel */
} em_lookahead;

static inline em_lookahead em_look_ahead(const uint8_t *panel, int32_t group_count, int32_t first, int32_t span,
                                         int format, size_t panel_bytes, int32_t groups_ahead) {
    const size_t payload_bytes = em_payload_bytes(format);
    const int32_t ahead = groups_ahead < span ? groups_ahead : span;
    if (ahead == span) panel += panel_bytes;
    const int32_t in_span = ahead % span, in_panel = first + in_span;
    const uint8_t *scales = panel + (size_t)group_count * payload_bytes;
    return (em_lookahead){
        .payload = panel + (size_t)in_panel * payload_bytes,
        .scales = scales + (size_t)in_panel * em_scales_bytes(format),
        .left = span - in_span,
    };
}

static inline void em_prefetch_group(em_lookahead *next, int32_t group_count, int32_t span, int format,
                                     size_t panel_bytes) {
    const size_t payload_bytes = em_payload_bytes(format), scales_bytes = em_scales_bytes(format);
    for (size_t line = 0; line < payload_bytes; line += 64) __builtin_prefetch(next->payload + line);
    __builtin_prefetch(next->scales);
    if (format == EM_Q4M) __builtin_prefetch(next->scales + (size_t)group_count * scales_bytes);
    next->payload += payload_bytes;
    next->scales += scales_bytes;
    if (--next->left == 0) {
        next->payload += panel_bytes - (size_t)span * payload_bytes;
        next->scales += panel_bytes - (size_t)span * scales_bytes;
        next->left = span;
    }
}

#endif
