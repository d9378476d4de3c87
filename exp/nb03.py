# INTERIM
__all__ = ['DataLoader', 'Dataset', 'Sampler', 'accuracy', 'check_loss', 'collate', 'fit', 'get_dls', 'validate']
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils import data as torch_data


def accuracy(preds: Tensor, yb: Tensor) -> Tensor:
    """Share of rows of `preds` `(n, c)` whose largest entry is at the class in `yb` `(n,)`, a float scalar tensor.

    Raises `ValueError` when the shapes do not fit: an unnoticed `(n, 1)` would broadcast to an `(n, n)` comparison.
    """
    if preds.dim() != 2 or yb.shape != preds.shape[:1]:
        raise ValueError(f"accuracy needs preds (n, c) and targets (n,), got {(*preds.shape,)} and {(*yb.shape,)}")
    return (preds.argmax(dim=1) == yb).float().mean()


class Dataset:
    """Pairs `x[i], y[i]`; `i` may be an integer, a slice or a list of indices, so a whole batch is one look-up.

    `x` and `y` are tensors or arrays, items along the first axis. Raises `ValueError` if their lengths differ.
    """
    def __init__(self, x: Tensor, y: Tensor):
        if len(x) != len(y):
            raise ValueError(f"x and y need the same length, got {len(x)} and {len(y)}")
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: "int | slice | list[int]") -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


class Sampler:
    """Lists of at most `bs` indices that together cover `range(n)` once: in order, or freshly shuffled for each pass.

    `drop_last` leaves out a last list shorter than `bs`; `generator` makes the order reproducible.
    Raises `ValueError` when `n` or `bs` is below 1.
    """
    def __init__(self, n: int, bs: int, shuffle: bool = False, drop_last: bool = False,
                 generator: "torch.Generator | None" = None):
        if n < 1: raise ValueError("the dataset is empty: there is nothing to draw batches from")
        if bs < 1: raise ValueError(f"the batch size must be at least 1, got {bs}")
        self.n, self.bs, self.shuffle, self.drop_last, self.generator = n, bs, shuffle, drop_last, generator

    def __len__(self) -> int:
        return self.n // self.bs if self.drop_last else math.ceil(self.n / self.bs)

    def __iter__(self) -> Iterator[list[int]]:
        idxs = torch.randperm(self.n, generator=self.generator) if self.shuffle else torch.arange(self.n)
        for b in range(len(self)):
            yield idxs[b*self.bs:(b+1)*self.bs].tolist()


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    "A list of `(x, y)` items as one batch: all `x` stacked along a new first axis, all `y` likewise."
    xs, ys = zip(*items, strict=True)
    return torch.stack([torch.as_tensor(x) for x in xs]), torch.stack([torch.as_tensor(y) for y in ys])


class DataLoader:
    """Iterates over batches of `ds`; the last may be smaller than `bs` unless `drop_last`.

    Without `collate_fn` a batch is fetched as `ds[list of indices]`; with one, item by item and then collated by it.
    `shuffle` draws a new order for each pass, from `generator` if given. Raises `ValueError` for an empty dataset or
    `bs` below 1.
    """
    def __init__(self, ds: Dataset, bs: int, shuffle: bool = False, drop_last: bool = False,
                 generator: "torch.Generator | None" = None, collate_fn: "Callable | None" = None):
        self.dataset, self.collate_fn = ds, collate_fn
        self.sampler = Sampler(len(ds), bs, shuffle, drop_last, generator)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for idxs in self.sampler:
            yield self.collate_fn([self.dataset[i] for i in idxs]) if self.collate_fn else self.dataset[idxs]


def get_dls(train_ds, valid_ds, bs: int, generator: "torch.Generator | None" = None, **kwargs):
    """The library's loaders `(train_dl, valid_dl)`: training shuffled, validation in order with batches of `2*bs`.

    A batch is fetched as one `ds[list of indices]`, which is far faster than item by item when the data sit in tensors.
    `valid_ds` may be `None`, then so is `valid_dl`. `generator` fixes the shuffling; `kwargs` (`num_workers`,
    `pin_memory`, …) go to both loaders. Raises `ValueError` for an empty dataset or `bs` below 1.
    """
    def loader(name, ds, bs, shuffle):
        if len(ds) == 0: raise ValueError(f"the {name} dataset is empty: there is nothing to draw batches from")
        items = torch_data.RandomSampler(ds, generator=generator) if shuffle else torch_data.SequentialSampler(ds)
        batches = torch_data.BatchSampler(items, bs, drop_last=False)
        return torch_data.DataLoader(ds, sampler=batches, batch_size=None, **kwargs)
    valid_dl = None if valid_ds is None else loader("validation", valid_ds, bs*2, shuffle=False)
    return loader("training", train_ds, bs, shuffle=True), valid_dl


def check_loss(loss: Tensor, epoch: int, batch: int, phase: str = "training") -> None:
    """Raises `FloatingPointError` that names the epoch and batch when `loss` is NaN or infinite.

    Raises `ValueError` when it is not a single number, which `backward` could not start from.
    """
    if loss.numel() != 1:
        raise ValueError(f"the loss must be a single number, got shape {(*loss.shape,)}")
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"the loss is {loss.item()} at {phase} batch {batch} of epoch {epoch}, counting from 0: "
            "lower the learning rate, or look at that batch for NaN or huge values")


@torch.no_grad()
def validate(model: nn.Module, loss_func: Callable, dl, epoch: int = 0) -> tuple[float, float]:
    """Mean loss and accuracy over all items of `dl`: eval mode, no gradients, each batch weighted by its size.

    Raises `ValueError` when `dl` has no batches, `FloatingPointError` for a NaN loss. The model is left in eval mode.
    """
    model.eval()
    loss_sum, acc_sum, n = 0., 0., 0
    for i, (xb, yb) in enumerate(dl):
        preds = model(xb)
        loss = loss_func(preds, yb)
        check_loss(loss, epoch, i, "validation")
        loss_sum += loss.item() * len(xb)
        acc_sum += accuracy(preds, yb).item() * len(xb)
        n += len(xb)
    if n == 0: raise ValueError("the validation loader gives no batches")
    return loss_sum/n, acc_sum/n


def fit(epochs: int, model: nn.Module, loss_func: Callable, opt: torch.optim.Optimizer, train_dl, valid_dl=None,
        quiet: bool = False) -> list[dict[str, float]]:
    """Trains `model` for `epochs` passes over `train_dl`; prints one line and returns one dict an epoch.

    The dict holds `train_loss`, `train_acc` (means over the batches as they were trained on) and, with a `valid_dl`,
    `valid_loss`, `valid_acc` (after the epoch). All means are weighted by batch size. Raises `FloatingPointError` that
    names the batch when the loss is NaN or infinite, `ValueError` when `train_dl` has no batches.
    """
    history = []
    for epoch in range(epochs):
        model.train()
        loss_sum, acc_sum, n = 0., 0., 0
        for i, (xb, yb) in enumerate(train_dl):
            preds = model(xb)
            loss = loss_func(preds, yb)
            check_loss(loss, epoch, i)
            loss.backward()
            opt.step()
            opt.zero_grad()
            loss_sum += loss.item() * len(xb)
            acc_sum += accuracy(preds, yb).item() * len(xb)
            n += len(xb)
        if n == 0: raise ValueError("the training loader gives no batches")
        stats = dict(train_loss=loss_sum/n, train_acc=acc_sum/n)
        if valid_dl is not None:
            stats["valid_loss"], stats["valid_acc"] = validate(model, loss_func, valid_dl, epoch)
        history.append(stats)
        if not quiet: print(f"epoch {epoch}:", ", ".join(f"{k} {v:.4f}" for k, v in stats.items()))
    return history
