"""Retrieval: figures worked out by hand on flat colours, exact search against sorting, saved memories."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation import feature_index
from segmentation import kmeans as kmeans_script
from segmentation import retrieval as script
from segmentation.feature_index import DECIDES, FeatureIndex, build_index, load_index
from segmentation.metrics import iou_of
from segmentation.objects import embed_split
from tests.colours import (
    CLASSES,
    MIDDLE,
    ColourModel,
    loader_of,
    plain_backbone,
    random_blobs,
    results,
    runner,
    slow_confusion,
    write_image,
    write_lists,
)
from utils.run.errors import UserError

LEFT, RIGHT = (slice(8, 24), slice(0, 12)), (slice(8, 24), slice(20, 32))  # 192 pixels each


def colours(folder: Path) -> Path:
    """Memory: red, red, green, blue, and blue whose mask is mostly background. Val: red, green, blue."""
    root = folder / 'Colours'
    for name, label in (('train_0', 1), ('train_1', 1), ('train_2', 2), ('train_3', 3), ('val_0', 1), ('val_1', 2),
                        ('val_2', 3)):
        write_image(root, name, [(label, MIDDLE)])
    write_image(root, 'train_4', [(3, MIDDLE)], [(slice(0, 32), slice(0, 9))])
    write_image(root, 'train_5', [], [])  # nothing to remember
    write_lists(root, train=[f'train_{i}' for i in range(6)], val=[f'val_{i}' for i in range(3)])
    return root


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(overrides, flags=...): the script on tmp_path/Colours with the stand-in network; returns its folder."""
    monkeypatch.setattr(script, 'build_prototype_model', lambda p: ColourModel(p.model_kwargs.ndim))
    return runner(script, 'retrieval', tmp_path, 'memory_db_name=Colours', 'saliency=supervised_model',
                  'model_kwargs.ndim=2')


def entry_of(folder: Path) -> dict:
    return results(folder)['retrieval']


def bank_of(prototypes, labels, classes=('background', 'a', 'b', 'c')) -> FeatureIndex:
    votes = np.eye(len(classes), dtype=np.int64)[labels]
    return FeatureIndex(np.array(prototypes, np.float32), votes, np.array(['x'] * len(labels)), classes)


def test_figures_by_hand(run, tmp_path: Path, capsys) -> None:
    colours(tmp_path)
    folder = run()
    entry = entry_of(folder)
    assert entry['IoU'] == dict.fromkeys(CLASSES, 100)
    assert (entry['mIoU'], entry['memory'], entry['num_neighbours']) == (100, 5, 1)
    assert 'mIoU is 100.00\nIoU class background is 100.00\n' in capsys.readouterr().out
    saved = np.load(folder / 'memory.npz')
    assert saved['labels'].tolist() == [1, 1, 2, 3, 3]
    assert saved['images'].tolist() == [f'train_{i}' for i in range(5)]
    # all five entries vote: two reds, two blues, one green. Red and blue stay right, as the nearer of the two pairs
    entry = entry_of(run('num_neighbours=5', output='five'))
    assert (entry['num_neighbours'], entry['IoU']['green'], entry['IoU']['background']) == (5, 0, 100)
    # green's object goes to red or blue, which then holds 512 pixels of which 256 are right
    assert sorted(entry['IoU'].values()) == [0, 50, 100, 100]


def test_a_memory_of_images_that_have_a_mask(run, tmp_path: Path, capsys) -> None:
    root = colours(tmp_path)
    (root / 'saliency_supervised_model' / 'train_1.png').unlink()
    saved = np.load(run() / 'memory.npz')
    assert saved['images'].tolist() == ['train_0', 'train_2', 'train_3', 'train_4']
    said = capsys.readouterr().out.partition('1 of 6 IDs of train have no image or no saliency mask in ')[2]
    assert 'there is no saliency_supervised_model/train_1.png; left out' in said
    (root / 'SegmentationClass' / 'train_3.png').unlink()  # of an image that stays
    with pytest.raises(UserError, match='^1 of 5 IDs .* no ground truth in .* no SegmentationClass/train_3.png; '):
        run(output='no_truth')
    (root / 'saliency_supervised_model' / 'val_0.png').unlink()
    with pytest.raises(UserError, match=r'^1 of 3 IDs of val have no saliency mask in .* no saliency_\S+/val_0.png; '):
        run(output='val')


def test_both_results_of_one_pass(run, tmp_path: Path, monkeypatch, capsys) -> None:
    root = colours(tmp_path)
    write_image(root, 'train_3', [(3, MIDDLE), (1, (slice(8, 24), slice(8, 14)))])  # 96 of red, 160 of blue
    write_image(root, 'val_2', [(3, MIDDLE), (1, (slice(8, 24), slice(8, 14)))])
    passes = []
    monkeypatch.setattr(script, 'embed_split', lambda *args: passes.append(args) or embed_split(*args))
    folder = run('ignore_classes=[blue]')
    assert len(passes) == 2  # the memory's and val's
    both = results(folder)
    assert list(both) == ['retrieval', 'retrieval_2']
    assert (both['retrieval']['memory'], both['retrieval_2']['memory']) == (5, 4)  # train_4 shows blue alone
    # blue's object is blue, with 160 pixels of 256; where blue is void, it turns red: 96 + 256, all right
    assert both['retrieval']['IoU'] == pytest.approx(
        {'background': 100, 'red': 100 * 256 / 352, 'green': 100, 'blue': 100 * 160 / 256})
    assert both['retrieval_2']['IoU'] == {'red': 100, 'green': 100}
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith('mIoU is')]
    assert printed == [f'mIoU is {both[task]["mIoU"]:.2f}' for task in both]
    again = run('ignore_classes=[red, green]', flags=('--memory', str(folder / 'memory.npz')), output='again')
    assert results(again)['retrieval'] == both['retrieval']
    assert results(again)['retrieval_1']['memory'] == 2
    for names, message in (('red, green, blue', '^ignore_classes leaves no class to retrieve; '),
                           ('mauve', '^ignore_classes names mauve, which the data set does not have')):
        with pytest.raises(UserError, match=message):
            run(f'ignore_classes=[{names}]', output='none')


def test_votes_and_scores_are_counted_at_val_size(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    for name, side in (('train_0', 64), ('val_0', 48)):  # a large image weighs no more than a small one
        for folder, mode in (('images', '.jpg'), ('SegmentationClass', '.png'), ('saliency_supervised_model', '.png')):
            path = root / folder / (name + mode)
            Image.open(path).resize((side, 2 * side), Image.Resampling.NEAREST).save(path, quality=100)
    folder = run('ignore_classes=[blue]', 'num_visualizations=3')
    assert np.load(folder / 'memory.npz')['votes'].max() == 256
    assert entry_of(folder)['mIoU'] == 100
    assert (folder / 'neighbours.png').is_file()


def test_a_saved_memory_gives_the_same(run, tmp_path: Path, capsys) -> None:
    root = colours(tmp_path)
    memory = (run() / 'memory.npz').rename(tmp_path / 'results/out/a "b" # \U0001f42e.npz')
    write_lists(root, val=['val_0', 'val_1', 'val_2'], train=['nothing'])  # not even looked at
    again = run(flags=('--memory', str(memory)), output='again')
    assert entry_of(again) == entry_of(memory.parent)
    assert not (again / 'memory.npz').exists()
    assert (again / 'neighbours.png').is_file()
    assert 'The memory holds 5 objects of dimension 2 (embedding of ' in capsys.readouterr().out


def test_a_saved_memory_that_does_not_fit(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    flags = ('--memory', str(run() / 'memory.npz'))
    write_lists(root, ('background', 'warm', 'green', 'blue'), val=['val_0'])
    with pytest.raises(UserError, match='filled with classes background, red, green, blue, not background, warm'):
        run(flags=flags, output='classes')
    broken = tmp_path / 'broken.npz'
    broken.write_bytes(Path(flags[1]).read_bytes()[:300])
    with pytest.raises(UserError, match='is no memory.npz of retrieval.py, damaged, or of an earlier version; '):
        run(flags=('--memory', str(broken)), output='broken')
    with pytest.raises(UserError, match='^no file .*nowhere.npz'):
        run(flags=('--memory', 'nowhere.npz'), output='nowhere')


def test_transfer_between_data_sets(run, tmp_path: Path) -> None:
    colours(tmp_path)
    other = tmp_path / 'Other'
    write_image(other, 'a', [(2, MIDDLE)])
    write_image(other, 'b', [(1, LEFT)])
    write_lists(other, test=['a', 'b'])
    entry = entry_of(run('val_db_name=Other', 'val_split=test'))
    assert entry['IoU'] == {'background': 100, 'red': 100, 'green': 100, 'blue': 0}  # blue is in neither
    write_lists(other, ('background', 'one', 'two', 'three'), test=['a', 'b'])
    with pytest.raises(UserError, match='^Colours and Other have different classes'):
        run('val_db_name=Other', 'val_split=test', output='classes')


def test_components(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    write_image(root, 'val_0', [(1, LEFT), (2, RIGHT)])
    entry = entry_of(run('components=true'))
    assert entry['IoU'] == dict.fromkeys(CLASSES, 100)
    whole = entry_of(run(output='whole'))  # one class for both: 192 of each, and green or red is wrong
    assert whole['mIoU'] < 90


def test_contact_sheet(run, tmp_path: Path) -> None:
    colours(tmp_path)
    sheet = np.array(Image.open(run('num_visualizations=2') / 'neighbours.png')).astype(int)
    # two rows of a query and five neighbours, 128 pixels each; 4 apart, 8 between rows, captions of 18
    assert sheet.shape == (2 * (128 + 18) + 8, 6 * 128 + 5 * 4, 3)
    for row, channel in ((0, 0), (1, 2)):  # red and blue: query and nearest neighbour
        y = row * (128 + 18 + 8) + 18 + 64
        for column in (0, 1):
            assert sheet[y, column * 132 + 64].argmax() == channel
            assert sheet[y, column * 132 + 64].max() > 200
    query = sheet[18:146, :128]
    yellow = (query[..., 0] > 250) & (query[..., 1] > 250) & (query[..., 2] < 5)
    assert 300 < yellow.sum() < 450  # the outline of a square that fills most of the crop
    assert not (run('num_visualizations=0') / 'neighbours.png').exists()  # not that of before


def test_search_equals_sorting_all_cosines(monkeypatch) -> None:
    monkeypatch.setattr(feature_index, 'QUERIES', 4)
    monkeypatch.setattr(feature_index, 'ENTRIES', 7)
    draw = np.random.default_rng(0)
    memory, queries = draw.standard_normal((50, 6)), draw.standard_normal((9, 6))
    memory, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (memory, queries))
    bank = bank_of(memory, draw.integers(1, 4, 50))
    order = np.argsort(-(queries @ memory.T), 1)
    for k in (1, 3, 12, 50):
        np.testing.assert_array_equal(bank.search(queries.astype(np.float32), k), order[:, :k])
    assert bank.search(queries.astype(np.float32), 99).shape == (9, 50)
    np.testing.assert_array_equal(bank.vote(bank.search(queries.astype(np.float32))), bank.labels[order[:, 0]])


def test_equal_cosines_take_the_first_entry() -> None:
    bank = bank_of([[1, 0], [0, 1], [0, 1]], [1, 2, 3])
    assert bank.vote(bank.search(np.array([[0, 1]], np.float32))).tolist() == [2]


@pytest.mark.parametrize('places', [(5, 20, 150), (77, 90, 199)])
def test_of_duplicates_the_first_come_first_whatever_their_block(places: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(feature_index, 'ENTRIES', 128)
    memory = np.random.default_rng(0).standard_normal((200, 6))
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    memory[:, 0], memory[list(places)] = -1, np.eye(6)[0]
    bank = bank_of(memory, np.ones(200, int))
    for k in (1, 2, 3, 5):
        expected = (*places, *np.argsort(-(memory @ memory[places[0]]), kind='stable')[3:])[:k]
        assert bank.search(memory[places[0]][None].astype(np.float32), k).tolist() == [list(expected)]


def test_an_object_never_retrieves_its_own_image() -> None:
    bank = bank_of([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], [1, 2, 3, 3])
    bank.images = np.array(['a', 'a', 'b', 'c'])
    queries = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    images = np.array(['a', 'b', 'd'])
    assert bank.search(queries, 1, images).tolist() == [[3], [3], [0]]
    assert bank.search(queries, 9, images).tolist() == [[3, 2, -1, -1], [3, 1, 0, -1], [0, 1, 3, 2]]
    assert bank.vote(bank.search(queries, 1, images)).tolist() == [3, 3, 1]
    bank.images = np.array(['a'] * 4)
    with pytest.raises(UserError, match='^the memory is of one image alone'):
        bank.search(queries, 1, images)


def test_val_images_in_the_memory(run, tmp_path: Path, capsys) -> None:
    root = colours(tmp_path)
    write_lists(root, val=['train_0', 'train_2', 'val_2'], train=['train_0', 'train_2', 'train_3', 'train_4'])
    entry = entry_of(run())
    assert '2 of the 3 images of Colours val are also in the memory' in capsys.readouterr().out
    assert entry['IoU']['red'] == entry['IoU']['green'] == 0  # there is no other of either
    write_lists(root, val=['val_0', 'val_1', 'val_2'])
    run(output='apart')
    assert 'also in' not in capsys.readouterr().out


def test_a_memory_of_another_network(run, tmp_path: Path, monkeypatch) -> None:
    colours(tmp_path)
    folder = run()
    flags = ('--memory', str(folder / 'memory.npz'))
    made = entry_of(folder)['made_with']
    assert (made['features'], made['masks'], made['size'], len(made['fingerprint'])) == (
        'embedding', 'supervised_model', 32, 64)
    for override, said in (('features=backbone', 'features embedding then, backbone now'),
                           ('saliency=network', 'masks supervised_model then, network now'),
                           ('components=true', r'min_component None then, 0\.01 now'),
                           ('val_size=40', 'size 32 then, 40 now')):
        with pytest.raises(UserError, match=f'^memory .* was filled with other prototypes \\({said}\\); fill one'):
            run(override, flags=flags, output=override.partition('=')[0])
    other = ColourModel(2)  # of the same width
    other.register_buffer('weight', torch.ones(3))
    monkeypatch.setattr(script, 'build_prototype_model', lambda p: other)
    with pytest.raises(UserError, match=r'other prototypes \(fingerprint \w{12}\.\.\. then, \w{12}\.\.\. now\)'):
        run(flags=flags, output='network')
    before = dict(np.load(folder / 'memory.npz'))
    for i, network in enumerate((None, 'resnet50', '[1]')):  # none, and what says nothing of a network
        before.pop('network', None)
        np.savez(tmp_path / 'before.npz', **before, **({} if network is None else {'network': np.array(network)}))
        with pytest.raises(UserError, match='before.npz is no memory.npz of retrieval.py, damaged, or of an earlier'):
            run(flags=('--memory', str(tmp_path / 'before.npz')), output=f'before_{i}')


def test_votes_by_hand() -> None:
    bank = bank_of(np.eye(6), [1, 2, 2, 3, 3, 1])
    assert bank.vote(np.array([[0, 1, 2], [0, 1, 3], [3, 1, 2]])).tolist() == [2, 1, 2]  # majority; nearest of three
    assert bank.vote(np.array([[0, 3, 1, 2, 4]])).tolist() == [3]  # 3 and 2 twice each, 3 is nearer than 2
    assert bank.vote(np.array([[5]])).tolist() == [1]


@pytest.mark.parametrize('min_component', [None, 0.03])
def test_confusion_and_miou_equal_the_slow_way(min_component: float | None) -> None:
    draw = np.random.default_rng(2)
    truths, masks = random_blobs(draw, 6, 5)
    masks[1][:] = 0
    split = embed_split(ColourModel(3), loader_of(truths, masks, draw), torch.device('cpu'), 5, from_network=False,
                        keep_masks=True, min_component=min_component)
    names = [f'image_{i}' for i in range(6)]
    bank = build_index(split, names, ('background', *'abcd'))
    expected = []  # class of each object that enters: most pixels, the higher of equals
    for index in range(len(split)):
        inside = truths[split.image[index]][split.mask(index)]
        votes = [(int((inside == c).sum()), c) for c in range(1, 5)]
        if max(votes)[0]:
            expected.append((max(votes)[1], names[split.image[index]]))
    assert list(zip(bank.labels.tolist(), bank.images.tolist(), strict=True)) == expected
    predicted = draw.integers(1, 5, len(split))
    slow = slow_confusion(truths, [split.paint(i, predicted, 0) for i in range(6)], 5, 5)
    confusion = split.confusion(predicted, 5)
    np.testing.assert_array_equal(confusion, slow)
    assert iou_of(confusion).mean() == pytest.approx(
        np.mean([slow[c, c] / (slow[c].sum() + slow[:, c].sum() - slow[c, c]) for c in range(5)]))


def test_save_and_load(tmp_path: Path) -> None:
    bank = bank_of([[1, 0], [0, 1]], [1, 3])
    bank.made_by, bank.db_name = 'embedding', 'Toy'
    bank.save(tmp_path / 'memory.npz')
    assert [path.name for path in tmp_path.iterdir()] == ['memory.npz']
    loaded = load_index(tmp_path / 'memory.npz', bank.classes, dict.fromkeys(DECIDES))
    np.testing.assert_array_equal(loaded.prototypes, bank.prototypes)
    np.testing.assert_array_equal(loaded.labels, bank.labels)
    assert loaded.classes == bank.classes
    assert (loaded.made_by, loaded.db_name) == ('embedding', 'Toy')
    np.savez(tmp_path / 'code.npz', **{**vars(bank), 'made_by': np.array([print], object)})
    with pytest.raises(UserError, match='damaged'):  # nothing is unpickled
        load_index(tmp_path / 'code.npz', bank.classes, dict.fromkeys(DECIDES))


def test_one_sentence_each(run, tmp_path: Path) -> None:
    root = colours(tmp_path)
    with pytest.raises(UserError, match='num_neighbours must be greater than or equal to 1, got 0'):
        run('num_neighbours=0')
    for i in range(6):
        write_image(root, f'train_{i}', [], [MIDDLE])
    with pytest.raises(UserError, match='^no mask of the memory split covers a labelled object; '):
        run(output='unlabelled')
    for i in range(6):
        write_image(root, f'train_{i}', [(1, MIDDLE)], [])
    with pytest.raises(UserError, match='^none of the 6 images has a mask; '):
        run(output='maskless')


@pytest.mark.parametrize('pretraining', ['imagenet_classification', 'imagenet_moco'])
def test_plain_backbones_as_baselines(pretraining: str, tmp_path: Path, monkeypatch) -> None:
    colours(tmp_path)
    _, weights = plain_backbone(tmp_path, pretraining, monkeypatch)
    folder = runner(script, 'retrieval', tmp_path, 'memory_db_name=Colours', *weights)('saliency=supervised_model')
    assert entry_of(folder)['IoU']['background'] == 100  # the masks are exact
    assert np.load(folder / 'memory.npz')['prototypes'].shape == (5, 512)
    run = runner(kmeans_script, 'kmeans', tmp_path, 'num_clusters=2', 'num_seeds=1', *weights)
    folder = run('saliency=supervised_model', output='kmeans')
    assert results(folder)['kmeans']['IoU']['background'] == 100
    assert np.load(folder / 'prototypes.npz')['prototypes'].shape == (3, 512)
