/* Arrays that lie one after the other in one piece of memory, whose size the same code counts before there is any. */
#ifndef EDGEMOE_LAYOUT_H
#define EDGEMOE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

/* Each array begins at a multiple of 64 bytes from `base`. With `base` NULL it only counts. */
typedef struct em_layout {
    uint8_t *base;
    size_t bytes;
} em_layout;

static inline void *em_lay_out(em_layout *layout, size_t bytes) {
    void *place = layout->base ? layout->base + layout->bytes : NULL;
    layout->bytes += (bytes + 63) / 64 * 64;
    return place;
}

#endif
