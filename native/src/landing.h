/* How a part of a record lands: rows of numbers, as files have them, become the bytes that kernels read. */
#ifndef EDGEMOE_LANDING_H
#define EDGEMOE_LANDING_H

#include <stdbool.h>

#include "edgemoe.h"

/* Direct reads begin and end at multiples of this many bytes. */
enum { EM_PAGE_BYTES = 4096 };

/* Whether a part names types, sizes and places that exist. */
bool em_part_is_sound(const em_part *part);
/* The first byte of the slot behind those that a sound part writes. */
int64_t em_part_end(const em_part *part);
/* The most bytes of a sound part that land in one go from a staging buffer of `room` bytes, whole panels or 16 elements
 * at a time; 0 where the buffer is too small. */
int64_t em_part_step(const em_part *part, int64_t room);
/* Lands `bytes` of a part from its byte `begin` on, both multiples of its step or, for `bytes`, what is left. `from` may
 * have any alignment; `scale` is that of its place. False where a scale or a weight is not finite. */
bool em_part_land(const em_part *part, float scale, int64_t begin, int64_t bytes, const uint8_t *from, uint8_t *slot);

#endif
