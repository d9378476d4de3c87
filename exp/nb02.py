# INTERIM
__all__ = ['Linear', 'Model', 'Module', 'Mse', 'Relu', 'get_data', 'lin', 'mse', 'normalize', 'relu', 'test_near_zero']
import torch
from torch import Tensor

from exp.nb00a import Images, get_images


def get_data(name: str = "mnist", quiet: bool = False) -> Images:
    """The images of `name` as rows of numbers: `x` float32 `(n, 784)` between 0 and 1, `y` int64 `(n,)`.

    Same sources, attributes and errors as `get_images` (chapter 00a).
    """
    images = get_images(name, quiet=quiet)
    x_train, x_valid = (x.flatten(1).float() / 255 for x in (images.x_train, images.x_valid))
    return Images(x_train, images.y_train, x_valid, images.y_valid, name=images.name, source=images.source)


def normalize(x: Tensor, m: Tensor | float, s: Tensor | float) -> Tensor:
    """`x` with mean `m` taken away and divided by standard deviation `s`, both of the *training* set.

    `m` and `s` are numbers, or tensors that broadcast against `x`. Raises `ValueError` where `s` is not
    above 0.
    """
    if not (torch.as_tensor(s) > 0).all(): raise ValueError(f"normalize: s must be above 0, not {s}")
    return (x - m) / s


def test_near_zero(a: Tensor | float, tol: float = 1e-3) -> None:
    "Assert that every element of `a` is within `tol` of 0; raises `AssertionError` showing the values."
    a = torch.as_tensor(a)
    assert (a.abs() < tol).all(), f"not near zero (tolerance {tol}):\n{a}"


def lin(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A linear layer: `x (…, ni)` times weights `w (ni, nf)` plus bias `b (nf,)` -> `(…, nf)`.

    Raises `ValueError` when the shapes do not fit (a bias of another length could broadcast without a word).
    """
    if x.shape[-1:] != w.shape[:1] or b.shape != w.shape[1:]:
        raise ValueError(f"lin: x {tuple(x.shape)}, w {tuple(w.shape)} and b {tuple(b.shape)} do not fit")
    return x @ w + b


def relu(x: Tensor) -> Tensor:
    "The rectifier: negative numbers become 0, the others stay. Any shape."
    return x.clamp_min(0.)


def mse(preds: Tensor, targ: Tensor) -> Tensor:
    """Mean squared error of `preds`, `(n, 1)` or `(n,)`, from `targ (n,)`: a tensor with one number.

    Only the *last* axis of `preds` is dropped, so a batch of one works. Raises `ValueError` for other shapes that
    differ (they would broadcast into nonsense) and for an empty batch.
    """
    if preds.ndim == targ.ndim + 1 and preds.shape[-1] == 1: preds = preds.squeeze(-1)     # (n, 1) -> (n,)
    if preds.shape != targ.shape or not targ.numel():
        raise ValueError(f"mse: preds {tuple(preds.shape)}, targ {tuple(targ.shape)}: should be the same, not empty")
    return (preds - targ).pow(2).mean()


class Module:
    """Base of our layers: calling one runs `forward(*args)` and remembers what went in, for the way back.

    A layer defines `forward` and `bwd(grad, *args)`. `bwd` gets the gradient of the loss with respect to the
    layer's output, stores those of the layer's parameters in their `.g`, and returns that of its input.
    """
    args: tuple | None = None

    def __call__(self, *args):
        self.args = args
        return self.forward(*args)

    def backward(self, grad: Tensor | float = 1.) -> Tensor:
        "Send `grad` back through the last call. Raises `RuntimeError` when there was none."
        if self.args is None: raise RuntimeError(f"{type(self).__name__}.backward: call it first")
        return self.bwd(grad, *self.args)

    def forward(self, *args): raise NotImplementedError(f"{type(self).__name__} needs a forward")
    def bwd(self, grad, *args): raise NotImplementedError(f"{type(self).__name__} needs a bwd")


class Linear(Module):
    "`lin` as a layer for `x (n, ni)`: weights `w (ni, nf)`, bias `b (nf,)`. `bwd` fills `w.g` and `b.g`."
    def __init__(self, w: Tensor, b: Tensor): self.w, self.b = w, b
    def forward(self, x: Tensor) -> Tensor: return lin(x, self.w, self.b)

    def bwd(self, grad: Tensor, x: Tensor) -> Tensor:
        self.w.g = x.T @ grad                                # (ni, n) @ (n, nf) -> (ni, nf)
        self.b.g = grad.sum(0)
        return grad @ self.w.T                               # (n, nf) @ (nf, ni) -> (n, ni)


class Relu(Module):
    "`relu` as a layer. The gradient passes where the input was above 0."
    def forward(self, x: Tensor) -> Tensor: return relu(x)
    def bwd(self, grad: Tensor, x: Tensor) -> Tensor: return grad * (x > 0)


class Mse(Module):
    "`mse` as the last layer, called with `preds` and `targ`. Its gradient has the shape of `preds`."
    def forward(self, preds: Tensor, targ: Tensor) -> Tensor: return mse(preds, targ)

    def bwd(self, grad: Tensor | float, preds: Tensor, targ: Tensor) -> Tensor:
        return grad * 2 * (preds - targ.view_as(preds)) / targ.numel()


class Model(Module):
    """`layers` one after the other and a `loss` on top: `model(x, targ)` is the loss.

    `model.backward()` goes back through all of them and returns the gradient with respect to `x`.
    """
    def __init__(self, layers: list[Module], loss: Module): self.layers, self.loss = layers, loss

    def predict(self, x: Tensor) -> Tensor:
        "What the last layer makes of `x (n, ni)`."
        for layer in self.layers: x = layer(x)
        return x

    def forward(self, x: Tensor, targ: Tensor) -> Tensor: return self.loss(self.predict(x), targ)

    def bwd(self, grad: Tensor | float, x: Tensor, targ: Tensor) -> Tensor:
        grad = self.loss.backward(grad)
        for layer in reversed(self.layers): grad = layer.backward(grad)
        return grad
