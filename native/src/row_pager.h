/* The row pager as the operations see it. */
#ifndef EDGEMOE_ROW_PAGER_H
#define EDGEMOE_ROW_PAGER_H

#include "edgemoe.h"

/* Brings the pages of rows `first + numbers[i]` to slots, where they stay until the next call. EM_FULL where there are more
 * pages than slots. A page whose read failed is absent. */
int32_t em_row_pager_fetch(em_row_pager *pager, const int32_t *numbers, int64_t count, int64_t first);
/* Nanoseconds for which the pager has waited for reads so far. */
uint64_t em_row_pager_waited_ns(const em_row_pager *pager);

#endif
