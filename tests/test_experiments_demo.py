"""The demo's plan, and the chain that runs it: what waits, what is skipped, and what a failed step leaves."""
import json
from pathlib import Path

import pytest

from experiments import demo
from experiments.runner import Chain, Step
from utils.config.load import load_config
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, PseudoLabels, Retrieval
from utils.run.errors import UserError

SCHEMAS = {'main': Pretrain, 'linear_finetune': LinearFinetune, 'eval': LinearFinetune, 'kmeans': Kmeans,
           'retrieval': Retrieval, 'pseudo_labels': PseudoLabels}


def test_the_plan_of_the_demo(tmp_path: Path) -> None:
    chain = Chain(tmp_path, tmp_path / 'data', ['pretrain.epochs=3', 'val_size=64'], 'configs/demo/env.yml')
    first, protocols = demo.plan(chain, ['--train', '9'])
    assert first[0].command == ('experiments/shapes.py', '--output', f'{tmp_path}/data/Shapes', '--train', '9')
    configs = {}
    for number, step in enumerate([*first[1:], *protocols]):
        words = step.command
        config = load_config(words[2], words[4], SCHEMAS[Path(words[0]).stem], words[words.index('--set') + 1:])
        assert config.output_dir == str(tmp_path / step.folder)
        assert set(step.needs) <= {*first, *protocols[:number]}
        configs[step.folder] = config
    assert len(configs) == 2 + 2 * 4 + 2 * 2 + 3
    assert [configs[name].epochs for name in ('pretrain', 'pretrain_before')] == [3, 0]
    assert {config.val_size for name, config in configs.items() if 'pretrain' not in name} == {64}
    for name in configs.keys() - {'pretrain', 'pretrain_before', 'linear-before-eval', 'linear-after-eval'}:
        assert ('before' in name) == ('pretrain_before' in configs[name].pretraining)
    assert {name: config.saliency for name, config in configs.items() if name.startswith('kmeans')} == {
        'kmeans-before-embedding': 'supervised_model', 'kmeans-before-backbone': 'supervised_model',
        'kmeans-after-given': 'supervised_model', 'kmeans-after': 'network', 'kmeans-after-train': 'network'}
    maps, student = configs['maps-0.8-kmeans-after-train'], configs['ohem-0.8-round-1-kmeans-after-train']
    assert maps.clusters == 'kmeans-after-train/clusters.pth.tar'
    assert (configs['kmeans-after-train'].fit_split, maps.val_split, student.train_split) == ('train',) * 3
    assert student.label_maps == f'{Path(maps.output_dir).name}/label_maps'
    table = demo.joined(tmp_path)
    assert {Path(word).name for word in table if word.startswith(str(tmp_path)) and '-' in Path(word).name} == {
        *configs.keys() - {'pretrain', 'pretrain_before', 'linear-before', 'linear-after',
                           'maps-0.8-kmeans-after-train'}}


def test_a_step_is_done_again_when_its_config_says_something_else(tmp_path: Path) -> None:
    def step() -> Step:
        return Chain(tmp_path, tmp_path / 'data').step('kmeans', str(tmp_path / 'a.yml'), 'a')

    (tmp_path / 'base.yml').write_text('val_size: 64\n')
    (tmp_path / 'a.yml').write_text('base: base.yml\npretraining: none\n')
    settings = step().settings()
    (tmp_path / 'base.yml').write_text('val_size: 64  # pixels\n')
    assert step().settings() == settings
    (tmp_path / 'base.yml').write_text('val_size: 32\n')
    assert step().settings() != settings
    chain = Chain(tmp_path, tmp_path / 'data')
    (tmp_path / 'a').mkdir()
    for note, finished in ((step().settings(), True), (settings, False), (step().settings(config=False), True)):
        (tmp_path / 'a' / 'finished.json').write_text(json.dumps(note))  # the last: by an earlier version
        assert chain.finished(step()) == finished


def script(text: str, folder: str, *needs: Step) -> Step:
    return Step(folder, ('-c', f'from pathlib import Path\n{text}'), needs)


def test_two_at_a_time_what_is_needed_first(tmp_path: Path, capsys) -> None:
    meet = ('import time\nPath("{0}").touch()\nwhile not Path("{1}").exists():\n    time.sleep(0.01)\nprint("met")')
    a, b = (script(meet.format(tmp_path / mine, tmp_path / other), f'{mine}.d') for mine, other in ('xy', 'yx'))
    last = script(f'assert Path("{tmp_path}/x.d/finished.json").exists()\nPath("{tmp_path}/z").touch()', 'z.d', a, b)
    chain = Chain(tmp_path, tmp_path)
    chain.run([a, b, last], jobs=2)
    assert (tmp_path / 'x.d' / 'output.txt').read_text() == 'met\n'
    assert (tmp_path / 'z').exists()
    (tmp_path / 'z').unlink()
    chain.run([a, b, last], jobs=2)
    assert '0 of 3 runs are left' in capsys.readouterr().out
    assert not (tmp_path / 'z').exists()
    (tmp_path / 'x.d' / 'finished.json').write_text('[')
    with pytest.raises(UserError, match='finished.json is damaged; delete it'):
        chain.run([a, b, last], jobs=2)


def test_a_failed_step_ends_the_chain_when_the_others_have_ended(tmp_path: Path, capsys) -> None:
    bad, good = script('print("why")\nraise SystemExit(2)', 'bad'), script('import time\ntime.sleep(0.5)', 'good')
    after, chain = script('', 'after', bad), Chain(tmp_path, tmp_path)
    with pytest.raises(SystemExit) as ended:
        chain.run([bad, good, after], jobs=2)
    assert ended.value.code == 2
    assert f'bad ended with 2: {tmp_path}/bad/output.txt' in capsys.readouterr().out
    assert (tmp_path / 'bad' / 'output.txt').read_text() == 'why\n'
    assert json.loads((tmp_path / 'good' / 'finished.json').read_text()) == good.settings()
    assert not (tmp_path / 'after').exists()
