"""Image data sets: the embedded digits, and files of the real forms made here, few rows of them."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks import data, images
from tasks.data import CorruptDataError, MissingDataError
from tasks.images import SOURCES, image_set, normalised, pool

ROWS = 6


@pytest.fixture
def library():
    return pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path, monkeypatch, library):
    """An empty folder of data, in which the sets have 6 images each."""
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("cifar10", "cifar100", "mnist"):
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], count=ROWS))
    data.use(tmp_path / "data")
    yield tmp_path / "data"
    data.use(None)


def pixels(name, rows=ROWS):
    source = SOURCES[name]
    shape = (source.size, source.size, 3) if source.channels == 3 else (source.size, source.size)
    return np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)


def png(array):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def save(library, folder, name, encoded, labels, columns=None):
    """As `DatasetDict.save_to_disk` does; returns how messages name the place."""
    image, label = columns or SOURCES[name].columns
    features = library.Features({image: library.Image(), label: library.Value("int64")})
    table = library.Dataset.from_dict({image: encoded, label: labels}, features=features)
    library.DatasetDict({"train": table}).save_to_disk(folder / name)
    return f"data set {name}, {folder / name / 'train'}"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist"])
def test_a_real_set_is_read_pixel_by_pixel(folder, library, name):
    written = pixels(name)
    save(library, folder, name, [png(p) for p in written], [0, 1, 2, 9, 4, 5])
    found = image_set(name)

    assert images.missing(name) == []
    for row in range(ROWS):
        for channel in range(SOURCES[name].channels):
            plane = written[row, :, :, channel] if written.ndim == 4 else written[row]
            assert np.array_equal(found.images[row, channel].numpy(), plane)
    assert found.images.dtype == torch.uint8
    assert found.labels.tolist() == [0, 1, 2, 9, 4, 5]
    assert found.labels.dtype == torch.int64


def test_the_hubs_parquet_files_are_read(folder, library):
    """Written by the library that writes those of the hub, in two files."""
    written = pixels("mnist")
    features = library.Features(
        {"image": library.Image(), "label": library.ClassLabel(num_classes=10)}
    )
    for part in (0, 1):
        rows = range(3 * part, 3 * part + 3)
        table = library.Dataset.from_dict(
            {"image": [png(written[row]) for row in rows], "label": list(rows)}, features=features
        )
        (folder / "mnist" / "mnist").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "mnist" / "mnist" / f"train-0000{part}-of-00002.parquet")

    assert np.array_equal(image_set("mnist").images[:, 0].numpy(), written)
    assert image_set("mnist").labels.tolist() == list(range(6))


def test_another_folder_is_another_set(folder, library, tmp_path):
    """What is remembered belongs to the folder that it was read from."""
    save(library, folder, "mnist", [png(p) for p in pixels("mnist")], [0] * ROWS)
    first = image_set("mnist"), pool("mnist", 28, "cpu")
    data.use(tmp_path / "other")
    save(library, tmp_path / "other", "mnist", [png(p) for p in 255 - pixels("mnist")], [1] * ROWS)

    assert image_set("mnist").labels.tolist() == [1] * ROWS
    assert torch.equal(pool("mnist", 28, "cpu"), 255 - first[1])


def test_digits_are_those_of_scikit_learn_stretched_to_255():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    found = image_set("digits")

    assert found.images.shape == (1797, 1, 8, 8)
    assert np.array_equal(found.images.flatten(1).numpy(), np.round(pixels * 255 / 16))
    assert np.array_equal(found.labels.numpy(), labels)


def test_the_constants_of_the_digits_are_their_mean_and_standard_deviation():
    values = image_set("digits").images.double() / 255
    source = SOURCES["digits"]

    assert round(values.mean().item(), 4) == source.mean[0]
    assert round(values.std(correction=0).item(), 4) == source.std[0]


def test_sets_are_read_once():
    assert image_set("digits") is image_set("digits")
    assert pool("digits", 8, "cpu") is pool("digits", 8, torch.device("cpu"))


def test_images_of_the_wanted_size_are_not_copied():
    assert pool("digits", 8, "cpu").data_ptr() == image_set("digits").images.data_ptr()


def test_images_grow_bilinearly_and_are_rounded():
    """torch's own interpolation in double precision; 8 x 8 to 32 x 32 needs no rounding before."""
    exact = functional.interpolate(
        image_set("digits").images.double(), (32, 32), mode="bilinear", align_corners=False
    )

    assert torch.equal(pool("digits", 32, "cpu"), exact.round().to(torch.uint8))


def test_shrunken_images_count_every_pixel():
    """Halved: weights 1, 3, 3, 1 of four neighbours; without antialiasing two would not count."""
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    kernel = torch.outer(weights, weights)[None, None]
    inner = image_set("digits").images[:, :, 1:7, 1:7].double()  # away from the edges
    exact = functional.conv2d(inner, kernel, stride=2)

    off = pool("digits", 4, "cpu")[:, :, 1:3, 1:3].double() - exact
    assert off.abs().max() <= 0.5 + 1e-4


def test_a_default_device_does_not_change_where_a_set_lies():
    """Code that looks at a model without numbers asks for the pool on the device "meta"."""
    images._pool.cache_clear()
    images._image_set.cache_clear()
    with torch.device("meta"):
        assert pool("digits", 16, "meta").is_meta
        assert not image_set("digits").images.is_meta
        assert not pool("digits", 16, "cpu").is_meta


def test_normalised_digits_have_mean_0_and_standard_deviation_1():
    values = normalised(image_set("digits").images, "digits", torch.float64)

    assert abs(values.mean()) < 2e-4
    assert abs(values.std() - 1) < 2e-4


def test_each_channel_is_normalised_by_its_own_constants():
    white = torch.full((2, 3, 1, 1), 255, dtype=torch.uint8)
    found = normalised(white, "cifar10", torch.float32)

    wanted = torch.tensor([(1 - 0.4914) / 0.2470, (1 - 0.4822) / 0.2435, (1 - 0.4465) / 0.2616])
    torch.testing.assert_close(found[1, :, 0, 0], wanted)


def test_only_downloaded_sets_can_be_missing(folder):
    assert images.missing("digits") == []
    assert "is not on this machine" in images.missing("cifar10")[0]
    with pytest.raises(MissingDataError):
        image_set("cifar10")


def test_an_image_that_cannot_be_decoded_is_named_by_its_row(folder, library):
    encoded = [png(p) for p in pixels("mnist")]
    encoded[4] = {"bytes": encoded[4]["bytes"][:20], "path": None}
    where = save(library, folder, "mnist", encoded, [0] * ROWS)
    with pytest.raises(CorruptDataError) as caught:
        image_set("mnist")

    assert str(caught.value).startswith(f"{where}, row 4: the image cannot be decoded: ")


def test_an_image_of_another_shape_is_named_by_its_row(folder, library):
    encoded = [png(p) for p in pixels("cifar10")]
    encoded[2] = png(np.zeros((32, 31, 3), np.uint8))
    where = save(library, folder, "cifar10", encoded, [0] * ROWS)
    with pytest.raises(CorruptDataError) as caught:
        image_set("cifar10")

    assert str(caught.value) == (
        f"{where}, row 2: expected an image of shape (32, 32, 3) of 8-bit numbers, got "
        "(32, 31, 3) of uint8"
    )


@pytest.mark.parametrize("label", [10, -1, None])
def test_a_label_that_is_no_class_is_named_by_its_row(folder, library, label):
    labels = [0, 1, 2, label, 4, 5]
    where = save(library, folder, "mnist", [png(p) for p in pixels("mnist")], labels)
    with pytest.raises(CorruptDataError) as caught:
        image_set("mnist")

    assert str(caught.value) == (
        f"{where}, row 3, column 'label': expected a label in 0..9, got {label}"
    )


def test_missing_columns_are_named_beside_those_that_are_there(folder, library):
    encoded = [png(p) for p in pixels("cifar100")]
    where = save(library, folder, "cifar100", encoded, [0] * ROWS, ("img", "label"))
    with pytest.raises(CorruptDataError) as caught:
        image_set("cifar100")

    assert str(caught.value) == (
        f"{where}: there is no column 'fine_label'; there are 'img', 'label'"
    )


def test_a_column_of_something_else_is_refused(folder, library):
    table = library.Dataset.from_dict({"image": [0] * ROWS, "label": [0] * ROWS})
    library.DatasetDict({"train": table}).save_to_disk(folder / "mnist")
    with pytest.raises(CorruptDataError) as caught:
        image_set("mnist")

    assert str(caught.value) == (
        f"data set mnist, {folder}/mnist/train, column 'image': expected images, got Value('int64')"
    )


def test_a_set_with_another_number_of_images_is_refused(folder, library):
    """Its trials would pass for trials on the real one."""
    where = save(library, folder, "mnist", [png(p) for p in pixels("mnist", 5)], [0] * 5)
    with pytest.raises(CorruptDataError) as caught:
        image_set("mnist")

    assert str(caught.value) == (
        f"{where}: expected {ROWS} images, got 5. Remove it and download it again."
    )


def test_an_image_that_is_only_an_address_is_not_fetched(folder, library):
    encoded = [png(p) for p in pixels("mnist")]
    encoded[1] = {"bytes": None, "path": "hf://datasets/ylecun/mnist/1.png"}
    features = library.Features(
        {"image": library.Image(decode=False), "label": library.Value("int64")}
    )
    table = library.Dataset.from_dict({"image": encoded, "label": [0] * ROWS}, features=features)
    path = folder / "mnist" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    import pyarrow.parquet

    pyarrow.parquet.write_table(table.data.table, path)
    with pytest.raises(CorruptDataError) as caught:
        image_set("mnist")

    assert str(caught.value) == (
        f"data set mnist, {path}, row 1: the image cannot be decoded: the file "
        "hf://datasets/ylecun/mnist/1.png is not part of the data set"
    )
