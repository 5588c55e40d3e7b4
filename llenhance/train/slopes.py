"""PReLU that learns as fast as it computes: on CPUs, torch's own way back takes ten times its way
there, a quarter of all the time that DLN trains."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _OneSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        of_x = torch.ops.aten.leaky_relu_backward(gradient, x, slope.item(), False)
        of_slope = (gradient * x.clamp(max=0)).sum(dtype=torch.float32)
        return of_x, of_slope.to(slope.dtype).reshape(slope.shape)


class QuickPReLU(nn.PReLU):
    """The same numbers under the same name as nn.PReLU with one slope, in any shape."""

    def forward(self, x: Tensor) -> Tensor:
        quick: Any = _OneSlope.apply  # it has no types
        found: Tensor = quick(x, self.weight.to(x.dtype))
        return found


def quickened(network: nn.Module) -> nn.Module:
    """The network with each nn.PReLU of one slope replaced in place."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
                quick = QuickPReLU()
                quick.weight = layer.weight
                setattr(parent, name, quick)
    return network
