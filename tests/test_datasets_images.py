"""Folders of images, tiny ones in the published layouts of ImageNet 2012 and Mini-ImageNet, sound and broken."""

import re

import numpy as np
import PIL.Image
import pytest
import torch

import torchddn as ddn
from torchddn.datasets import ImageFolder, check, loader
from torchddn.datasets.crops import central_crop, decode, random_crop, to_tensor

WNIDS = [f"n{1000 + i:08}" for i in range(1000)]
MINI = [f"n{2000 + i:08}" for i in range(100)]


def picture(red=255, size=(20, 10)):
    """Red rises from left to right, up to ``red``; green from top to bottom."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, red, width), np.linspace(0, 255, height))
    return PIL.Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    path = tmp_path_factory.mktemp("jpeg") / "one.jpeg"
    picture().save(path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(red=100 * number + 10 * i + 50).save(path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


class TestCrops:
    def test_center_is_cut_after_the_shorter_side_is_scaled(self):
        image = central_crop(picture(size=(200, 100)), crop=40, resize=50)
        assert image.size == (40, 40)
        # 100 x 50 pixels after scaling, of which columns 30 to 70 and rows 5 to 45 remain.
        assert abs(image.getpixel((0, 0))[0] - 255 * 0.3) < 4
        assert abs(image.getpixel((39, 39))[0] - 255 * 0.7) < 4
        assert abs(image.getpixel((0, 0))[1] - 255 * 0.1) < 7
        assert abs(image.getpixel((39, 39))[1] - 255 * 0.9) < 7

    def test_numbers_are_normalized_as_published_weights_expect(self):
        x = to_tensor(PIL.Image.new("RGB", (4, 6), (255, 0, 128)))
        assert x.shape == (3, 6, 4)
        expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
        torch.testing.assert_close(x[:, 3, 2], torch.tensor(expected))

    @pytest.mark.parametrize("size", [(200, 100), (1000, 3), (3, 1000), (1, 1)])
    def test_random_part_has_the_size_asked_for(self, size):
        assert random_crop(picture(size=size), 32, np.random.default_rng(0)).size == (32, 32)

    def test_random_parts_have_the_areas_and_aspects_of_the_protocol(self):
        # The rise of red over a part tells its width; that of green its height; a fall, that it was flipped.
        generator, areas, aspects, flips = np.random.default_rng(0), [], [], 0
        image = picture(size=(300, 300))
        for _ in range(200):
            part = np.asarray(random_crop(image, 16, generator)).astype(float) / 255
            width, height = (part[8, 15, 0] - part[8, 0, 0]) * 16 / 15, (part[15, 8, 1] - part[0, 8, 1]) * 16 / 15
            flips += width < 0
            areas.append(abs(width) * height)
            aspects.append(abs(width) / height)
        assert 0.06 < min(areas) < 0.15
        assert 0.85 < max(areas) < 1.06
        assert 0.7 < min(aspects) < max(aspects) < 1.42
        assert 70 < flips < 130


class TestFolder:
    def test_classes_are_the_folders_in_order(self, folder):
        train = ImageFolder(folder, crop=8)
        assert train.classes == ("cat", "dog")
        assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        x, label = train[4]
        assert x.shape == (3, 8, 8)
        assert label == 1
        assert ImageFolder(folder, "validation").labels.tolist() == [0, 0, 1, 1]

    def test_test_images_are_the_central_crop(self, folder):
        x = ImageFolder(folder, "validation", crop=8, resize=9)[3][0]
        expected = to_tensor(central_crop(decode(folder / "val" / "dog" / "1.png"), 8, 9))
        assert torch.equal(x, expected)

    def test_random_crops_are_a_function_of_seed_epoch_and_item(self, folder):
        a, again, other = (ImageFolder(folder, crop=8, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(a[2][0], again[2][0])
        assert not torch.equal(a[2][0], other[2][0])
        again.set_epoch(1)
        assert not torch.equal(a[2][0], again[2][0])
        again.set_epoch(0)
        assert torch.equal(a[2][0], again[2][0])

    def test_own_transform_takes_the_place_of_the_crop(self, folder):
        sizes = ImageFolder(folder, transform=lambda image: torch.tensor(image.size))
        assert sizes[0][0].tolist() == [20, 10]

    def test_gray_and_palette_pictures_become_colors(self, tmp_path):
        for name, mode in (("gray", "L"), ("palette", "P"), ("transparent", "RGBA"), ("print", "CMYK")):
            path = tmp_path / f"{name}.{'jpg' if mode == 'CMYK' else 'png'}"
            picture().convert(mode).save(path)
            assert decode(path).mode == "RGB"

    @pytest.mark.slow
    def test_worker_processes_change_nothing(self, folder):
        def read(num_workers):
            batches = loader(ImageFolder(folder, crop=8), 4, shuffle=True, num_workers=num_workers)
            batches.sampler.set_epoch(3)
            return [torch.cat([part.flatten() for part in batch]) for batch in batches]

        for alone, together in zip(read(0), read(2), strict=True):
            assert torch.equal(alone, together)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "is empty"), (b"no picture", "cannot be decoded"), (None, "cannot be decoded")],
    )
    def test_broken_file_is_named(self, folder, content, message):
        path = folder / "train" / "dog" / "0.png"
        path.write_bytes(path.read_bytes()[:-30] if content is None else content)
        data = ImageFolder(folder, crop=8)
        with pytest.raises(ddn.InvalidInputError, match=f"{re.escape(str(path))} {message}"):
            data[3]
        found = check(folder)
        assert found.kind == "folder of images"
        assert len(found.problems) == 1
        assert found.problems[0].startswith(f"{path} {message}")

    def test_class_without_images_is_named(self, folder):
        for path in (folder / "val" / "dog").iterdir():
            path.unlink()
        with pytest.raises(ddn.InvalidInputError, match=f"{re.escape(str(folder / 'val' / 'dog'))} has no images"):
            ImageFolder(folder, "validation")

    def test_class_that_training_does_not_have_is_named(self, folder):
        (folder / "val" / "dog").rename(folder / "val" / "cow")
        message = f"{re.escape(str(folder / 'val' / 'cow'))} is a class of which"
        with pytest.raises(ddn.InvalidInputError, match=message):
            ImageFolder(folder, "validation")
        assert re.match(message, check(folder).problems[0])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"split": "test"}, "`ImageFolder(split=...)` must be one of 'train', 'validation'"),
            ({"crop": 0}, "`ImageFolder(crop=...)` must be a positive integer"),
            ({"resize": 100}, "`ImageFolder(resize=...)` must be at least crop = 224, got 100"),
            ({"layout": "cifar"}, "`ImageFolder(layout=...)` must be one of 'imagenet'"),
            ({"augment": 1}, "`ImageFolder(augment=...)` must be True or False"),
            ({"transform": "crop"}, "`ImageFolder(transform=...)` must be a function"),
            ({"layout": "imagenet"}, "has 2 classes, and imagenet has 1000"),
        ],
    )
    def test_wrong_arguments_are_refused(self, folder, arguments, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            ImageFolder(folder, **arguments)

    def test_folder_without_images_is_refused(self, tmp_path):
        with pytest.raises(ddn.InvalidInputError, match="has no layout of images that is known"):
            ImageFolder(tmp_path)


class TestImageNet:
    def test_train_and_validation_folders_are_read(self, tmp_path, jpeg):
        for name in WNIDS:
            save(tmp_path / "train" / name / f"{name}_1.JPEG", jpeg)
            save(tmp_path / "val" / name / "ILSVRC2012_val_00000001.JPEG", jpeg)
        train = ImageFolder(tmp_path)
        assert train.classes == tuple(WNIDS)
        assert train.labels.tolist() == list(range(1000))
        assert train[999][0].shape == (3, 224, 224)
        assert len(ImageFolder(tmp_path, "validation")) == 1000
        sentence = "1000 images of 1000 classes."
        assert check(tmp_path) == ("ImageNet", (f"train: {sentence}", f"validation: {sentence}"), ())

    def test_flat_validation_folder_is_read_by_its_list(self, tmp_path, jpeg):
        base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
        for name in WNIDS:
            save(base / "train" / name / f"{name}_1.JPEG", jpeg)
        for i in (1, 2):
            save(base / "val" / f"ILSVRC2012_val_{i:08}.JPEG", jpeg)
        with pytest.raises(ddn.InvalidInputError, match=r"LOC_val_solution.csv, which would say the class"):
            ImageFolder(tmp_path, "validation")
        rows = [f"ILSVRC2012_val_{i:08},{wnid} 1 2 3 4 \n" for i, wnid in ((1, WNIDS[7]), (2, WNIDS[3]))]
        solution = tmp_path / "LOC_val_solution.csv"
        solution.write_text("".join(["ImageId,PredictionString\n", *rows]))
        data = ImageFolder(tmp_path, "validation")
        assert data.labels.tolist() == [7, 3]
        assert data[1][0].shape == (3, 224, 224)
        assert check(tmp_path).ok

        solution.write_text(
            "".join(["ImageId,PredictionString\n", *rows, f"ILSVRC2012_val_00000003,{WNIDS[0]} 1 2 3 4\n"])
        )
        with pytest.raises(ddn.InvalidInputError, match=r"ILSVRC2012_val_00000003.JPEG is missing; .* names it"):
            ImageFolder(tmp_path, "validation")
        solution.write_text("".join(["ImageId,PredictionString\n", "ILSVRC2012_val_00000001,n99999999 1 2 3 4\n"]))
        with pytest.raises(ddn.InvalidInputError, match="line 2: 'n99999999' is no class"):
            ImageFolder(tmp_path, "validation")


class TestMiniImageNet:
    PARTS = (("train", MINI[:64]), ("val", MINI[64:80]), ("test", MINI[80:]))

    def lists(self, root, jpeg, nested=False):
        for part, names in self.PARTS:
            rows = ["filename,label\n"]
            for name in names:
                for i in range(6):
                    file = f"{name}{i:08}.jpg"
                    save(root / "images" / name / file if nested else root / "images" / file, jpeg)
                    rows.append(f"{file},{name}\n")
            (root / f"{part}.csv").write_text("".join(rows))

    @pytest.mark.parametrize("nested", [False, True])
    def test_parts_are_joined_and_a_sixth_of_each_class_is_held_out(self, tmp_path, jpeg, nested):
        self.lists(tmp_path, jpeg, nested)
        train, validation = ImageFolder(tmp_path, crop=8), ImageFolder(tmp_path, "validation", crop=8)
        assert train.classes == validation.classes == tuple(MINI)
        assert train.labels.bincount().tolist() == [5] * 100
        assert validation.labels.bincount().tolist() == [1] * 100
        assert validation[99][0].shape == (3, 8, 8)
        found = check(tmp_path)
        assert found.kind == "Mini-ImageNet"
        assert found.ok

    def test_folders_are_read_like_the_lists(self, tmp_path, jpeg):
        for part, names in self.PARTS:
            for name in names:
                for i in range(6):
                    save(tmp_path / part / name / f"{name}{i:08}.jpg", jpeg)
        assert len(ImageFolder(tmp_path)) == 500
        assert check(tmp_path).kind == "Mini-ImageNet"

    def test_broken_lists_are_named(self, tmp_path, jpeg):
        self.lists(tmp_path, jpeg)
        (tmp_path / "images" / f"{MINI[70]}00000003.jpg").unlink()
        with pytest.raises(ddn.InvalidInputError, match=rf"{MINI[70]}00000003.jpg is missing; .*val.csv names it"):
            ImageFolder(tmp_path)
        (tmp_path / "val.csv").write_text("file,class\n")
        with pytest.raises(ddn.InvalidInputError, match=r"val.csv must begin with the line 'filename,label'"):
            ImageFolder(tmp_path)
        (tmp_path / "val.csv").write_text("filename,label\none\n")
        with pytest.raises(ddn.InvalidInputError, match=r"val.csv, line 2: two columns expected"):
            ImageFolder(tmp_path)
