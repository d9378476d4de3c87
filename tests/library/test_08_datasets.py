"""Data sets that are not ours, through the loaders of chapter 08: colours, other sizes, folders, workers, a restart."""
import math

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from exp.nb00c import Images
from exp.nb08 import DataLoaders, dataset_dict, inplace, tensor_dls, to_tensor


@inplace
def as_tensors(batch):
    batch["image"] = [to_tensor(im) for im in batch["image"]]


@pytest.fixture
def colours():
    "Twelve colour pictures, 5 high and 7 wide, and their pixels."
    pixels = np.random.default_rng(42).integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    ds = datasets.Dataset.from_dict(dict(image=list(pixels), label=[0, 1]*6), features=features)
    return datasets.DatasetDict(train=ds, validation=ds), pixels


@pytest.mark.parametrize("workers", [0, 1])
def test_any_size_and_number_of_channels(colours, workers):
    dd, pixels = colours
    dls = DataLoaders.from_dd(dd.with_transform(as_tensors), 4, num_workers=workers)
    assert dls.names == ("a", "b") and dls.real is None
    xs, ys = zip(*dls.valid, strict=True)
    assert torch.cat(xs).equal(torch.tensor(pixels).permute(0, 3, 1, 2)/255) and torch.cat(ys).tolist() == [0, 1]*6


def test_a_folder_of_images(tmp_path):
    for i, name in enumerate(("cat", "dog", "dog")):
        (tmp_path/"pics"/"train"/name).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((6, 4), 10*i, np.uint8)).save(tmp_path/"pics"/"train"/name/f"{i}.png")
    dd = datasets.load_dataset("imagefolder", data_dir=str(tmp_path/"pics"), cache_dir=str(tmp_path/"cache"))
    dls = DataLoaders.from_dd(dd.with_transform(as_tensors), 3)
    [(xb, yb)] = dls.train
    assert xb.shape == (3, 1, 6, 4) and dls.names == ("cat", "dog") and not dls.has_valid
    assert {(round(x.max().item()*255), y) for x, y in zip(xb, yb.tolist(), strict=True)} == {(0, 0), (10, 1), (20, 1)}


def test_loaders_go_on_where_others_were(colours):
    dd = colours[0].with_transform(as_tensors)

    def order(dls): return torch.cat([xb.mean((1, 2, 3)) for xb, _ in dls.train])
    one, two = (DataLoaders.from_dd(dd, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    first = order(one)
    two.load_state_dict(one.state_dict())
    assert order(one).equal(order(two)) and not order(one).equal(first)
    only_train = {"train": one.state_dict()["train"]}
    with pytest.raises(KeyError):
        two.load_state_dict(only_train)


@pytest.mark.parametrize("make", [dataset_dict, lambda name: tensor_dls(name, 64)])
def test_unknown_sets_are_refused(make):
    with pytest.raises(ValueError, match="known ones"):
        make("fashion")


def test_images_of_ones_own_with_any_size_channels_and_name():
    x, y = torch.randint(0, 256, (30, 3, 20, 24), dtype=torch.uint8), torch.arange(30) % 3
    for shape in ((30, 3, 20, 24), (30, 1, 20, 24), (30, 20, 24)):
        part = x.flatten()[:math.prod(shape)].reshape(shape)
        own = Images(part, y, part, y, "mine", "here", ("a", "b", "c"))
        dls, channels = tensor_dls(own, 10), shape[1] if len(shape) > 3 else 1
        assert dls.names == ("a", "b", "c") and next(iter(dls.train))[0].shape == (10, channels, 20, 24)
        table = dataset_dict(own)["train"]
        assert table.features["label"].names == ["a", "b", "c"]
        assert torch.equal(to_tensor(table[0]["image"])*255, own.x_train[0].reshape(-1, 20, 24).float())
