# INTERIM
__all__ = ['conv2d_loops', 'conv2d_unfold', 'leaky_gain']
import math

import torch
from torch import Tensor


def _conv_shape(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> tuple[int, int]:
    "Height and width of a convolution's output; raises `ValueError` when its arguments do not fit together."
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(f"x should be (n, ci, h, w) and weight (co, ci, kh, kw), not {tuple(x.shape)} and {tuple(weight.shape)}")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has {x.shape[1]} channels, weight wants {weight.shape[1]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias should have shape ({weight.shape[0]},), not {tuple(bias.shape)}")
    if stride < 1 or padding < 0: raise ValueError(f"stride must be 1 or more and padding 0 or more, not {stride} and {padding}")
    (h, w), (kh, kw) = x.shape[2:], weight.shape[2:]
    if h + 2*padding < kh or w + 2*padding < kw:
        raise ValueError(f"a {kh}x{kw} kernel does not fit in {h}x{w} with padding {padding}")
    return (h + 2*padding - kh) // stride + 1, (w + 2*padding - kw) // stride + 1


def _pad(x: Tensor, padding: int) -> Tensor:
    "`x (n, ci, h, w)` with `padding` rows and columns of zeros on every side."
    if not padding: return x
    n, ci, h, w = x.shape
    out = x.new_zeros(n, ci, h + 2*padding, w + 2*padding)
    out[:, :, padding:padding+h, padding:padding+w] = x
    return out


def conv2d_loops(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """A convolution as its definition reads: one window, one filter, one multiply-and-add at a time.

    `x (n, ci, h, w)`, `weight (co, ci, kh, kw)`, `bias (co,)` or none -> `(n, co, oh, ow)` with
    `oh = (h + 2*padding - kh) // stride + 1`. Raises `ValueError` for shapes that do not fit. For understanding, not for use.
    """
    oh, ow = _conv_shape(x, weight, bias, stride, padding)
    x, (co, _, kh, kw) = _pad(x, padding), weight.shape
    out = x.new_zeros(len(x), co, oh, ow)
    for n in range(len(x)):
        for o in range(co):
            for i in range(oh):
                for j in range(ow):
                    window = x[n, :, i*stride:i*stride+kh, j*stride:j*stride+kw]           # (ci, kh, kw)
                    out[n, o, i, j] = (window * weight[o]).sum() + (0 if bias is None else bias[o])
    return out


def conv2d_unfold(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """A convolution as one matrix product: every window a row of patches, every filter a column of weights.

    Arguments, result and errors as in `conv2d_loops`. The patches take `kh*kw / stride**2` times the memory of `x`.
    """
    oh, ow = _conv_shape(x, weight, bias, stride, padding)
    (co, ci, kh, kw), dev = weight.shape, x.device
    rows = stride*torch.arange(oh, device=dev)[:, None] + torch.arange(kh, device=dev)             # (oh, kh)
    cols = stride*torch.arange(ow, device=dev)[:, None] + torch.arange(kw, device=dev)             # (ow, kw)
    patches = _pad(x, padding)[:, :, rows[:, None, :, None], cols[None, :, None, :]]       # (n, ci, oh, ow, kh, kw)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(x), oh, ow, ci*kh*kw)
    out = patches @ weight.reshape(co, -1).T                                                # (n, oh, ow, co)
    return (out if bias is None else out + bias).permute(0, 3, 1, 2)


def leaky_gain(a: float) -> float:
    """How much wider a layer's weights must be when a leaky ReLU of slope `a` follows: sqrt(2 / (1 + a^2)).

    From Kaiming He et al., https://arxiv.org/abs/1502.01852; 1 for a linear layer (`a=1`), sqrt(2) for a plain ReLU (`a=0`).
    """
    return math.sqrt(2 / (1 + a**2))
