import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vise_jax.data import datasets, listing
from vise_jax.errors import UserError

FLAT = ["cat/1.jpg", "cat/2.PNG", "dog/1.jpeg", "dog/deep/3.jpg"]
OFFICIAL = ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/3.jpg", "test/cat/4.jpg", "test/dog/5.jpg"]


def fill(root: Path, names: list[str]) -> Path:
    """Write files that hold their own name, since opening a dataset decodes nothing."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def pack(path: Path, names: list[str], above: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(above + name, name)
    return path


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def check(images: datasets.Dataset, names: list[str]) -> None:
    assert images.names == tuple(sorted(names))
    assert [images.read(i).decode() for i in range(len(images))] == sorted(names)


def test_a_directory_of_class_directories(tmp_path):
    images = datasets.open_labeled(fill(tmp_path, [*FLAT, "cat/notes.txt", "cat/.hidden.jpg", "__MACOSX/cat/1.jpg"]))
    check(images, FLAT)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.labels.dtype == np.int32
    assert images.splits is None
    assert images.title == tmp_path.name


def test_official_splits_above_the_class_directories(tmp_path):
    images = datasets.open_labeled(fill(tmp_path, OFFICIAL))
    check(images, OFFICIAL)
    assert images.classes == ("cat", "dog")
    assert images.splits == ("test", "test", "train", "train", "validation", "validation")
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("above", ["", "my pictures/"])
@pytest.mark.parametrize("names", [FLAT, OFFICIAL])
def test_an_archive_equals_the_directory(tmp_path, names, above):
    directory = datasets.open_labeled(fill(tmp_path / "folder", names))
    archive = datasets.open_labeled(pack(tmp_path / "pictures.zip", [*names, "__MACOSX/cat/._1.jpg"], above))
    check(archive, names)
    assert archive.title == "pictures"
    assert archive.classes == directory.classes
    assert archive.splits == directory.splits
    assert archive.labels.tolist() == directory.labels.tolist()


@pytest.mark.parametrize("above", ["", "split/"])
def test_a_directory_of_archives(tmp_path, above):
    for split in ("train", "test"):
        pack(tmp_path / f"{split}.zip", ["cat/1.jpg", "dog/1.jpg"], above.replace("split", split))
    images = datasets.open_labeled(tmp_path)
    assert images.names == ("test/cat/1.jpg", "test/dog/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg")
    assert images.splits == ("test", "test", "train", "train")
    assert images.read(1) == b"dog/1.jpg"


def test_a_csv_file(tmp_path):
    fill(tmp_path, ["photos/1.jpg", "photos/2.jpg", "photos/3.jpg"])
    plain = table(tmp_path / "a.csv", "label,image\nreal,photos/2.jpg\nfake,./photos/1.jpg\n")
    images = datasets.open_labeled(plain)
    check(images, ["photos/1.jpg", "photos/2.jpg"])
    assert images.title == f"{tmp_path.name}/a"
    assert images.classes == ("fake", "real")
    assert images.labels.tolist() == [0, 1]
    assert images.splits is None
    rows = "photos/1.jpg,a,train\nphotos/2.jpg,b,train\nphotos/3.jpg,a,test\n"
    fill(tmp_path, ["photos/4.jpg"])
    official = table(tmp_path / "b.csv", f"\ufeffimage,label,split\n{rows}photos/4.jpg,b,test\n")
    assert datasets.open_labeled(official).splits == ("train", "train", "test", "test")


def test_without_labels(tmp_path):
    fill(tmp_path / "images", ["b/2.jpg", "a.png", "b/c/1.jpg"])
    images = datasets.open_unlabeled(tmp_path / "images")
    check(images, ["a.png", "b/2.jpg", "b/c/1.jpg"])
    assert images.labels.tolist() == [-1, -1, -1]
    listed = datasets.open_unlabeled(table(tmp_path / "images" / "list.csv", "image\nb/2.jpg\na.png\n"))
    check(listed, ["a.png", "b/2.jpg"])


def test_the_fingerprint_depends_on_content(tmp_path):
    root = fill(tmp_path / "set", FLAT)
    first = datasets.open_labeled(root).fingerprint
    assert datasets.open_labeled(root).fingerprint == first
    moved = Path(shutil.move(root, tmp_path / "moved"))
    assert datasets.open_labeled(moved).fingerprint == first
    os.utime(moved / FLAT[0], ns=(1, 1))
    touched = datasets.open_labeled(moved).fingerprint
    shutil.move(moved / "cat" / "1.jpg", moved / "dog" / "9.jpg")
    relabeled = datasets.open_labeled(moved).fingerprint
    assert len({first, touched, relabeled}) == 3


def test_the_fingerprint_of_an_archive_depends_on_its_members(tmp_path):
    first = datasets.open_labeled(pack(tmp_path / "a.zip", FLAT)).fingerprint
    assert datasets.open_labeled(pack(tmp_path / "b.zip", FLAT)).fingerprint == first
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name in FLAT:
            archive.writestr(name, name[::-1])
    assert datasets.open_labeled(tmp_path / "c.zip").fingerprint != first


def test_a_damaged_archive_names_the_image(tmp_path):
    path = pack(tmp_path / "a.zip", FLAT)
    images = datasets.open_labeled(path)
    path.write_bytes(path.read_bytes().replace(b"dog/deep/3.jpgdog/deep/3.jpg", b"dog/deep/3.jpgdog/dXXp/3.jpg"))
    with pytest.raises(UserError, match=r"dog/deep/3\.jpg .*a\.zip can't be read"):
        images.read(3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images"),
        (["cat/a.txt"], "holds no images"),
        (["cat/1.jpg", "cat/2.jpg"], "one class only"),
        ([*FLAT, "1.jpg"], "1.jpg .* is in no class directory"),
        ([*OFFICIAL, "test/6.jpg"], "test/6.jpg .* is in no class directory"),
        ([*FLAT, "fox/a.txt"], "class directory fox .* holds no images"),
        ([*OFFICIAL, "test/fox/a.txt"], "class directory test/fox .* holds no images"),
        ([*OFFICIAL, "test/fox/1.jpg"], "class fox has images for test but none for train"),
        ([*OFFICIAL, "train/fox/1.jpg"], "class fox has images for train but none for"),
        ([*OFFICIAL, "more/fox/1.jpg"], "has more beside test, which names a split"),
        (OFFICIAL[:4], "train and validation but none for test"),
        (
            ["Train/cat/1.jpg", "training/dog/1.jpg", "test/cat/1.jpg"],
            "Train and training, which both name the split train",
        ),
        (
            ["Train/cat/1.jpg", "Train/dog/1.jpg", "mine/cat/1.jpg", "mine/dog/1.jpg"],
            "has mine beside Train, which names",
        ),
        (["Train/cat/1.jpg", "Test/cat/1.jpg", "extra/cat/1.jpg"], "has extra beside Test, which names a split"),
    ],
)
def test_directories_that_are_refused(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        datasets.open_labeled(fill(tmp_path, names))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,label\n1.jpg,a\n", "no column 'image'"),
        ("image,split\n1.jpg,train\n", "no column 'label'"),
        ("image,label\n", "names no images"),
        ("", "no column"),
        ("image,label\n1.jpg,a\n2.jpg\n", "no label in its row 2"),
        ("image,label\n1.jpg,a\n./1.jpg,b\n", "names the image 1.jpg twice"),
        ("image,label\n1.jpg,a\n../out.jpg,b\n", "stay in its directory"),
        ("image,label\n1.jpg,a\nsub/../../out.jpg,b\n", "stay in its directory"),
        ("image,label\n1.jpg,a\n/etc/hosts,b\n", "stay in its directory"),
        ("image,label\n1.jpg,a\nlink.jpg,b\n", "link.jpg .* leads out"),
        ("image,label\n1.jpg,a\nsub,b\n", "is no file"),
        ("image,label\n1.jpg,a\n2.jpg,a\n", "one class only"),
        ("image,label,split\n1.jpg,a,train\n2.jpg,b,later\n", "split 'later' for 2.jpg"),
        ("image,label,split\n1.jpg,a,train\n2.jpg,b,train\n", "none for test"),
        ("image,label,split\n1.jpg,a,train\n2.jpg,b\n", "split '' for 2.jpg"),
        ("image,label,group\n1.jpg,a,x\n2.jpg,b\n", "no group for 2.jpg"),
        ('image,label\n"1.jpg,a\n', "can't be read as a CSV"),
        (b"image,label\n\xff\xfe.jpg,a\n", "can't be read as a CSV"),
    ],
)
def test_csv_files_that_are_refused(tmp_path, text, message):
    root = fill(tmp_path / "root", ["1.jpg", "2.jpg", "sub/3.jpg"])
    fill(tmp_path, ["out.jpg"])
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    path = root / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        datasets.open_labeled(path)


def test_links_out_of_a_directory_are_refused(tmp_path):
    root = fill(tmp_path / "root", FLAT)
    fill(tmp_path / "elsewhere", ["1.jpg"])
    (root / "cat" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    with pytest.raises(UserError, match=r"cat/link\.jpg .* leads out"):
        datasets.open_labeled(root)
    (root / "cat" / "link.jpg").unlink()
    (root / "fox").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="fox is a link to a directory"):
        datasets.open_labeled(root)
    pack(tmp_path / "elsewhere" / "train.zip", FLAT)
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "train.zip").symlink_to(tmp_path / "elsewhere" / "train.zip")
    with pytest.raises(UserError, match=r"train\.zip .* leads out"):
        datasets.open_labeled(tmp_path / "zips")
    assert len(datasets.open_labeled(tmp_path / "zips", [tmp_path / "elsewhere"])) == len(FLAT)


def test_a_link_root_is_no_way_around_the_rule_for_paths(tmp_path):
    fill(tmp_path, ["root/1.jpg", "root/2.jpg", "cache/3.jpg"])
    path = table(tmp_path / "root" / "a.csv", "image,label\n1.jpg,a\n2.jpg,b\n../cache/3.jpg,b\n")
    with pytest.raises(UserError, match="stay in its directory"):
        datasets.open_labeled(path, [tmp_path / "cache"])


def test_links_into_named_roots_are_followed(tmp_path):
    root = fill(tmp_path / "root", FLAT)
    cache = fill(tmp_path / "cache", ["blobs/1", "fox/1.jpg", "fox/2.jpg"])
    (root / "cat" / "link.jpg").symlink_to(cache / "blobs" / "1")
    (root / "fox").symlink_to(cache / "fox")
    images = datasets.open_labeled(root, [cache])
    assert images.classes == ("cat", "dog", "fox")
    assert images.read(images.names.index("cat/link.jpg")) == b"blobs/1"
    assert images.read(images.names.index("fox/2.jpg")) == b"fox/2.jpg"
    with pytest.raises(UserError, match="leads out"):
        datasets.open_labeled(root, [cache / "fox"])
    (cache / "fox" / "again").symlink_to(cache / "fox")
    with pytest.raises(UserError, match="listed already"):
        datasets.open_labeled(root, [cache])


def test_a_pipe_without_suffix_is_not_read(tmp_path):
    os.mkfifo(fill(tmp_path, FLAT) / "cat" / "pipe")
    check(datasets.open_labeled(tmp_path), FLAT)


@pytest.mark.parametrize("other", ["extra/cat/1.jpg", "extra/1.jpg"])
@pytest.mark.parametrize("split", ["Train", "test_set", "eval"])
def test_a_split_beside_other_directories_is_refused(tmp_path, split, other):
    with pytest.raises(UserError, match=f"has extra beside {split}, which names a split"):
        datasets.open_labeled(fill(tmp_path, [f"{split}/cat/1.jpg", f"{split}/dog/1.jpg", other]))


def test_splits_below_the_classes_are_refused(tmp_path):
    names = [f"{label}/{split}/1.jpg" for split in ("Train", "eval") for label in ("cat", "dog")]
    with pytest.raises(UserError, match="has Train and eval below its class directories"):
        datasets.open_labeled(fill(tmp_path, names))


@pytest.mark.parametrize("name", ["val", "Valid", "validation", "dev", "val_set", "validation-images", "valset"])
def test_validation_has_common_names(name):
    assert listing.split_of(name) == "validation"


@pytest.mark.parametrize("name", ["trains", "contest", "testament", "cat", "development", "training wheels", "value"])
def test_other_names_are_no_splits(name):
    assert listing.split_of(name) is None


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    names = ["bus/1.jpg", "car/1.jpg", "train/1.jpg", "train/2.jpg"]
    images = datasets.open_labeled(fill(tmp_path, names))
    assert images.classes == ("bus", "car", "train")
    assert images.splits is None


def test_texts_and_groups_of_a_csv_file(tmp_path):
    fill(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    header = "image,label,text,group\n"
    images = datasets.open_labeled(table(tmp_path / "a.csv", header + '2.jpg,b,"why, thanks",p\n1.jpg,a,,q\n'))
    assert images.texts == ("", "why, thanks")
    assert images.groups == ("q", "p")
    other = datasets.open_labeled(table(tmp_path / "b.csv", header + "2.jpg,b,no thanks,p\n1.jpg,a,,q\n"))
    plain = datasets.open_labeled(table(tmp_path / "c.csv", "image,label\n2.jpg,b\n1.jpg,a\n"))
    assert len({images.fingerprint, other.fingerprint, plain.fingerprint}) == 3
    assert plain.texts is plain.groups is None
    rows = "image,label,group,split\n1.jpg,a,p,train\n2.jpg,b,q,train\n3.jpg,a,p,test\n"
    with pytest.raises(UserError, match="the group p has examples in train and test"):
        datasets.open_labeled(table(tmp_path / "d.csv", rows))


def test_a_subset_keeps_classes_and_files(tmp_path):
    images = datasets.open_labeled(fill(tmp_path, OFFICIAL))
    some = images.subset(np.array([0, 2, 3]))
    assert some.names == tuple(images.names[index] for index in (0, 2, 3))
    assert some.classes == images.classes
    assert some.splits == ("test", "train", "train")
    assert some.labels.tolist() == [0, 0, 1]
    assert some.read(1).decode() == images.names[2]
    assert some.fingerprint != images.fingerprint


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        datasets.open_labeled(tmp_path / "nowhere")
    with pytest.raises(UserError, match="can't be read as a CSV"):
        datasets.open_labeled(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="can't be read as a zip"):
        datasets.open_labeled(table(tmp_path / "text.zip", "no archive"))
    with pytest.raises(UserError, match="is no set of images"):
        datasets.open_labeled(table(tmp_path / "text.tar", "no archive"))
    pack(tmp_path / "two" / "a.zip", FLAT)
    pack(tmp_path / "two" / "b.zip", [*FLAT[:1], "fox/1.jpg"])
    with pytest.raises(UserError, match=r"cat/1\.jpg in two zip"):
        datasets.open_labeled(tmp_path / "two")
    fill(tmp_path / "two", FLAT)
    with pytest.raises(UserError, match="both images and zip"):
        datasets.open_labeled(tmp_path / "two")


def test_one_image_is_a_dataset(tmp_path):
    images = datasets.open_unlabeled(fill(tmp_path, FLAT) / "cat" / "2.PNG")
    assert images.names == ("2.PNG",)
    assert images.read(0) == b"cat/2.PNG"


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(UserError, match="a name that is no UTF-8"):
        datasets.open_unlabeled(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *[("Train", "Test"), ("TRAINING", "testing"), ("training", "TEST"), ("Train", "eval")],
        *[("train_set", "test_set"), ("trainset", "testset"), ("Train Images", "Test-Images"), ("train", "evaluation")],
        *[("images_train", "images_test"), ("train2017", "test2017"), ("train data", "TestSet")],
    ],
)
def test_splits_are_recognized_by_common_names(tmp_path, train, test):
    names = [f"{split}/{label}/1.jpg" for split in (train, test) for label in ("cat", "dog")]
    images = datasets.open_labeled(fill(tmp_path / "plain", names))
    assert images.classes == ("cat", "dog")
    assert dict(zip(images.names, images.splits, strict=True)) == {
        name: "train" if name.startswith(train) else "test" for name in names
    }
    assert datasets.open_labeled(pack(tmp_path / "set.zip", names)).splits == images.splits
    rows = "".join(f"plain/{name},{name.split('/')[1]},{name.split('/')[0]}\n" for name in names)
    assert datasets.open_labeled(table(tmp_path / "t.csv", "image,label,split\n" + rows)).splits == images.splits


@pytest.mark.parametrize("system", ["@eaDir", ".thumbnails", "$RECYCLE.BIN", "#recycle", "lost+found", "__MACOSX"])
def test_directories_of_the_system_are_ignored(tmp_path, system):
    names = [*FLAT, f"{system}/1.jpg", f"cat/{system}/1.jpg/SYNOPHOTO_THUMB_M.jpg"]
    check(datasets.open_labeled(fill(tmp_path / "plain", names)), FLAT)
    check(datasets.open_labeled(pack(tmp_path / "set.zip", names)), FLAT)
    assert len(datasets.open_unlabeled(tmp_path / "plain")) == len(FLAT)


def test_images_are_recognized_by_content(tmp_path):
    fill(tmp_path, ["cat/1.jfif", "cat/2.jpe", "dog/3.webp", "cat/notes.txt", "dog/README"])
    for name, content in {"cat/4.JPG_large": b"\xff\xd8\xff\xe0....", "dog/5": b"RIFF....WEBPVP8 "}.items():
        (tmp_path / name).write_bytes(content)
    expected = ("cat/1.jfif", "cat/2.jpe", "cat/4.JPG_large", "dog/3.webp", "dog/5")
    assert datasets.open_labeled(tmp_path).names == expected
    with zipfile.ZipFile(tmp_path.parent / "content.zip", "w") as archive:
        for path in tmp_path.rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    assert datasets.open_labeled(tmp_path.parent / "content.zip").names == expected


@pytest.mark.parametrize("damage", ["name", "lzma"])
def test_a_damaged_archive_is_one_sentence(tmp_path, damage):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("ä/1.jpg", bytes(range(256)) * 40)
    content = path.read_bytes()
    if damage == "name":
        content = content.replace("ä/1".encode(), b"\xff\xfe/1")
    else:
        start = content.index(b"1.jpg") + 20
        content = content[:start] + b"\xff" * 40 + content[start + 40 :]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip"):
        datasets.open_unlabeled(path).read(0)
