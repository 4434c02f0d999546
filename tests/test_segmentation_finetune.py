"""Training on a share of the labels, of the whole network or the classifier alone, on a set worked out by hand."""
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data import label_maps
from data.folder import FolderDataset
from data.images import read_labels
from data.voc import VOCSegmentation, random_share
from models.backbones import IMAGENET
from models.segmentation import LinearSegmentationModel
from models.weights import identify, load_strict
from segmentation import engine, score_predictions, segmenter
from segmentation import eval as eval_script
from segmentation import linear_finetune as script
from segmentation.segmenter import Segmenter
from tests.colours import MIDDLE, plain_backbone, results, runner, write_image, write_lists
from utils.report.pictures import panel
from utils.run.checkpoint import load_checkpoint
from utils.run.errors import UserError

LETTERS = list('abcdefgh')
# the order of: for n in a b c d e f g h; do printf 0/$n | sha256sum; done
RANKED = list('gfcbedah')
TRAINING = ('train_db_name=Colours', 'train_size=32', 'train_batch_size=4')


class GreyModel(LinearSegmentationModel):
    """A 1x1 convolution that sees no colour at first, under a classifier that can therefore tell nothing apart."""

    def __init__(self, num_classes: int = 2) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 8, 1)
        self.decoder = nn.Sequential(OrderedDict({'4': nn.Conv2d(8, num_classes, 1)}))
        nn.init.zeros_(self.backbone.weight)
        self.backbone.mean, self.backbone.std = IMAGENET


def colours(folder: Path) -> Path:
    """Eight training images, of which only some have a ground truth, and three val images; objects are red."""
    root = folder / 'Colours'
    for name in LETTERS:
        write_image(root, name, [(1, MIDDLE)], truth=name in RANKED[:4])
    for i in range(3):
        write_image(root, f'val_{i}', [(1, MIDDLE)])
    write_lists(root, ('background', 'red'), train=LETTERS, val=[f'val_{i}' for i in range(3)])
    return root


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(overrides, output=...): the script on tmp_path/Colours with the stand-in network; returns its folder."""
    monkeypatch.setattr(script, 'build_linear_model', lambda p, num_classes: GreyModel(num_classes))
    return runner(script, 'linear_finetune', tmp_path, *TRAINING, 'epochs=6', 'scheduler=constant')


def test_a_share_by_hand() -> None:
    assert random_share(LETTERS, 0.25, 0) == ['f', 'g']
    assert random_share(LETTERS, 0.5, 0) == ['b', 'c', 'f', 'g']
    assert random_share(LETTERS, 1, 0) == LETTERS
    assert random_share(LETTERS[::-1], 0.25, 0) == ['g', 'f']  # the same images, in the list's order
    assert random_share(LETTERS, 0.25, 1) == ['d', 'g']
    ids = [f'2007_{i:06}' for i in range(10582)]
    shares = [random_share(ids, share, 0) for share in (0.01, 0.02, 0.05, 0.125)]
    assert list(map(len, shares)) == [106, 212, 529, 1323]
    for smaller, larger in zip(shares, shares[1:], strict=False):
        assert set(smaller) < set(larger)
    with pytest.raises(UserError, match='^label_share 0.05 of 8 images is less than one image; raise it.$'):
        random_share(LETTERS, 0.05, 0)


def test_the_whole_network_learns_from_half_of_the_labels(run, tmp_path: Path) -> None:
    colours(tmp_path)
    finetuned = run('label_share=0.5', 'network_lr_factor=1', 'optimizer_kwargs.lr=0.3', output='finetuned')
    assert (finetuned / 'labelled.txt').read_text() == 'b\nc\nf\ng\n'
    assert results(finetuned)['finetuned']['IoU'] == {'background': 100, 'red': 100}
    # the classifier alone sees grey everywhere: background, which is 768 of 1024 pixels
    linear = run('label_share=0.5', 'optimizer_kwargs.lr=0.3', output='linear')
    assert results(linear)['linear']['IoU'] == {'background': 75, 'red': 0}
    before = GreyModel().state_dict()
    for folder, changed in ((finetuned, True), (linear, False)):
        state = load_checkpoint(folder / 'best_model.pth.tar')
        assert torch.equal(state['backbone.weight'], before['backbone.weight']) is not changed
        assert not torch.equal(state['decoder.4.weight'], before['decoder.4.weight'])


def write_maps(folder: Path, name: str, label: int) -> Path:
    """Label maps of four training images in folder/results/name, where the object has this label."""
    maps = folder / 'results' / name
    maps.mkdir(parents=True)
    labels = np.zeros((32, 32), np.uint8)
    labels[MIDDLE] = label
    for image in 'abcd':
        Image.fromarray(labels).save(maps / f'{image}.png')
    return maps


def test_label_maps_stand_for_the_ground_truth(run, tmp_path: Path, capsys) -> None:
    colours(tmp_path)
    maps = write_maps(tmp_path, 'maps', 1)
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(maps / 'd.png')
    train = 'train_batch_size=3', 'label_maps=maps', 'network_lr_factor=1', 'optimizer_kwargs.lr=0.3'
    folder = run(*train, 'loss=ohem', 'ohem_share=0.5', 'select=last', output='distilled')
    assert (folder / 'labelled.txt').read_text() == 'a\nb\nc\n'  # d has no label, the others no map
    for task in ('distilled', 'distilled_matched'):
        assert results(folder)[task]['IoU'] == {'background': 100, 'red': 100}
    made = results(folder)['distilled']['made_with']
    assert (made['label_maps'], made['select']) == (str(maps), 'last')
    printed = capsys.readouterr().out
    assert f'4 of 8 images in {tmp_path / "Colours" / "images"} have no label map in {maps}' in printed
    assert '1 label maps in' in printed
    assert f'{maps} has no classes.yml: labels are taken for the classes of' in printed
    last = load_checkpoint(folder / 'checkpoint.pth.tar')['model']
    best = load_checkpoint(folder / 'best_model.pth.tar')
    assert all(torch.equal(last[f'module.{name}'], value) for name, value in best.items())
    with pytest.raises(UserError, match='eval_classes does not go with label maps'):
        run(*train, 'eval_classes=[red]', output='some')
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(maps / 'a.png')
    with pytest.raises(UserError, match='a.png holds class id 7, outside 0..1'):
        run(*train, output='wrong')
    (maps / 'classes.yml').write_text('classes: [background, no, 3]')
    with pytest.raises(UserError, match='holds class id 7, outside 0..2 .* list the class in .*maps/classes.yml'):
        run(*train, output='wrong')
    for count in (2, 4):  # of labels, as written beside the maps; then the user adds a name, or takes one out
        (maps / 'classes.yml').write_text(f'labels: {count}\nclasses: [background, no, 3]')
        with pytest.raises(UserError, match=f'maps/classes.yml must hold "classes:" with {count} names'):
            run(*train, output='wrong')
    (maps / 'classes.yml').write_text('classes: {background: red}')
    with pytest.raises(UserError, match='classes.yml must hold .classes:. with a list of names'):
        run(*train, output='wrong')
    with pytest.raises(UserError, match='8 of 8 images in .* have no label map in .*nowhere'):
        run(*train, 'label_maps=nowhere', output='missing')


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    """Label maps of the training images: two clusters, of which red objects are the second, and none the first."""
    colours(tmp_path)
    maps = write_maps(tmp_path, 'clusters', 2)
    (maps / 'classes.yml').write_text('classes: [background, cluster_1, cluster_2]')
    return maps


DISTILL = 'label_maps=clusters', 'network_lr_factor=1', 'optimizer_kwargs.lr=0.3', 'select=last'


@pytest.mark.parametrize('names', ['background, cluster_1, cluster_2', 'background, background, red',
                                   'background, red, red'])
def test_clusters_are_scored_by_their_names_or_matched(run, clusters: Path, tmp_path: Path, names: str) -> None:
    (clusters / 'classes.yml').write_text(f'classes: [{names}]')
    folder = run(*DISTILL)
    whole = {'background': 100, 'red': 100}
    assert results(folder)['distilled']['IoU'] == results(folder)['distilled_matched']['IoU'] == whole
    assert np.unique(np.asarray(Image.open(folder / 'predictions' / 'val_0.png'))).tolist() == [0, 2]
    offline = runner(score_predictions, 'linear_finetune', tmp_path, *TRAINING, 'epochs=6', 'scheduler=constant')
    entry = results(offline(*DISTILL))['offline']
    assert (entry['IoU'], entry['made_with'].get('matched', False)) == (whole, 'cluster_1' in names)
    again = runner(eval_script, 'linear_finetune', tmp_path, *TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_script, 'trained_linear_model', lambda weights, *_, num_classes, **__: (
            load_strict(model := GreyModel(num_classes), weights) or model.eval()))
        evaluated = again(output='eval', flags=['--state-dict', str(folder / 'best_model.pth.tar')])
        patch.setattr(segmenter, 'trained_linear_model', lambda weights, *_: (
            load_strict(model := GreyModel(3), weights) or model.eval()))
        segment = Segmenter.load(folder / 'best_model.pth.tar', 'cpu')
    assert results(evaluated)['distilled']['IoU'] == whole
    assert results(evaluated)['distilled']['made_with'] == results(folder)['distilled']['made_with']
    image = np.asarray(Image.open(tmp_path / 'Colours' / 'images' / 'val_0.jpg'))
    assert segment.classes[segment(image)[12, 12]] == names.split(', ')[2]
    assert segment(image)[12, 12] == (1 if names == 'background, red, red' else 2)


def test_names_must_be_classes_and_maps_stay_those_of_the_training(run, clusters: Path, tmp_path: Path, capsys) -> None:
    (clusters / 'classes.yml').write_text('classes: [background, red, sneaker]')
    with pytest.raises(UserError, match='labels are named sneaker, which are no classes of the scored data set'):
        run(*DISTILL)
    assert not [*(tmp_path / 'results' / 'out').glob('*.pth.tar')]  # told before it trains
    (clusters / 'classes.yml').write_text('classes: [background, cluster_1, cluster_2]')
    folder = run(*DISTILL, output='named')
    assert 'The labels are clusters' in capsys.readouterr().out
    assert results(folder)['distilled']['made_with']['matched'] is True
    names = folder / 'best_model.classes.yml'
    names.write_text(names.read_text().replace('cluster_2', 'red').replace('cluster_1', 'background'))
    edited = names.read_text()
    run(*DISTILL, output='named')
    assert names.read_text() == edited
    assert 'those beside the model count' in capsys.readouterr().out
    entry = results(folder)['distilled']
    assert (entry['IoU'], entry['made_with'].get('matched')) == ({'background': 100, 'red': 100}, None)
    assert entry['made_with']['labels'] == ['background', 'background', 'red']  # an entry with a CRF too, or it goes
    assert label_maps.read_names(folder / 'predictions' / 'classes.yml') == ('background', 'background', 'red')
    labels = np.zeros((32, 32), np.uint8)
    labels[MIDDLE] = 1
    Image.fromarray(labels).save(clusters / 'a.png')
    with pytest.raises(UserError, match='are not those that this training began with'):
        run(*DISTILL, output='named')


def test_a_label_map_is_decoded_once_at_the_start(clusters: Path, tmp_path: Path, monkeypatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(label_maps, 'read_labels', lambda path: read.append(path.stem) or read_labels(path))
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(clusters / 'd.png')
    whole = VOCSegmentation(tmp_path / 'Colours', 'train', semseg=True, label_maps=clusters)
    folder = FolderDataset(tmp_path / 'Colours' / 'images', label_maps=clusters)
    assert sorted(read) == sorted('abcd' * 2)
    assert whole.ids == folder.ids == list('abc')
    before = whole.digest
    assert folder.digest == before
    (clusters / 'a.png').write_bytes((clusters / 'd.png').read_bytes())
    assert VOCSegmentation(tmp_path / 'Colours', 'train', semseg=True, label_maps=clusters).digest != before
    digests = set()
    for names in ('background, a, a, b', 'background, a, b, b', 'background, c, c, d'):  # the last: as the first
        (clusters / 'classes.yml').write_text(f'classes: [{names}]')
        digests.add(FolderDataset(tmp_path / 'Colours' / 'images', label_maps=clusters).digest)
    assert len(digests) == 2


def test_maps_of_background_alone_are_refused(run, clusters: Path) -> None:
    for name in 'abcd':
        Image.fromarray(np.where(np.arange(32) < 9, 255, 0)[None].repeat(32, 0).astype(np.uint8)).save(
            clusters / f'{name}.png')  # as a mask has it
    with pytest.raises(UserError, match='none of the 4 label maps in .* has a label but background'):
        run(*DISTILL)


def test_names_that_are_written_anew_are_kept(tmp_path: Path) -> None:
    (tmp_path / 'classes.yml').write_text('classes:\n- a\n- b\n')  # of an earlier version
    for names in (['a', 'b'], ['a', 'b'], ['a', 'c'], ['no', '3']):
        label_maps.write_names(tmp_path / 'classes.yml', names, labels=2)
    assert label_maps.read_names(tmp_path / 'classes.yml') == ('no', '3')
    assert [label_maps.read_names(tmp_path / f'classes_before_{i}.yml') for i in (1, 2)] == [('a', 'b'), ('a', 'c')]
    assert len(list(tmp_path.iterdir())) == 3


def test_names_decide_what_labels_are(run, clusters: Path, capsys) -> None:
    (clusters / 'classes.yml').write_text('classes: [background, red, background]')  # the wrong way round
    folder = run(*DISTILL)
    assert results(folder)['distilled']['IoU'] == {'background': 75, 'red': 0}
    assert results(folder)['distilled_matched']['IoU'] == {'background': 100, 'red': 100}
    printed = capsys.readouterr().out
    assert 'distilled_matched: mIoU 100.00' in printed
    assert 'select: miou' not in printed
    run(*DISTILL, 'select=miou', output='best')
    assert 'select: miou takes the best epoch by the ground truth of val' in capsys.readouterr().out


def test_predictions_have_names_before_they_are_there(run, clusters: Path, monkeypatch) -> None:
    def save(labels: np.ndarray, path: Path) -> None:
        assert label_maps.read_names(path.with_name('classes.yml')) == ('background', 'cluster_1', 'cluster_2')
        raise UserError('the disk is full')

    monkeypatch.setattr(engine, 'save_label_map', save)
    with pytest.raises(UserError, match='the disk is full'):
        run(*DISTILL)


def test_a_folder_without_labels(run, clusters: Path, tmp_path: Path, monkeypatch) -> None:
    captions: list[str] = []
    monkeypatch.setattr(engine, 'panel', lambda parts, names: captions.extend(names) or panel(parts, names))
    shutil.copytree(tmp_path / 'Colours' / 'images', tmp_path / 'photos' / 'images')
    folders = 'train_db_name=photos', 'train_split=all', 'val_db_name=photos', 'val_split=all', 'train_batch_size=4'
    folder = run(*DISTILL, *folders)
    assert (folder / 'labelled.txt').read_text() == 'a\nb\nc\nd\n'  # the others have no label map
    assert set(captions) == {'image', 'label map', 'prediction'}
    entry = results(folder)['agreement']
    assert entry['IoU'] == {'background': 100, 'cluster_1': 0, 'cluster_2': 100}
    assert entry['absent_classes'] == ['cluster_1']
    assert not {'distilled', 'distilled_matched'} & results(folder).keys()
    with pytest.raises(UserError, match='db_root: .* choose another root_dir'):
        run(*DISTILL, *folders, f'db_root={tmp_path / "photos"}', 'train_db_name=.', 'val_db_name=.')
    (clusters / 'classes.yml').write_text('classes: [background, cat, cat]')
    merged = run(*DISTILL, *folders, output='merged')
    assert results(merged)['agreement']['IoU'] == {'background': 100, 'cat': 100}
    assert results(merged)['agreement']['mIoU'] == 100
    with pytest.raises(UserError, match='label_share 0.5 needs a list of image IDs'):
        run(*DISTILL, *folders, 'label_share=0.5', output='share')
    (clusters / 'classes.yml').unlink()
    with pytest.raises(UserError, match='classes.yml is missing, which names the labels of an unlabelled image folder'):
        run(*DISTILL, *folders, output='nameless')
    with pytest.raises(UserError, match='photos is an unlabelled image folder without ground truth'):
        run(*folders, output='nothing')


def test_a_folder_is_scored_on_label_maps_by_its_training_alone(run, clusters: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(tmp_path / 'Colours' / 'images', tmp_path / 'photos' / 'images')
    folders = 'train_db_name=photos', 'train_split=all', 'val_db_name=photos', 'val_split=all', 'train_batch_size=4'

    def name(labels: str, maps: str) -> None:
        (clusters / 'classes.yml').write_text(f'maps: {maps}\nclasses: [background, {labels}]')

    name('cat, cat, dog', 'unfinished')
    with pytest.raises(UserError, match='the label maps in .*clusters are unfinished; run the script that makes'):
        run(*DISTILL, *folders)
    name('cat, cat, dog', 'whole')
    folder = run(*DISTILL, *folders)
    assert results(folder)['agreement']['IoU'].keys() == {'background', 'cat', 'dog'}
    assert '4 of the 4 images of photos all are also in' in capsys.readouterr().out
    evaluate = runner(eval_script, 'linear_finetune', tmp_path, *TRAINING, *folders, 'label_maps=clusters')
    with pytest.raises(UserError, match='photos has no ground truth to score; linear_finetune.py, run again, tells'):
        evaluate(output='eval', flags=['--state-dict', str(folder / 'best_model.pth.tar')])
    name('cat, dog, dog', 'whole')
    with pytest.raises(UserError, match='are not those that this training began with'):
        run(*DISTILL, *folders)
    name('hound, hound, dog', 'whole')
    run(*DISTILL, *folders)
    assert results(folder)['agreement']['IoU'].keys() == {'background', 'hound', 'dog'}
    (folder / 'best_model.classes.yml').write_text('task: distilled\nclasses: [background, cat]')
    with pytest.raises(UserError, match='2 classes are named beside .*best_model.pth.tar, and 3 in .*clusters; name'):
        run(*DISTILL, *folders)
    Image.fromarray(np.zeros((30, 32), np.uint8)).save(clusters / 'b.png')
    with pytest.raises(UserError, match='b.png is 32 x 30, its image 32 x 32: .* make it again from this image'):
        run(*DISTILL, *folders, output='cut')
    with pytest.raises(UserError, match='b.png is 32 x 30'):  # at once, not in the first epoch
        FolderDataset(tmp_path / 'photos' / 'images', label_maps=clusters)


def test_val_images_that_are_trained_on(run, tmp_path: Path, capsys) -> None:
    root = colours(tmp_path)
    write_lists(root, ('background', 'red'), train=RANKED[:4], val=[*RANKED[:2], 'val_0'])
    run('epochs=1', output='shared')
    assert '2 of the 3 images of Colours val are also in train, which is trained on' in capsys.readouterr().out
    write_lists(root, ('background', 'red'), val=['val_0'])
    run('epochs=1', output='apart')
    assert 'also in' not in capsys.readouterr().out


def test_one_sentence_each(run, tmp_path: Path) -> None:
    colours(tmp_path)
    with pytest.raises(UserError, match='^epochs is 0, and a classifier of random weights has no result'):
        run('epochs=0')
    for share in ('0', '-0.1', '1.5'):
        with pytest.raises(UserError, match='label_share must be (greater than 0|less than or equal to 1), got '):
            run(f'label_share={share}')
    with pytest.raises(UserError, match='^label_share 0.01 of 8 images is less than one image; '):
        run('label_share=0.01')
    with pytest.raises(UserError, match='^train_batch_size 4 is larger than the data set: Colours train has 2 '):
        run('label_share=0.25')
    with pytest.raises(UserError, match='^4 of 8 IDs of train have no ground truth in .*/a.png, .*/d.png, .*/e.png, '):
        run()
    with pytest.raises(UserError, match='network_lr_factor must be greater than or equal to 0, got -1'):
        run('network_lr_factor=-1')


def test_the_network_learns_at_its_multiple_of_the_rate(run, tmp_path: Path) -> None:
    colours(tmp_path)
    folder = run('label_share=0.5', 'epochs=1', 'network_lr_factor=0.1', 'optimizer_kwargs.lr=0.5')
    groups = load_checkpoint(folder / 'checkpoint.pth.tar')['optimizer']['param_groups']
    assert [(group['lr'], len(group['params'])) for group in groups] == [(0.5, 2), (0.05, 2)]
    assert sum(len(group['params']) for group in groups) == len(list(GreyModel().parameters()))


@pytest.mark.parametrize('pretraining', ['imagenet_classification', 'imagenet_moco'])
def test_plain_backbones_as_baselines(pretraining: str, tmp_path: Path, monkeypatch) -> None:
    root = colours(tmp_path)
    write_lists(root, ('background', 'red'), train=RANKED[:4])
    state, weights = plain_backbone(tmp_path, pretraining, monkeypatch)
    run = runner(script, 'linear_finetune', tmp_path, *TRAINING, *weights)
    with pytest.raises(UserError, match=f'^pretraining: {pretraining} holds no trained decoder, .* features: backbone'):
        run('features=decoder', output='decoder')
    best_path = run() / 'best_model.pth.tar'
    best = identify(load_checkpoint(best_path), 'best')
    assert best.kind == 'linear'
    assert all(torch.equal(best.state[f'backbone.{name}'], value) for name, value in state.items())
    assert best.state['decoder.4.weight'].shape == (2, 512, 1, 1)
    assert not [name for name in best.state if not name.startswith(('backbone.', 'decoder.4.'))]
    load_strict(LinearSegmentationModel('resnet18', 2, features='backbone'), best)
    evaluate = runner(eval_script, 'linear_finetune', tmp_path, *TRAINING, *weights)
    evaluated = evaluate(output='eval', flags=['--state-dict', str(best_path)])
    assert results(evaluated) == results(best_path.parent)
