/* The operations that ask the pager for records before the experts are computed: Fetch where a layer's routing is known,
 * Prefetch on a guess at the next layer's. Neither computes anything. */
#include "../operations.h"
#include "../pager.h"

int32_t em_run_fetch(const em_fetch *f, const em_run *run) {
    em_pager *pager = f->paged.pager;
    if (!pager) return EM_OK;
    const em_choice choice = {.experts = f->experts,
                              .weights = f->weights,
                              .tokens = run->tokens,
                              .top_k = f->top_k,
                              .drop_cold = f->drop_cold,
                              .from_base = f->from_base != 0};
    const uint64_t waited_ns = em_pager_waited_ns(pager);
    const int32_t status = em_pager_fetch(pager, (int32_t)f->paged.layer, &choice);
    if (run->disk_ns) *run->disk_ns += em_pager_waited_ns(pager) - waited_ns;
    return status;
}

int32_t em_run_prefetch(const em_prefetch *f, const em_run *run) {
    em_pager *pager = f->paged.pager;
    if (!pager) return EM_OK;
    const uint64_t waited_ns = em_pager_waited_ns(pager);
    const int32_t status = em_pager_prefetch(pager, (int32_t)f->paged.layer, f->experts, run->tokens * f->top_k);
    if (run->disk_ns) *run->disk_ns += em_pager_waited_ns(pager) - waited_ns;
    return status;
}

EM_NO_SCRATCH(fetch)
EM_NO_SCRATCH(prefetch)
