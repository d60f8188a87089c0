"""A hundred characters in many typefaces, as folders that mmpretrain's CustomDataset reads.

``python tools/dataset_converters/fonts_to_images.py --out data/glyphs`` draws what the fonts of
this machine have; nothing is downloaded. No family of typefaces is in two of ``OUT/train``,
``OUT/validation`` and ``OUT/test``. ``OUT/classes.txt`` has a line per class. The same fonts,
arguments and Pillow give the same files, wherever the fonts lie. The fonts of the data set in use
are Debian's ``fonts-`` adf-universalis, agave, anonymous-pro, averia-sans-gwf, comfortaa,
crosextra-caladea, dejavu, fantasque-sans, firacode, freefont-ttf, inconsolata, jetbrains-mono,
lato, liberation, monofur, monoid, mononoki, oldstandard, open-sans, oxygen, paratype,
play, quicksand, roboto-unhinted, sil-andika, sil-charis, sil-gentiumplus, tuffy, vollkorn.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from mmengine.logging import MMLogger
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mmstp.atomic_files import write_text

# All are scaled to one size. Of those that look alike then, upright or italic, one is here: 1 (I l
# |), 3 (З), 9 (q), C (c), K (k κ К), O (0 o °), P (p ρ), S (s), U (u), V (v), W (w), X (x χ),
# Y (y γ У), Z (z), Γ (Г), Δ (Д), Θ (θ), Λ (^ Л), Π (π П), Φ (φ Ф), Ψ (ψ), Ш (Щ), a (α), ß (β).
CHARACTERS = (
    '123456789ABCDEFGHJKLMNOPQRSTUVWXYZadefghijmnrt'
    'ÆÇÑØÞßÅΓΔΘΛΞΠΣΦΨΩδζηλμξσωБЖИЦЧШЪЫЭЮЯ?&@#$%*+={}~§©€£½÷'
)
LATIN = CHARACTERS[:46]
PARTS = ('train', 'validation', 'test')
VALIDATION_SHARE = 0.15  # of the typefaces
FEWEST = 5  # families
HINT = 'Debian has fonts-dejavu-core, fonts-liberation, fonts-freefont-ttf, fonts-lato and more'
EM = 96  # pixels, of glyphs before they are scaled
FINE = 4  # pixels across one of the image, while it is drawn
SMALL = (12, 12)  # of glyphs, for comparing typefaces
COPY = 0.97  # the likeness of copied outlines; two designs come to 0.94


@dataclass
class Typeface:
    """A font: family and style, the family's first word, and the ink of what it has to draw."""

    name: str
    family: str  # a word, so that Lato Light goes with Lato, and Liberation Mono with its Sans
    glyphs: dict[str, Image.Image]


def read_typefaces(folders: list[Path]) -> list[Typeface]:
    """The typefaces with Latin letters in some folders, by name; of several with a name, one."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f'--fonts {folder} is no folder. {HINT}')
    paths = [path for folder in folders for path in folder.rglob('*')]
    fonts = {p.read_bytes(): p for p in paths if p.suffix.lower() in ('.ttf', '.otf')}
    found: dict[str, Typeface] = {}
    for content in sorted(fonts, key=zlib.crc32):  # an order that does not know where files lie
        try:
            typeface = read_typeface(fonts[content])
            found.setdefault(typeface.name, typeface)
        except (OSError, KeyError, TTLibError) as error:
            _log(f'{fonts[content]} is left out: {error}')
    typefaces = comparable([found[name] for name in sorted(found)])
    count = len({typeface.family for typeface in typefaces})
    if count < FEWEST:
        where = ' '.join(map(str, folders))
        raise ValueError(f'--fonts {where}: families found: {count}, needed: {FEWEST}. {HINT}')
    return typefaces


def read_typeface(path: Path) -> Typeface:
    """A font file's glyphs, each cut to its ink."""
    # not Raqm, which may be there or not
    font = ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)
    with TTFont(path, lazy=True) as tables:
        known = tables.getBestCmap() or {}
    glyphs = {}
    for character in CHARACTERS:
        if known.get(ord(character), '.notdef') != '.notdef':
            paper = Image.new('L', (2 * EM, 2 * EM))
            ImageDraw.Draw(paper).text((EM // 2, EM // 4), character, 255, font)
            if box := paper.getbbox():  # some glyphs are empty
                glyphs[character] = paper.crop(box)
    full_name = ' '.join(filter(None, font.getname())) or path.stem
    words = re.findall(r'[^\W\d_]+|\d+', full_name.lower())
    return Typeface('-'.join(words), words[0], glyphs)


def comparable(typefaces: list[Typeface]) -> list[Typeface]:
    """Those whose letters look like letters; families that are copies of each other become one."""
    letters = np.arange(len(LATIN))
    pictures = np.zeros((len(typefaces), len(LATIN), math.prod(SMALL)), dtype=np.float32)
    for row, typeface in zip(pictures, typefaces, strict=True):
        for i, character in enumerate(LATIN):
            if glyph := typeface.glyphs.get(character):
                grey = np.asarray(glyph.resize(SMALL, Image.Resampling.BOX)).ravel()
                row[i] = (grey - grey.mean()) / max(np.linalg.norm(grey - grey.mean()), 1)
    families = np.array([typeface.family for typeface in typefaces], dtype=object)
    flat = pictures.reshape(len(typefaces), len(LATIN) * math.prod(SMALL))
    for i, copies in enumerate(flat @ flat.T / len(LATIN) > COPY):
        for family in sorted({*families[copies]} - {families[i]}):
            _log(f'{family} has the letters of {families[i]}: they go into one part')
            families[families == family] = families[i]
    kept = []
    for typeface, family, row in zip(typefaces, families, pictures, strict=True):
        others = pictures[families != family].reshape(-1, row.shape[1])
        nearest = (row @ others.T).argmax(1) % len(LATIN) if len(others) else letters
        known = int(np.sum((nearest == letters) & row.any(1)))
        if known > 0.75 * len(LATIN):  # of fonts of one case, too, letters look like others
            kept.append(Typeface(typeface.name, family, typeface.glyphs))
        else:
            _log(f'{typeface.name} is left out: {known} of {len(LATIN)} letters look like letters')
    return kept


def split(typefaces: list[Typeface], test_share: float, seed: int) -> dict[str, str]:
    """The part that every family goes into: in random order, the next that is not full."""
    sizes = Counter(typeface.family for typeface in typefaces)
    shares = {'test': test_share, 'validation': VALIDATION_SHARE, 'train': 1}
    had: Counter[str] = Counter()
    parts = {}
    for family in np.random.default_rng(seed).permutation(sorted(sizes)).tolist():
        parts[family] = next(p for p in shares if had[p] < shares[p] * len(typefaces))
        had[parts[family]] += sizes[family]
    if set(had) != set(shares):
        raise ValueError(f'--test-share {test_share} leaves a part of {PARTS} without a family')
    return parts


def draw(glyph: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A glyph at a random size, place, angle, weight, sharpness and contrast, with noise."""
    side = FINE * size
    scale = rng.uniform(0.6, 0.8) * side / max(glyph.size)
    narrow = math.exp(rng.uniform(-0.1, 0.1))
    width, height = (max(1, round(scale * n)) for n in (glyph.width * narrow, glyph.height))
    left, top = ((side - n) // 2 + round(rng.uniform(-0.08, 0.08) * side) for n in (width, height))
    image = Image.new('L', (side, side))
    image.paste(glyph.resize((width, height)), (left, top))
    image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:  # thicker; thinner would leave nothing of a hairline
        image = image.filter(ImageFilter.MaxFilter(3))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8 * FINE)))
    ink = np.asarray(image.reduce(FINE), dtype=np.float64)
    dark, light, noise = rng.uniform(0, 70), rng.uniform(150, 255), rng.uniform(0, 20)
    grey = dark + (light - dark) * ink / ink.max() + rng.normal(0, noise, ink.shape)
    return np.rint(grey).clip(0, 255).astype(np.uint8)


def write_data_set(
    typefaces: list[Typeface], out: Path, size: int, per_font: int, test_share: float, seed: int
) -> None:
    """Writes ``<part>/<class>/<typeface>_<n>.png`` and ``classes.txt``: all, or nothing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'--out {out} is there and not empty: remove it or name another folder')
    if size < 16 or per_font < 1:
        raise ValueError(f'--size {size} --per-font {per_font}: expected at least 16 and 1')
    classes = {character: f'u{ord(character):04x}' for character in sorted(CHARACTERS)}
    parts = split(typefaces, test_share, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as beside:
        whole = Path(beside) / out.name
        for part in PARTS:
            own = [typeface for typeface in typefaces if parts[typeface.family] == part]
            for character, name in classes.items():
                having = [typeface for typeface in own if character in typeface.glyphs]
                if not having:  # the labels of all further classes would be others
                    raise ValueError(f'--fonts: no typeface of {part} has {character}; add fonts')
                (whole / part / name).mkdir(parents=True)
                for typeface in having:
                    # of nothing else: with fonts added, the others' images stay
                    entropy = (seed, zlib.crc32(typeface.name.encode()), ord(character))
                    rng = np.random.default_rng(entropy)
                    for n in range(per_font):
                        image = Image.fromarray(draw(typeface.glyphs[character], size, rng))
                        image.save(whole / part / name / f'{typeface.name}_{n}.png')
            images = per_font * sum(len(typeface.glyphs) for typeface in own)
            families = len({typeface.family for typeface in own})
            _log(f'{part}: {images} images, {len(own)} typefaces of {families} families')
        lines = ''.join(f'{name} {character}\n' for character, name in classes.items())
        write_text(whole / 'classes.txt', lines)
        os.replace(whole, out)
    _log(f'{len(classes)} classes are in {out}')


def _log(line: str) -> None:
    MMLogger.get_instance('mmstp').info(line)


def main() -> None:
    """Reads the flags and writes the data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    fonts = [Path('/usr/share/fonts/truetype')]
    add('--fonts', nargs='+', type=Path, default=fonts, metavar='DIR', help='with .ttf and .otf')
    add('--out', type=Path, default=Path('data/glyphs'), help='folder of the data set')
    add('--size', type=int, default=28, help='of the images, in pixels')
    add('--per-font', type=int, default=1, help='images of every character of a typeface')
    add('--test-share', type=float, default=0.2, help='of the typefaces')
    add('--seed', type=int, default=0, help='another split, other images')
    args = parser.parse_args()
    try:
        options = vars(args)
        write_data_set(typefaces=read_typefaces(options.pop('fonts')), **options)
    except ValueError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
