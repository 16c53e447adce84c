"""Starts the routers: each expert takes a cluster of the FFN inputs of its layer.

The inputs of a sample of training text are averaged over a window of tokens, so that clusters
follow topic rather than single tokens, and split by soft balanced k-means. Ridge regression from
the plain inputs onto the soft assignments gives the router's rows, scaled so that its logits
deviate by a set amount.
"""

from __future__ import annotations

import torch
from batches import Batch, Batches
from decoder import Decoder, Pass, RouterTrace, segment_mask


def window_mean(x: torch.Tensor, segments: torch.Tensor, window: int) -> torch.Tensor:
    """Mean of (B, T, D) over the last ``window`` tokens of the same segment."""
    out = torch.empty_like(x)
    for row in range(x.shape[0]):
        for segment in segments[row].unique():
            place = segments[row] == segment
            total = x[row, place].cumsum(dim=0)
            count = torch.arange(1, len(total) + 1).unsqueeze(1)
            total[window:] = total[window:] - total[:-window].clone()
            out[row, place] = total / count.clamp(max=window)
    return out


def balanced(scores: torch.Tensor, rounds: int = 12) -> torch.Tensor:
    """Soft assignments (N, E) with equal column sums, by alternating normalisation."""
    log_p = scores.log_softmax(dim=1)
    for _ in range(rounds):
        log_p = log_p - log_p.logsumexp(dim=0, keepdim=True)
        log_p = log_p - log_p.logsumexp(dim=1, keepdim=True)
    return log_p.exp()


def cluster(x: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Soft balanced k-means of (N, D): the assignments (N, E)."""
    x = (x - x.mean(dim=0)) / x.std(dim=0).clamp(min=1e-6)
    x = torch.nn.functional.normalize(x, dim=1)
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    while len(centres) < count:
        far = (1 - x @ centres.T).min(dim=1).values.clamp(min=0)
        chosen = torch.multinomial(far.square(), 1, generator=generator)
        centres = torch.cat([centres, x[chosen]])
    for _ in range(15):
        share = balanced(x @ centres.T / 0.05)
        centres = torch.nn.functional.normalize(share.T @ x, dim=1)
    return share


@torch.no_grad()
def start_routers(model: Decoder, batches: Batches, settings: dict) -> None:
    """Sets every layer's router from a sample of the training batches (negative steps)."""
    routers, training = settings["routers"], settings["training"]
    rows = training["text_rows"] + training["chat_rows"]
    per_batch = rows * settings["corpora"]["row_tokens"]
    generator = torch.Generator().manual_seed(training["seed"])
    plain: list[list[torch.Tensor]] = [[] for _ in model.layers]
    smooth: list[list[torch.Tensor]] = [[] for _ in model.layers]
    for number in range(routers["tokens"] // per_batch):
        batch: Batch = batches.at(10_000_000 + number)
        trace = RouterTrace()
        how = Pass(routed=False, trace=trace, keep_inputs=True)
        model(batch.ids, how, segment_mask(batch.segments))
        first = torch.ones_like(batch.segments, dtype=torch.bool)
        first[:, 1:] = batch.segments[:, 1:] != batch.segments[:, :-1]
        for index, x in enumerate(trace.inputs):
            mean = window_mean(x.masked_fill(first.unsqueeze(2), 0), batch.segments,
                               routers["window"])  # fmt: skip
            plain[index].append(x[~first])
            smooth[index].append(mean[~first])
    for index, layer in enumerate(model.layers):
        x = torch.cat(plain[index])
        share = cluster(torch.cat(smooth[index]), layer.router.shape[0], generator)
        target = share - share.mean(dim=0)
        strength = routers["ridge"] * len(x) * x.square().mean()
        gram = x.T @ x + strength * torch.eye(x.shape[1])
        weight = torch.linalg.solve(gram, x.T @ target).T
        deviation = (x @ weight.T).std()
        layer.router.copy_(weight * (routers["logit_deviation"] / deviation))
