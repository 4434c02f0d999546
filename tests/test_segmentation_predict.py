"""New images through saved clusters and linear models: the script, and the function behind it."""
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.images import read_image
from data.label_maps import read_texts
from data.transforms import EvaluationTransform, resize_mask
from models.backbones import IMAGENET
from models.crf import dense_crf
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from segmentation import kmeans, predict, segmenter
from segmentation.objects import Objects
from segmentation.segmenter import FOREIGN, Segmenter, object_logits
from tests.colours import arguments
from tests.golden_inputs import photo
from tests.test_data_frames import write_video
from tests.test_utils_report_run import Page
from utils.report.pictures import legend, overlay
from utils.run.checkpoint import load_checkpoint, save_checkpoint
from utils.run.errors import UserError
from utils.run.files import PALETTE
from utils.run.script import run_script

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32
NAMES = ('a.jpg', 'sub/b.jpg', 'sub/c.png', 'sub/deep/d.webp', 'e.png', 'f.jpg')


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> Path:
    """photos/images, and results/kmeans of three clusters, by a random network that sees half of each image."""
    root = tmp_path_factory.mktemp('own')
    for i, name in enumerate(NAMES):
        path = root / 'photos' / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(name, 40 + 8 * i, 60)).save(path)
    torch.manual_seed(0)
    model = ContrastiveSegmentationModel('resnet18', ndim=8).eval()
    image = EvaluationTransform(SIZE, *IMAGENET)({'image': photo('a.jpg', 40, 60)})['image'][None]
    with torch.inference_mode():
        features = model.decoder(model.backbone(image))
    weight = model.classification_head.weight
    weight.data.fill_(0.5 / float(features.sum(1).median()))
    save_checkpoint({'model': {f'module.model_q.{name}': value for name, value in model.state_dict().items()}},
                    root / 'pretrained.pth.tar')
    kmeans.main(arguments('kmeans', root, 'saliency=network', 'val_db_name=photos', 'val_split=all', 'num_clusters=3',
                          'num_seeds=2', f'pretraining={root / "pretrained.pth.tar"}'))
    return root


@pytest.fixture
def model(own: Path, tmp_path: Path) -> Path:
    """A private copy of clusters.pth.tar and clusters.yml."""
    for name in ('clusters.pth.tar', 'clusters.yml'):
        (tmp_path / 'model').mkdir(exist_ok=True)
        (tmp_path / 'model' / name).write_bytes((own / 'results' / 'kmeans' / name).read_bytes())
    return tmp_path / 'model' / 'clusters.pth.tar'


def run(images: Path, output: Path, model: Path, *more: str) -> dict:
    predict.main(['--images', str(images), '--output', str(output), '--model', str(model), '--device', 'cpu',
                  '--workers', '2', '--batch-size', '4', *more])
    return json.loads((output / 'report.json').read_text())


def maps_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.array(Image.open(path)) for path in folder.rglob('*.png')}


def test_the_images_of_kmeans_get_the_maps_of_kmeans(own: Path, tmp_path: Path, model: Path, capsys) -> None:
    images, output = own / 'photos' / 'images', tmp_path / 'out'
    report = run(images, output, model)
    assert (report['images'], report['label maps_written'], report['left_out']) == (6, 6, {})
    before, now = maps_in(own / 'results' / 'kmeans' / 'predictions'), maps_in(output / 'predictions')
    assert now.keys() == before.keys() == {str(Path(name).with_suffix('.png')) for name in NAMES}
    for name, labels in before.items():
        np.testing.assert_array_equal(now[name], labels)
    assert len(np.unique(np.concatenate([labels.ravel() for labels in now.values()]))) == 4
    written = Image.open(output / 'predictions' / 'a.png')
    assert (written.mode, written.size) == ('P', (60, 40))
    assert written.getpalette()[:12] == PALETTE[:4].ravel().tolist()
    drawn = np.array(Image.open(output / 'overlays' / 'sub' / 'c.jpg')).astype(int)
    expected = overlay(read_image(images / 'sub' / 'c.png'), now['sub/c.png'])
    assert np.abs(drawn - expected).mean() < 12  # JPEG
    assert (output / 'legend.png').is_file()
    assert Image.open(output / 'contact_sheet.png').width > 300
    shown = Page(output / 'report.html')
    for text in ('label maps written', 'contact_sheet.png', 'cluster_3', 'merged clusters'):
        assert text in shown.text, text
    assert '--ink:#{:02x}{:02x}{:02x}'.format(*PALETTE[3]) in shown.values('style')
    assert '6 images: 6 label maps written, 0 there already, 0 left out' in capsys.readouterr().out


def test_the_function_gives_what_the_script_writes(own: Path, tmp_path: Path, model: Path) -> None:
    segment = Segmenter.load(model, 'cpu')
    assert segment.classes == ('background', 'cluster_1', 'cluster_2', 'cluster_3')
    path = own / 'photos' / 'images' / 'sub' / 'b.jpg'
    labels = segment(read_image(path))
    assert (labels.dtype, labels.shape) == (np.int32, (48, 60))
    np.testing.assert_array_equal(labels, maps_in(own / 'results' / 'kmeans' / 'predictions')['sub/b.png'])
    run(path, tmp_path / 'out', model)
    np.testing.assert_array_equal(labels, maps_in(tmp_path / 'out' / 'predictions')['b.png'])


def test_label_maps_are_unfinished_until_all_are_there(own: Path, tmp_path: Path, model: Path, monkeypatch) -> None:
    seen, names = [], tmp_path / 'out' / 'predictions' / 'classes.yml'
    monkeypatch.setattr(predict, 'save_label_map', lambda *_: seen.append(read_texts(names)['maps']))
    run(own / 'photos' / 'images', tmp_path / 'out', model)
    assert seen == ['unfinished'] * 6
    assert 'maps' not in read_texts(names)


def test_names_join_clusters(own: Path, tmp_path: Path, model: Path) -> None:
    image = own / 'photos' / 'images'
    plain = Segmenter.load(model, 'cpu')
    model.with_name('clusters.yml').write_text(yaml.safe_dump({'classes': ['background', 'dog', 'background', 'dog']}))
    named = Segmenter.load(model, 'cpu')
    for name in NAMES:
        table = np.array([0, 1, 0, 1])
        np.testing.assert_array_equal(named(read_image(image / name)), table[plain(read_image(image / name))])
    assert legend(named.classes).size[0] < legend(plain.classes).size[0]
    model.with_name('clusters.yml').unlink()
    assert Segmenter.load(model, 'cpu').classes == plain.classes
    run(image, tmp_path / 'out', model)
    model.with_name('clusters.yml').write_text(yaml.safe_dump({'classes': ['background', 'dog', 'background', 'dog']}))
    with pytest.raises(UserError, match='made with other settings .*merged clusters'):
        run(image, tmp_path / 'out', model)


def test_kmeans_again_keeps_names_of_the_same_clusters_alone(own: Path, tmp_path: Path) -> None:
    subprocess.run(['cp', '-r', str(own / 'photos'), str(tmp_path / 'photos')], check=True)
    folder = tmp_path / 'results' / 'kmeans'
    again = arguments('kmeans', tmp_path, 'saliency=network', 'val_db_name=photos', 'val_split=all', 'num_clusters=3',
                      'num_seeds=2', f'pretraining={own / "pretrained.pth.tar"}')
    kmeans.main(again)
    text = (folder / 'clusters.yml').read_text().replace('cluster_2', 'dog')
    (folder / 'clusters.yml').write_text(text)
    kmeans.main(again)
    assert (folder / 'clusters.yml').read_text() == text
    (tmp_path / 'photos' / 'images' / 'a.jpg').unlink()
    kmeans.main(again)
    assert (folder / 'clusters_before_1.yml').read_text() == text
    assert 'dog' not in (folder / 'clusters.yml').read_text()
    (tmp_path / 'photos' / 'images' / 'e.png').unlink()
    kmeans.main(again)  # over placeholders, which need no backup
    assert sorted(path.name for path in folder.glob('clusters*.yml')) == ['clusters.yml', 'clusters_before_1.yml']
    (folder / 'clusters.yml').write_text('classes: [a')
    (tmp_path / 'photos' / 'images' / 'a.jpg').write_bytes((own / 'photos' / 'images' / 'a.jpg').read_bytes())
    kmeans.main(again)
    assert (folder / 'clusters_before_1.yml').read_text() == text
    assert (folder / 'clusters_before_2.yml').read_text() == 'classes: [a'


def test_goes_on_where_it_stopped(own: Path, tmp_path: Path, model: Path) -> None:
    output = tmp_path / 'out'
    run(own / 'photos' / 'images', output, model)
    before = {path: path.stat().st_mtime_ns for path in (output / 'predictions').rglob('*.png')}
    (output / 'predictions' / 'sub' / 'c.png').unlink()
    report = run(own / 'photos' / 'images', output, model)
    assert (report['images'], report['label maps_written'], report['label maps_existing']) == (6, 1, 5)
    changed = [path.name for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert changed == ['c.png']


def test_goes_on_without_some_of_the_overlays(own: Path, tmp_path: Path, model: Path) -> None:
    output = tmp_path / 'out'
    run(own / 'photos' / 'images', output, model)
    (output / 'overlays' / 'a.jpg').unlink()
    (output / 'overlays' / 'f.jpg').write_bytes(b'')
    assert run(own / 'photos' / 'images', output, model)['label maps_existing'] == 6
    subprocess.run(['rm', '-r', str(output / 'overlays'), str(output / 'contact_sheet.png')], check=True)
    assert run(own / 'photos' / 'images', output, model)['label maps_existing'] == 6
    assert not (output / 'contact_sheet.png').exists()


def test_video(tmp_path: Path, model: Path) -> None:
    write_video(tmp_path / 'film.avi')
    report = run(tmp_path / 'film.avi', tmp_path / 'out', model)
    assert report['label maps_written'] == 5
    capture, segment = cv2.VideoCapture(str(tmp_path / 'film.avi')), Segmenter.load(model, 'cpu')
    for labels in maps_in(tmp_path / 'out' / 'predictions').values():
        assert labels.shape == (32, 48)
    first = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(segment(first), maps_in(tmp_path / 'out' / 'predictions')['000000.png'])


def test_a_film_that_is_cut_off(tmp_path: Path, model: Path) -> None:
    write_video(tmp_path / 'film.avi', 40)
    whole = (tmp_path / 'film.avi').read_bytes()
    (tmp_path / 'film.avi').write_bytes(whole[:len(whole) * 8 // 10])
    with pytest.raises(UserError, match=r'film.avi ends after \d+ of 40 frames; copy or convert it anew and rerun'):
        run(tmp_path / 'film.avi', tmp_path / 'out', model)
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert 20 < report['images'] == report['label maps_written'] < 35
    assert report['left_out'] == {'film.avi': f'it ends after {report["images"]} of 40 frames'}
    (tmp_path / 'film.avi').write_bytes(whole)
    report = run(tmp_path / 'film.avi', tmp_path / 'out', model)
    assert (report['images'], report['left_out']) == (40, {})
    (tmp_path / 'film.avi').write_bytes(whole[:len(whole) * 93 // 100])  # a header may be wrong by as much
    report = run(tmp_path / 'film.avi', tmp_path / 'out', model)
    assert report['left_out'] == {'film.avi': f'it ends after {report["images"]} of 40 frames'}
    assert 36 <= report['images'] < 40 == len(maps_in(tmp_path / 'out' / 'predictions'))


def test_an_image_too_long_for_an_overlay(tmp_path: Path, model: Path) -> None:
    Image.new('RGB', (65_600, 2), 'red').save(tmp_path / 'long.png')
    run(tmp_path / 'long.png', tmp_path / 'out', model)
    assert Image.open(tmp_path / 'out' / 'predictions' / 'long.png').size == (65_600, 2)
    assert Image.open(tmp_path / 'out' / 'overlays' / 'long.jpg').size == (65_500, 2)


def test_logits_of_objects_have_their_labels() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(0.5, 2, (30, 40)).astype(np.float32)
    ids = np.kron(draw.integers(0, 4, (6, 8)), np.ones((5, 5), int)) * (scores > 0.5)
    labels = np.array([7, 3, 7, 5])[ids]  # object 2 counts as background
    logits, channels = object_logits(labels, Objects(ids, np.empty(0), torch.from_numpy(scores)), 7)
    assert channels.tolist() == [7, 3, 5]
    np.testing.assert_array_equal(channels[logits.argmax(0)], labels)
    assert logits[1][ids == 3].max() < scores.max() - FOREIGN + 1
    nothing = np.zeros((4, 4), int)
    logits, channels = object_logits(nothing, Objects(nothing, np.empty(0), torch.zeros(4, 4)), 0)
    assert (logits.shape, channels.tolist()) == ((1, 4, 4), [0])


def test_crf(own: Path, tmp_path: Path, model: Path, monkeypatch) -> None:
    pytest.importorskip('pydensecrf')
    path = own / 'photos' / 'images' / 'f.jpg'
    monkeypatch.setattr(predict, 'crf_in_workers', lambda crf, workers: nullcontext(dense_crf))  # in this process
    run(path, tmp_path / 'out', model, '--crf-postprocess')
    refined = Segmenter.load(model, 'cpu')(read_image(path), dense_crf)
    np.testing.assert_array_equal(refined, maps_in(tmp_path / 'out' / 'predictions')['f.png'])
    plain = maps_in(own / 'results' / 'kmeans' / 'predictions')['f.png']
    assert set(np.unique(refined)) <= set(np.unique(plain))
    assert (refined != plain).any()
    with pytest.raises(UserError, match='crf True then, False now'):
        run(path, tmp_path / 'out', model)


@pytest.fixture(scope='module')
def linear(tmp_path_factory, db_root: Path) -> Path:
    """A linear model of eight classes beside its config, as linear_finetune.py leaves them."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp('linear')
    save_checkpoint(LinearSegmentationModel('resnet18', 8).state_dict(), folder / 'best_model.pth.tar')
    (folder / 'config.yml').write_text(yaml.safe_dump({
        'backbone': 'resnet18', 'val_size': 48, 'db_root': str(db_root), 'val_db_name': 'Shapes', 'config_name': 'x',
        'crf_kwargs': {'iterations': 3, 'pos_w': 3.0}}))
    return folder / 'best_model.pth.tar'


def test_linear_model(own: Path, tmp_path: Path, linear: Path, caplog) -> None:
    segment = Segmenter.load(linear, 'cpu')
    assert (segment.size, len(segment.classes), segment.classes[0]) == (48, 8, 'background')
    image = read_image(own / 'photos' / 'images' / 'a.jpg')
    network = LinearSegmentationModel('resnet18', 8).eval()
    network.load_state_dict(torch.load(linear, weights_only=True))
    with torch.inference_mode():
        logits = network(EvaluationTransform(48, *IMAGENET)({'image': image})['image'][None])[0]
    expected = resize_mask(logits.argmax(0).numpy().astype(np.uint8), 60, 40)
    np.testing.assert_array_equal(segment(image), expected)
    run(own / 'photos' / 'images', tmp_path / 'out', linear)
    np.testing.assert_array_equal(maps_in(tmp_path / 'out' / 'predictions')['a.png'], expected)
    torch.save(LinearSegmentationModel('resnet18', 3, features='backbone').state_dict(), tmp_path / 'plain.pth.tar')
    assert 'No config.yml beside' not in caplog.text
    assert Segmenter.load(tmp_path / 'plain.pth.tar', 'cpu').classes == ('class_0', 'class_1', 'class_2')
    assert '512 px and the classes class_0, class_1, class_2' in caplog.text
    alone = tmp_path / 'alone.pth.tar'
    alone.write_bytes(linear.read_bytes())
    unknown = Segmenter.load(alone, 'cpu')  # a released model has no config beside it
    assert (unknown.size, unknown.classes[7]) == (512, 'class_7')
    with pytest.raises(UserError, match='leave out --weights'):
        Segmenter.load(linear, 'cpu', weights=alone)


def test_the_crf_is_that_of_the_model(own: Path, tmp_path: Path, linear: Path, monkeypatch) -> None:
    pytest.importorskip('pydensecrf')
    seen = []
    monkeypatch.setattr(predict, 'crf_in_workers', lambda crf, workers: seen.append(crf) or nullcontext(dense_crf))
    report = run(own / 'photos' / 'images' / 'a.jpg', tmp_path / 'out', linear, '--crf-postprocess')
    assert (seen, report['settings']['crf']) == ([{'iterations': 3, 'pos_w': 3.0}], {'iterations': 3})


def test_images_that_are_no_8_bit_rgb(linear: Path) -> None:
    segment, image = Segmenter.load(linear, 'cpu'), np.zeros((40, 60, 3), np.uint8)
    for wrong in (image / np.float32(255), image[..., 0], image.repeat(2, 2)[..., :4]):
        with pytest.raises(UserError, match='cannot be segmented; give .height, width, 3. uint8'):
            segment(wrong)


def test_one_sentence_each(own: Path, tmp_path: Path, model: Path, linear: Path, capsys) -> None:
    def fails(images: Path, *more: str, output: Path = tmp_path / 'out', file: Path = model) -> str:
        with pytest.raises(SystemExit) as ended:
            run_script(lambda: run(images, output, file, *more))
        assert ended.value.code == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith('error: ')
        return message

    images = own / 'photos' / 'images'
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').touch()
    assert 'holds no image' in fails(tmp_path / 'empty')
    assert 'does not exist' in fails(tmp_path / 'none')
    assert 'one inside the other' in fails(images, output=images / 'out')
    assert 'one inside the other' in fails(images / 'a.jpg', output=images)
    assert 'cannot write to output folder' in fails(images, output=tmp_path / 'file' / 'out')
    assert '--batch-size' in fails(images, '--batch-size', '0')
    assert 'no file' in fails(images, file=tmp_path / 'none.pth.tar')
    assert 'train one on it with linear_finetune.py' in fails(images, file=own / 'pretrained.pth.tar')
    assert 'truncated or no checkpoint' in fails(images, file=tmp_path / 'file')
    model.with_name('clusters.yml').write_text('classes: [background, dog]')
    assert 'must hold "classes:" with 4 names' in fails(images)
    model.with_name('clusters.yml').unlink()
    torch.manual_seed(5)
    other = ContrastiveSegmentationModel('resnet18', ndim=8)
    torch.save(other.state_dict(), tmp_path / 'other.pth.tar')
    assert 'the weights of another network than' in fails(images, '--weights', str(tmp_path / 'other.pth.tar'))
    torch.save(ContrastiveSegmentationModel('resnet18', ndim=5).state_dict(), tmp_path / 'wide.pth.tar')
    assert 'does not fit this model' in fails(images, '--weights', str(tmp_path / 'wide.pth.tar'))
    assert not (tmp_path / 'out').exists()
    assert 'error: --weights: no file nowhere.pth' in fails(images, '--weights', 'nowhere.pth')
    gone = torch.load(model, weights_only=True)
    gone['network']['pretraining'] = 'gone/checkpoint.pth.tar'
    torch.save(gone, model)
    assert ('was made with gone/checkpoint.pth.tar, which is no longer there; give it with --weights.'
            in fails(images))
    moved = tmp_path / 'moved.pth.tar'
    moved.write_bytes((own / 'pretrained.pth.tar').read_bytes())
    assert run(images / 'a.jpg', tmp_path / 'moved', model, '--weights', str(moved))['label maps_written'] == 1


def test_unreadable_images_come_last(own: Path, tmp_path: Path, model: Path) -> None:
    images = tmp_path / 'images'
    subprocess.run(['cp', '-r', str(own / 'photos' / 'images'), str(images)], check=True)
    (images / 'sub' / 'b.jpg').write_bytes((images / 'sub' / 'b.jpg').read_bytes()[:300])
    (images / 'a.png').write_bytes((images / 'e.png').read_bytes())  # would have the label map of a.jpg
    with pytest.raises(UserError, match=r'^1 of 6 images cannot be read: sub/b.jpg \(.* are in \S+predictions\.$'):
        run(images, tmp_path / 'out', model)
    assert len(maps_in(tmp_path / 'out' / 'predictions')) == 5
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert sorted(report['left_out']) == ['a.png', 'sub/b.jpg']
    assert report['images'] == 7


def test_as_a_command(own: Path, tmp_path: Path, linear: Path) -> None:
    path = os.path.relpath(own / 'photos' / 'images' / 'a.jpg', ROOT / 'segmentation')
    done = subprocess.run([sys.executable, 'predict.py', '--images', path, '--output', str(tmp_path / 'out'), '--model',
                           str(linear)], cwd=ROOT / 'segmentation', capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out' / 'predictions' / 'a.png').is_file()


def test_clusters_of_precomputed_masks_say_so(own: Path, model: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(segmenter.log, 'warning', lambda text, *values: said.append(text % values))
    checkpoint = load_checkpoint(model)
    assert checkpoint['network']['masks'] == 'network'
    Segmenter.load(model, 'cpu')
    assert said == []
    for masks, expected in (('supervised_model', 'the precomputed supervised_model masks'), (None, 'unnamed masks')):
        network = {name: value for name, value in checkpoint['network'].items() if name != 'masks'}
        save_checkpoint({**checkpoint, 'network': network | ({'masks': masks} if masks else {})}, model)
        Segmenter.load(model, 'cpu')
        assert f'{model} was made with {expected}, and new images get the masks that the network predicts' in said.pop()


def test_label_maps_of_removed_images_are_moved_and_the_folder_is_locked(own: Path, tmp_path: Path, model: Path,
                                                                         monkeypatch) -> None:
    images = tmp_path / 'images'
    shutil.copytree(own / 'photos' / 'images', images)
    locked: list[Path] = []
    monkeypatch.setattr('utils.report.folder.lock_folder', locked.append)
    run(images, tmp_path / 'out', model)
    first = next(path for path in sorted(images.rglob('*')) if path.is_file())
    content = first.read_bytes()
    first.unlink()
    run(images, tmp_path / 'out', model)
    assert locked == [tmp_path / 'out'] * 2
    name = first.relative_to(images).with_suffix('.png')
    assert (tmp_path / 'out' / 'removed' / name).is_file()
    assert not (tmp_path / 'out' / 'predictions' / name).exists()
    assert len(maps_in(tmp_path / 'out' / 'predictions')) == len([p for p in images.rglob('*') if p.is_file()])
    first.write_bytes(content)  # it is back, and goes again: both maps stay
    run(images, tmp_path / 'out', model)
    first.unlink()
    run(images, tmp_path / 'out', model)
    assert len(maps_in(tmp_path / 'out' / 'removed')) == 2
