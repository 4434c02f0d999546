"""The experiment on photographs of clothes: its data, what it runs, and its tables. No training."""
import csv
from pathlib import Path

import pytest

from experiments import clothing
from tests.test_experiments_voc_animals import Machine, arguments, cells, machine  # noqa: F401  (a fixture)
from utils.config.load import load_config
from utils.config.schema import Kmeans, Pretrain
from utils.run.errors import UserError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A data set of 20 training and 2 validation images, of which the first of each has no mask."""
    root, ids = tmp_path / 'db' / 'Clothing', {'trainaug': [f't{i:02}' for i in range(20)], 'val': ['v0', 'v1']}
    for name in ('images', 'saliency_unsupervised_model', 'SegmentationClass', 'SegmentationClassAug', 'sets'):
        (root / name).mkdir(parents=True)
    for split, names in ids.items():
        (root / 'sets' / f'{split}.txt').write_text('\n'.join(names))
        for name in names[1:]:
            (root / 'saliency_unsupervised_model' / f'{name}.png').touch()
    return root


@pytest.mark.parametrize(('val', 'truth', 'scored'), [
    (True, 'SegmentationClass', ['v1']), (False, 'SegmentationClassAug', None)])
def test_no_image_is_both_trained_on_and_scored(photographs: Path, tmp_path: Path, val, truth, scored) -> None:
    folder = tmp_path / 'linked'
    for _ in range(2):  # a rerun finds its links
        clothing.link_split(photographs, folder, val)
    fit, score = ((folder / 'sets' / f'{name}.txt').read_text().split() for name in ('fit', 'score'))
    assert not {*fit} & {*score}
    assert 't00' not in {*fit, *score}
    assert score == scored if val else len(score) in (1, 2) and len(fit) + len(score) == 19
    assert (folder / 'SegmentationClass').resolve() == photographs / truth
    assert (folder / 'images').resolve() == photographs / 'images'
    other = photographs.rename(tmp_path / 'other')
    with pytest.raises(UserError, match='of another data set'):
        clothing.link_split(other, folder, val)


def test_runs_and_tables(machine: Machine, photographs: Path, tmp_path: Path) -> None:  # noqa: F811
    call = arguments(tmp_path, '--settings', 'recipe', '8 dimensions', 'recipe, pooled', '--seeds', '1', '2')
    clothing.main(call)
    trained = [config for name, config in machine.started if name == 'main']
    assert [(config.seed, config.epochs, config.model_kwargs.ndim) for config in trained] == [
        (seed, *setting) for seed in (1, 2) for setting in ((0, 16), (6, 16), (6, 8))]  # pooled is another reading
    assert {(config.train_db_name, config.train_split) for config in trained} == {('held_out', 'fit')}
    read = [config for name, config in machine.started if name == 'kmeans']
    assert [(config.features, config.model_kwargs.ndim) for config in read[4:7]] == [
        ('embedding', 16), ('embedding', 8), ('backbone', 16)]
    with (tmp_path / 'out' / 'clothing.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['setting'], row['seed'], row['overrides']) for row in rows if '8' in row['setting']] == [
        ('8 dimensions', '1', 'model_kwargs.ndim=8'), ('8 dimensions', '2', 'model_kwargs.ndim=8')]
    # a backbone has 2 points more, a pretraining 5
    gains = {row[2]: row[4] for row in cells(tmp_path / 'out' / 'clothing.md')[2:]}
    assert gains['recipe, pooled'] != gains['recipe'] == gains['8 dimensions'] == '-2.00 ± 0.00 (n = 2)'
    count = len(machine.started)
    clothing.main(call)
    assert len(machine.started) == count
    clothing.main([*call, '--seeds', '1', '3', '1', '--list'])  # a row stays, whatever a later call is for
    assert clothing.read_rows(tmp_path / 'out' / 'clothing.csv').keys() == {
        (row['start'], row['setting'], row['overrides'], row['scored'], int(row['seed'])) for row in rows}
    machine.fails_at = count + 5  # of seed 3: the initial pretraining and four readings of it
    with pytest.raises(SystemExit):
        clothing.main([*call, '--seeds', '3'])
    kept = clothing.read_rows(tmp_path / 'out' / 'clothing.csv')
    assert len(kept) == len(rows) + 4
    assert list(kept)[-4:] == [('imagenet', name, ' '.join(clothing.INITIAL[name]), 'held_out', 3)
                               for name in clothing.INITIAL]


def test_what_has_changed_since_is_refused(machine: Machine, photographs: Path, tmp_path: Path) -> None:  # noqa: F811
    call = arguments(tmp_path, '--settings', 'recipe', '--seeds', '1', '1')
    clothing.main(call)
    assert [name for name, _ in machine.started] == ['main', *['kmeans'] * 4, 'main', 'kmeans']  # one seed
    (tmp_path / 'w.pth').write_text('other weights')
    with pytest.raises(UserError, match='holds runs with other settings'):
        clothing.main(call)
    (tmp_path / 'out' / 'clothing.csv').write_text('of,another\n1,2\n')
    with pytest.raises(UserError, match='clothing.csv is not a table of this script'):
        clothing.main(call)
    (photographs / 'saliency_unsupervised_model' / 't01.png').unlink()
    with pytest.raises(UserError, match='is of other lists or masks than .*Clothing has now'):
        clothing.main(call)
    (photographs / 'saliency_unsupervised_model').rename(tmp_path / 'masks')
    with pytest.raises(UserError, match='Clothing has no folder saliency_unsupervised_model; write the masks'):
        clothing.main(call)


@pytest.mark.parametrize('start', clothing.STARTS)
def test_the_recipes_load(start: str) -> None:
    root, given = f'configs/clothing/{start}', ['root_dir=.', 'db_root=.']
    trained = load_config('configs/env.yml', f'{root}/pretrain.yml', Pretrain, given)
    scored = load_config('configs/env.yml', f'{root}/kmeans.yml', Kmeans, given)
    assert (trained.backbone, trained.model_kwargs.ndim) == (scored.backbone, scored.model_kwargs.ndim)
    assert scored.val_size / trained.augmentation_kwargs.size == pytest.approx(512 / 224, rel=0.03)  # as published
