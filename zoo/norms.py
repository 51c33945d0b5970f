"""BatchNorm whose statistics are those of the batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """BatchNorms whose statistics are those of the batch of all processes; the state keeps its names.

    On GPUs torch has a layer for it, which refuses to work on CPUs.
    """
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synchronised
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, SynchronisedBatchNorm.like(module))
    return model


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over `[N,C,H,W]` of all processes, on CPUs; in eval mode it is the plain layer.

    Mean first, then the squares of what is left: the sum of squares alone loses digits in float32.
    """

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> SynchronisedBatchNorm:
        """The same parameters and statistics, shared and not copied."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        made.weight, made.bias = norm.weight, norm.bias
        for key, buffer in norm.named_buffers():
            setattr(made, key, buffer)
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised images; in train mode every process must call it."""
        if not self.training:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        count = _sum(wide.new_tensor([x.numel() / x.shape[1]]))
        mean = _sum(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        self._keep(mean.detach(), (variance * count / (count - 1).clamp_min(1)).detach())
        scale = (variance + self.eps).rsqrt()
        out = centred * (scale if self.weight is None else scale * self.weight)[:, None, None]
        return (out if self.bias is None else out + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as the plain layer does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def _sum(values: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow."""
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(values)
    return total
