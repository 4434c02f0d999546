"""Images, folders and videos as one stream of frames."""
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.frames import open_frames, predict_frames
from data.images import ImageFileError, Photograph
from tests.golden_inputs import photo
from utils.run.errors import UserError


def write_video(path: Path, count: int = 5) -> None:
    """Frames of one grey each: 40, 80, 120, ..."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (48, 32))
    for i in range(count):
        writer.write(np.full((32, 48, 3), (40 * (i + 1), 0, 0), np.uint8))  # blue in OpenCV's order
    writer.release()


def test_frames_of_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / 'film.avi')
    total, names, doubles, frames = open_frames(tmp_path / 'film.avi')
    read = [(name.as_posix(), load().pixels) for name, load in frames]
    assert (total, doubles) == (5, {})
    assert [name for name, _ in read] == names == [f'00000{i}.png' for i in range(5)]
    for i, (_, image) in enumerate(read):
        assert image.shape == (32, 48, 3)
        assert abs(float(image[..., 2].mean()) - 40 * (i + 1)) < 8  # blue comes last
        assert image[..., 0].mean() < 12


def test_folder_and_single_image(tmp_path: Path) -> None:
    for name in ('b.png', 'sub/a.jpg', 'sub/a.webp'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(name, 20, 30)).save(tmp_path / name)
    total, names, doubles, frames = open_frames(tmp_path)
    read = {name.as_posix(): load().pixels.shape for name, load in frames}
    assert total == 2
    assert [*read] == names
    assert read == {'b.png': (20, 30, 3), 'sub/a.jpg': (20, 30, 3)}
    assert doubles == {'sub/a.webp': 'sub/a.jpg'}
    total, names, doubles, frames = open_frames(tmp_path / 'sub' / 'a.webp')
    assert (total, doubles) == (1, {})
    assert [name.as_posix() for name, _ in frames] == names == ['a.webp']


def test_one_sentence_each(tmp_path: Path) -> None:
    (tmp_path / 'film.mp4').write_bytes(b'no film')
    (tmp_path / 'notes.txt').write_text('no image')
    for name, expected in (('film.mp4', 'video .* cannot be read'), ('notes.txt', 'is neither an image'),
                           ('none', 'does not exist'), ('.', 'holds no image')):
        with pytest.raises(UserError, match=expected):
            open_frames(tmp_path / name)


@pytest.mark.parametrize('broken', [set(), {0, 4}, {3, 4, 5}, set(range(7))])
def test_outputs_belong_to_their_images_wherever_others_cannot_be_read(broken: set[int]) -> None:
    def read(i: int) -> Photograph:
        if i in broken:
            raise ImageFileError(f'{i} is cut off', 'cut off')
        return Photograph(np.full((2, 2), i), 1)

    written, sizes = {}, []
    frames = [(Path(f'{i}.png'), lambda i=i: read(i)) for i in range(7)]
    made = list(predict_frames(
        frames, lambda name, photograph: photograph.pixels.sum(), np.array,
        lambda batch: [sizes.append(len(batch)), *(10 * batch)][1:],
        lambda name, image, output: written.update({name: (image[0, 0], output)}) or ('odd' if output % 80 else ''),
        3, 2))
    assert made == [(Path(f'{i}.png'), 'cut off' if i in broken else 'odd' if i % 2 else '') for i in range(7)]
    assert written == {Path(f'{i}.png'): (i, 40 * i) for i in range(7) if i not in broken}
    assert sizes == [n for n in (len({*batch} - broken) for batch in ([0, 1, 2], [3, 4, 5], [6])) if n]
