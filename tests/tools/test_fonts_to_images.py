"""Glyphs of matplotlib's fonts: families kept apart, the same every time, whole or not there."""

import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from PIL import Image

from tests.tools.conftest import TOOLS

FONTS = Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
FEW = '&5Adg'
TOOL = 'dataset_converters/fonts_to_images.py'
CONFIG = TOOLS.parent / 'benchmarks/compare/data/glyphs_28.py'  # and what it inherits


@pytest.fixture(scope='module')
def converter():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import dataset_converters.fonts_to_images as module

        yield module
    sys.modules.pop('dataset_converters.fonts_to_images')


@pytest.fixture(scope='module')
def typefaces(converter):
    return converter.read_typefaces([FONTS])


@pytest.fixture(scope='module')
def write(converter, typefaces):
    """Writes a few characters: only two of matplotlib's families have Greek and Cyrillic."""
    kept = [converter.Typeface(t.name, t.family, {c: t.glyphs[c] for c in FEW}) for t in typefaces]

    def run(out, characters=FEW, **options):
        defaults = dict(size=28, per_font=1, test_share=0.2, seed=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(converter, 'CHARACTERS', characters)
            converter.write_data_set(kept, out, **{**defaults, **options})
        return files(out)

    return run


@pytest.fixture(scope='module')
def folder(write, tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'glyphs'
    write(folder, per_font=2)
    return folder


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_a_hundred_characters_without_the_cases_that_look_alike(converter):
    assert len(converter.CHARACTERS) == len(set(converter.CHARACTERS)) == 100
    for letter in 'CKOPSUVWXYZΘΠΦΨ':
        assert letter in converter.CHARACTERS and letter.lower() not in converter.CHARACTERS


def test_fonts_with_other_pictures_for_letters_are_left_out(typefaces):
    names = [typeface.name for typeface in typefaces]
    assert {'dejavu-sans-book', 'stixgeneral-italic', 'cmr-10-regular'} <= {*names}
    symbols = ('cmex', 'cmsy', 'stixsize', 'stixnon', 'dejavu-sans-display')
    assert not [name for name in names if name.startswith(symbols)]
    assert sum(t.family == 'dejavu' for t in typefaces) == 12  # sans, mono and serif


def test_a_typeface_has_no_character_that_its_font_lacks(typefaces):
    [roman] = [typeface for typeface in typefaces if typeface.name == 'cmr-10-regular']
    assert {'A', '§'} < roman.glyphs.keys() and not {'Ж', 'Ω', '€'} & roman.glyphs.keys()


def test_a_family_with_the_letters_of_another_goes_with_it(converter, typefaces):
    stix = next(t for t in typefaces if t.name == 'stixgeneral-bold')
    copy = converter.Typeface('other-bold', 'other', stix.glyphs)
    merged = {t.name: t.family for t in converter.comparable([*typefaces, copy])}
    assert merged['other-bold'] == merged['stixgeneral-bold'] == merged['stixgeneral-italic']
    assert len(set(merged.values())) == len({t.family for t in typefaces})


def test_no_family_is_in_two_parts_and_all_parts_have_all_classes(converter, typefaces, folder):
    family = {typeface.name: typeface.family for typeface in typefaces}
    seen = {}
    for part in converter.PARTS:
        classes = sorted(path.name for path in (folder / part).iterdir())
        assert classes == [f'u{ord(c):04x}' for c in FEW]
        for name in classes:
            images = sorted((folder / part / name).iterdir())
            assert images
            seen.setdefault(part, set()).update(family[p.stem.rpartition('_')[0]] for p in images)
    parts = list(seen.values())
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(set(family.values()))
    assert len(list(folder.rglob('*.png'))) == 2 * len(typefaces) * len(FEW)


def test_the_same_every_time_and_another_with_another_seed(write, folder, tmp_path):
    first = files(folder)
    assert write(tmp_path / 'again', per_font=2) == first
    # where there is one image of two, it is the first
    assert write(tmp_path / 'one').items() < first.items()
    other = write(tmp_path / 'other', per_font=2, seed=1)
    assert not {b for p, b in other.items() if '.png' in p} & {*first.values()}


def test_names_and_folders_of_font_files_do_not_matter(converter, typefaces, tmp_path):
    for i, path in enumerate(sorted(FONTS.glob('*.ttf'), reverse=True)):
        target = tmp_path / 'ab'[i % 2] / f'{i}.TTF'
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    found = converter.read_typefaces([tmp_path / 'b', tmp_path / 'a', tmp_path / 'b'])
    assert [(t.name, t.family, t.glyphs) for t in found] == [
        (t.name, t.family, t.glyphs) for t in typefaces
    ]


def test_glyphs_are_drawn_whole_light_on_dark_at_any_size(converter, typefaces):
    rng = np.random.default_rng(0)
    for size in (16, 28, 64):
        for typeface in typefaces:
            image = converter.draw(typeface.glyphs['A'], size, rng)
            assert image.shape == (size, size) and image.dtype == np.uint8
            edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert np.percentile(image, 99) > np.median(edge) + 50
            assert edge.mean() < np.median(edge) + 15  # no ink is cut off


def test_images_of_the_config_have_its_shape_and_their_class(folder, converter):
    config = Config.fromfile(CONFIG)
    lines = (folder / 'classes.txt').read_text().splitlines()
    assert lines == [f'u{ord(c):04x} {c}' for c in FEW]
    parts = {
        'train': config.train_dataloader.dataset,
        'validation': config.validation_dataset,
        'test': config.test_dataloader.dataset,
    }
    for part, dataset in parts.items():
        assert dataset.data_prefix == part
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            built = DATASETS.build({**dataset, 'data_root': str(folder)})
        assert len(built) == len(list((folder / part).rglob('*.png')))
        for i in (0, len(built) - 1):
            sample = built[i]
            assert sample['inputs'].shape == config.input_shape
            path = Path(sample['data_samples'].img_path)
            assert lines[int(sample['data_samples'].gt_label)].split()[0] == path.parent.name
            if part != 'train':
                assert np.array_equal(sample['inputs'][0], np.asarray(Image.open(path)))
    assert config.data_preprocessor.num_classes == len(converter.CHARACTERS)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(size=8), '--size 8'),
        (dict(per_font=0), '--per-font 0'),
        (dict(test_share=1.0), '--test-share 1.0 leaves a part'),
        (dict(test_share=0.0), '--test-share 0.0 leaves a part'),
        (dict(characters=FEW + 'Ж'), '--fonts: no typeface of train has Ж'),
    ],
)
def test_refused_and_nothing_is_left(write, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / 'out', **options)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_call_leaves_nothing(write, converter, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, 'draw', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_flags_that_are_refused_are_named(call, tmp_path, capsys):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/mine').touch()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'one').mkdir()
    shutil.copy(FONTS / 'DejaVuSans.ttf', tmp_path / 'one')
    (tmp_path / 'broken/a.ttf').write_bytes(b'no font')
    for flags, message in {
        ('--out', tmp_path / 'full', '--fonts', FONTS): f'--out {tmp_path / "full"} is there and',
        ('--out', tmp_path / 'new', '--fonts', tmp_path / 'broken'): 'found: 0, needed: 5',
        ('--out', tmp_path / 'new', '--fonts', tmp_path / 'one'): 'found: 1, needed: 5',
        ('--out', tmp_path / 'new', '--fonts', tmp_path / 'x'): f'--fonts {tmp_path / "x"} is no',
    }.items():
        with pytest.raises(SystemExit):
            call(TOOL, *flags)
        error = capsys.readouterr().err
        assert message in error
        assert ('fonts-dejavu-core' in error) == ('--out' not in message)
    assert files(tmp_path / 'full') == {'mine': b''} and not (tmp_path / 'new').exists()
