"""ImageNet: its archives become a folder a class, also half-done ones."""

import io
import os
import tarfile

import numpy as np
import pytest
import scipy.io
from datafiles import cut, fail_after, md5, names, snapshot, tar_of
from PIL import Image
from torchvision.datasets.imagenet import ARCHIVE_META

from sift_mm.datasets import imagenet

# Its own numbers of the classes follow neither their names nor the order of
# the validation images. The fifth one is not a class but a parent of some.
SYNSETS = [
    (1, 'n01484850', 0),
    (2, 'n01440764', 0),
    (3, 'n01443537', 0),
    (4, 'n99999999', 2),
]
TRUTH = [3, 1, 1, 2, 3, 2]
FOLDERS = ['n01443537', 'n01484850', 'n01484850', 'n01440764', 'n01443537',
           'n01440764']  # fmt: skip


def jpeg(level):
    stream = io.BytesIO()
    Image.new('RGB', (4, 4), (level, level, level)).save(stream, 'JPEG')
    return stream.getvalue()


def devkit():
    fields = 'ILSVRC2012_ID WNID words gloss num_children children '
    fields += 'wordnet_height num_train_images'
    rows = [
        (number, name, f'{name}, thing', 'a thing', children, 0, 0, 0)
        for number, name, children in SYNSETS
    ]
    synsets = np.array(rows, [(field, object) for field in fields.split()])
    mat = io.BytesIO()
    scipy.io.savemat(mat, {'synsets': synsets.reshape(-1, 1)})
    folder = 'ILSVRC2012_devkit_t12/data'
    truth = ''.join(f'{number}\n' for number in TRUTH).encode()
    return tar_of(
        {
            f'{folder}/meta.mat': mat.getvalue(),
            f'{folder}/ILSVRC2012_validation_ground_truth.txt': truth,
        },
        'w:gz',
    )


def val_name(number):
    return f'ILSVRC2012_val_{number:08d}.JPEG'


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The three archives of nine images of three classes."""
    root = tmp_path / 'imagenet'
    root.mkdir()
    monkeypatch.setattr(imagenet, 'IMAGES', {'train': 3, 'val': 6})
    monkeypatch.setattr(imagenet, 'CLASSES', 3)
    contents = {
        'train': tar_of(
            {
                f'{name}.tar': tar_of({f'{name}_7.JPEG': jpeg(number)})
                for number, name, children in SYNSETS
                if not children
            }
        ),
        'val': tar_of({val_name(n): jpeg(n) for n in (4, 1, 6, 2, 3, 5)}),
        'devkit': devkit(),
    }
    for part, content in contents.items():
        name = ARCHIVE_META[part][0]
        (root / name).write_bytes(content)
        monkeypatch.setitem(ARCHIVE_META, part, (name, md5(content)))
    return root


def val_tree(root):
    return sorted(str(p.relative_to(root)) for p in root.glob('val/*/*'))


VAL_TREE = sorted(f'val/{f}/{val_name(n)}' for n, f in enumerate(FOLDERS, 1))


@pytest.fixture
def flat(root):
    """Validation images unpacked as people do, into one folder."""
    archive = root / ARCHIVE_META['val'][0]
    with tarfile.open(archive) as source:
        source.extractall(root / 'val', filter='data')
    archive.unlink()
    return root


def test_it_is_unpacked_once(root, prepare):
    said = prepare('imagenet', root)
    assert said.endswith('is complete: 3 + 6 images\n')
    assert val_tree(root) == VAL_TREE
    path = root / f'val/n01443537/{val_name(5)}'
    assert path.read_bytes() == jpeg(5)
    train = root / 'train'
    assert sorted(str(p.relative_to(train)) for p in train.glob('*/*')) == [
        'n01440764/n01440764_7.JPEG',
        'n01443537/n01443537_7.JPEG',
        'n01484850/n01484850_7.JPEG',
    ]
    assert len(names(root)) == 5
    for path in root.glob('*.tar*'):  # They are needed no more.
        path.unlink()
    before = snapshot(root)
    prepare('imagenet', root)
    assert snapshot(root) == before
    assert names(root) == ['train', 'val']


def test_flat_validation_images_are_sorted_also_if_interrupted(
    flat, prepare, refuse, monkeypatch
):
    replace = os.replace
    failing = fail_after(3, replace)

    def three(source, target):
        (failing if 'val_' in str(source) else replace)(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', three)
        refuse('imagenet', flat)
    assert len(val_tree(flat)) == 3
    prepare('imagenet', flat)
    assert val_tree(flat) == VAL_TREE
    assert imagenet.flat_images(flat / 'val') == []


@pytest.mark.parametrize('name', ['7', '0', 'x'])
def test_an_image_that_is_not_of_validation_is_named(flat, refuse, name):
    path = flat / 'val' / f'ILSVRC2012_val_{name}.JPEG'
    path.write_bytes(jpeg(0))
    said = refuse('imagenet', flat)
    assert f'{path} is none of the 6 validation images' in said


def test_a_flat_val_with_a_list_is_left_as_it_is(flat, prepare, refuse):
    """MMPreTrain reads it by the list; moved, it would not find them."""
    listed = flat / 'meta' / 'val.txt'
    listed.parent.mkdir()
    listed.write_text(''.join(f'{val_name(n)} {n % 3}\n' for n in range(1, 7)))
    prepare('imagenet', flat)
    assert len(imagenet.flat_images(flat / 'val')) == 6

    (flat / 'val' / val_name(4)).unlink()
    assert f'the first is {val_name(4)}' in refuse('imagenet', flat)

    listed.write_text('no_class\n')
    said = refuse('imagenet', flat)
    assert 'val.txt should have the path and the class' in said


def test_it_says_what_to_get(tmp_path, refuse):
    root = tmp_path / 'none'
    said = refuse('imagenet', root)
    for archive, _ in ARCHIVE_META.values():
        assert archive in said
    assert 'https://image-net.org/download-images' in said
    assert f'{root}/val/WNID/*.JPEG' in said
    assert not root.exists()


def test_it_asks_for_the_devkit_to_sort_val(flat, refuse):
    (flat / ARCHIVE_META['devkit'][0]).unlink()
    said = refuse('imagenet', flat)
    assert 'ILSVRC2012_devkit_t12.tar.gz' in said
    assert 'ILSVRC2012_img_val.tar' not in said
    assert len(imagenet.flat_images(flat / 'val')) == 6


def test_it_says_that_scipy_is_missing(root, refuse, monkeypatch):
    monkeypatch.setattr(imagenet, 'find_spec', lambda _: None)
    assert '`pip install scipy`' in refuse('imagenet', root)


@pytest.mark.parametrize('part', ['train', 'val', 'devkit'])
def test_an_archive_cut_short_is_refused(root, refuse, part):
    path = root / ARCHIVE_META[part][0]
    cut(path, 100)
    said = refuse('imagenet', root)
    assert f'{path} is missing, broken or another file' in said
    assert set(names(root)) <= {
        *(name for name, _ in ARCHIVE_META.values()),
        *({'train'} if part != 'train' else ()),
    }


def test_an_interruption_leaves_no_half_folder(root, prepare, monkeypatch):
    before = names(root)
    with monkeypatch.context() as patch:
        failing = fail_after(2, tarfile.TarFile.extractall)
        patch.setattr(
            tarfile.TarFile,
            'extractall',
            lambda *args, **kwargs: failing(*args, **kwargs),
        )
        with pytest.raises(OSError, match='No space left'):
            imagenet.prepare(root)
    assert names(root) == before
    prepare('imagenet', root)


def test_what_is_damaged_is_said(root, prepare, refuse):
    prepare('imagenet', root)
    broken, lost = root / VAL_TREE[2], root / VAL_TREE[0]
    whole = broken.read_bytes()
    broken.write_bytes(b'\xff\xd8')
    assert f'{broken} cannot be read' in refuse('imagenet', root)
    broken.write_bytes(whole)
    (root / 'val/n01440764').rename(root / 'val/n1')
    said = refuse('imagenet', root)
    assert 'different classes, n01440764 is in one of them only' in said
    (root / 'val/n1').rename(root / 'val/n01440764')
    lost.unlink()
    said = refuse('imagenet', root)
    assert 'val holds 5 images of 3 classes instead of 6 of 3' in said
