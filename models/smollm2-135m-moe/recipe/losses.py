"""Losses over the vocabulary, with the gradient taken in the forward pass.

Next-token loss and divergence from a teacher share one shape of gradient, (p - q): both are handled
together, a few hundred rows at a time, and only the gradient of the hidden states is kept. A full
matrix of logits never exists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK = 256


class VocabularyLoss(torch.autograd.Function):
    """sum(ce_weight * CE) + sum(kl_weight * KL(teacher || student)) for frozen embeddings.

    Shapes: hidden, teacher (N, D); embedding (V, D); targets, ce_weight, kl_weight (N,).
    Returns the loss, and each row's CE and KL for the log (not differentiable).
    """

    @staticmethod
    def forward(ctx, hidden, embedding, targets, ce_weight, kl_weight, teacher):
        gradient = torch.empty_like(hidden)
        ce, kl = torch.zeros(len(hidden)), torch.zeros(len(hidden))
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            log_p = F.linear(hidden[part], embedding).float().log_softmax(dim=-1)
            index = targets[part].unsqueeze(1)
            ce[part] = -log_p.gather(1, index)[:, 0]
            w_ce, w_kl = ce_weight[part].unsqueeze(1), kl_weight[part].unsqueeze(1)
            slope = log_p.exp().mul_(w_ce + w_kl)
            slope.scatter_add_(1, index, -w_ce)
            if bool((w_kl > 0).any()):
                log_q = F.linear(teacher[part], embedding).float().log_softmax(dim=-1)
                q = log_q.exp()
                kl[part] = (q * log_q.sub_(log_p)).sum(dim=-1)
                slope.sub_(q.mul_(w_kl))
            gradient[part] = slope @ embedding
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(ce, kl)
        return (ce * ce_weight).sum() + (kl * kl_weight).sum(), ce, kl

    @staticmethod
    def backward(ctx, slope, _ce, _kl):
        (gradient,) = ctx.saved_tensors
        return gradient * slope, None, None, None, None, None


def balance_loss(mean_probability: list[torch.Tensor], loads: torch.Tensor) -> torch.Tensor:
    """Load balancing against moving averages of the loads (layers, E) that sum to 1 in each layer.

    It is 1 for even loads. Only the probabilities carry a gradient.
    """
    probability = torch.stack(mean_probability)
    return (probability * loads).sum(dim=1).mean() * loads.shape[1]
