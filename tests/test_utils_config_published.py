"""The published code's config files and flags, written from its list of keys, as this code reads and runs them."""
import importlib
from pathlib import Path

import pytest
import yaml
from easydict import EasyDict

from tests.test_scripts import SMALL, Runner, results
from utils.config.keys import schema_keys
from utils.config.load import load_config
from utils.config.published import RULES
from utils.config.schema import Kmeans, LinearFinetune, Pretrain, Retrieval
from utils.run.checkpoint import load_checkpoint
from utils.run.errors import UserError

ENV = 'root_dir: /path/to/root/dir\n'
OTHERS = ['bicycle', 'bird', 'boat', 'chair', 'diningtable', 'dog', 'horse', 'motorbike', 'pottedplant', 'sheep',
          'sofa', 'train', 'tvmonitor']


def pretrain(saliency: str, batch: int, K: int, start: dict, freeze: bool) -> dict:
    return {'train_db_name': 'VOCSegmentation', 'train_db_kwargs': {'saliency': saliency}, 'num_workers': 8,
            'train_batch_size': batch, 'backbone': 'resnet50', 'backbone_kwargs': {'dilated': True, **start},
            'model_kwargs': {'ndim': 32, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
            'head': 'deeplab', 'freeze_layers': freeze, 'epochs': 40, 'optimizer': 'sgd',
            'optimizer_kwargs': {'lr': 0.004, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
            'scheduler': 'poly', 'moco_kwargs': {'T': 0.5, 'm': 0.999, 'K': K}}


def linear() -> dict:
    return {'train_db_name': 'VOCSegmentation', 'train_db_kwargs': {'split': 'trainaug', 'batch_size': 16},
            'val_db_name': 'VOCSegmentation', 'val_db_kwargs': {'batch_size': 16}, 'num_workers': 4,
            'backbone': 'resnet50', 'backbone_kwargs': {'dilated': True}, 'head': 'deeplab',
            'pretraining': '/path/to/checkpoint.pth.tar', 'epochs': 60, 'scheduler': 'step',
            'scheduler_kwargs': {'lr_decay_rate': 0.1, 'lr_decay_epochs': [25]}, 'optimizer': 'sgd',
            'optimizer_kwargs': {'lr': 0.1, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False},
            'freeze_batchnorm': 'all'}


def prototypes(**more) -> dict:
    return {'train_db_name': 'VOCSegmentation', 'val_db_name': 'VOCSegmentation', 'val_db_kwargs': {'batch_size': 10},
            'num_workers': 4, 'backbone': 'resnet50', 'backbone_kwargs': {'pretrained': True, 'dilated': True},
            'model_kwargs': {'ndim': 32, 'head': 'linear', 'upsample': True, 'use_classification_head': True},
            'head': 'deeplab', 'freeze_layer': 'none', 'pretraining': '/path/to/checkpoint.pth.tar',
            'kmeans_eval': True, **more}


FILES = {
    'VOCSegmentation_supervised_saliency_model': (Pretrain, pretrain(
        'supervised_model', 64, 128, {'pretraining': 'imagenet_classification'}, True)),
    'VOCSegmentation_unsupervised_saliency_model': (Pretrain, pretrain(
        'unsupervised_model', 128, 256, {'pretraining': 'imagenet_moco',
                                         'moco_state_dict': '/path/to/moco_v2_800ep_pretrain.pth.tar'}, False)),
    'linear_finetune_VOCSegmentation_supervised_saliency': (LinearFinetune, linear()),
    'linear_finetune_VOCSegmentation_unsupervised_saliency': (LinearFinetune, linear()),
    'kmeans_VOCSegmentation_supervised_saliency': (Kmeans, prototypes()),
    'kmeans_VOCSegmentation_unsupervised_saliency': (Kmeans, prototypes()),
    'retrieval_VOCSegmentation_unsupervised_saliency': (Retrieval, prototypes(
        retrieval_kwargs={'ignore_classes': OTHERS})),
    'retrieval_VOCSegmentation_unsupervised_saliency_21_classes': (Retrieval, prototypes(
        retrieval_kwargs={'ignore_classes': []}))}
OF_SCRIPT = {'pretrain.main': (Pretrain, pretrain('supervised_model', 64, 128, {'pretraining': False}, False)),
             'segmentation.linear_finetune': (LinearFinetune, linear()),
             'segmentation.eval': (LinearFinetune, linear()),
             'segmentation.kmeans': (Kmeans, prototypes()),
             'segmentation.retrieval': FILES['retrieval_VOCSegmentation_unsupervised_saliency']}


@pytest.fixture
def load(tmp_path: Path):
    def load(schema: type, content: dict, *overrides: str, name: str = 'exp') -> EasyDict:
        (tmp_path / 'env.yml').write_text(ENV)
        (tmp_path / f'{name}.yml').write_text(yaml.safe_dump(content, sort_keys=False))
        return load_config(str(tmp_path / 'env.yml'), str(tmp_path / f'{name}.yml'), schema, ['db_root=/d', *overrides])
    return load


@pytest.mark.parametrize('name', list(FILES))
def test_every_published_file_loads_and_says_what_it_means(load, name: str) -> None:
    schema, content = FILES[name]
    p = load(schema, content, name=name)
    assert p.output_dir == f'/path/to/root/dir/{name}'
    assert (p.db_root, p.backbone, p.model_kwargs.dropout) == ('/d', 'resnet50', 0.5)
    note = p._notes[0]
    if schema is Pretrain:
        supervised = '_supervised' in name
        assert (p.saliency, p.train_split) == ('supervised_model' if supervised else 'unsupervised_model', 'trainaug')
        assert (p.train_batch_size, p.moco_kwargs.K, p.freeze_layers) == ((64, 128, True) if supervised else
                                                                          (128, 256, False))
        assert p.pretraining == content['backbone_kwargs']['pretraining']
        assert p.moco_state_dict == content['backbone_kwargs'].get('moco_state_dict')
        for said in ('train_db_kwargs.saliency is saliency here', 'backbone_kwargs.pretraining is pretraining here',
                     *(f'{key} has no effect' for key in ('backbone_kwargs.dilated', 'model_kwargs.head', '; head'))):
            assert said in note
    elif schema is LinearFinetune:
        assert (p.train_split, p.train_batch_size, p.val_batch_size, p.epochs) == ('trainaug', 16, 16, 60)
        assert p.scheduler_kwargs.lr_decay_epochs == (25,)
    else:
        assert (p.val_batch_size, p.features, p.saliency, p.seed) == (10, 'embedding', 'network', 1234)
        for dropped in ('train_db_name', 'backbone_kwargs.pretrained', 'freeze_layer', 'kmeans_eval'):
            assert dropped in note
    if schema is Retrieval:
        assert p.ignore_classes == tuple(content['retrieval_kwargs']['ignore_classes'])
        assert p.memory_split == 'trainaug'
        assert 'fills the memory from train; here it is trainaug' in p._notes[1]
    assert '_notes' not in p


def test_a_file_of_this_code_has_nothing_to_say() -> None:
    for folder, schema in (('', Pretrain), ('linear_finetune', LinearFinetune), ('kmeans', Kmeans)):
        for path in (Path('configs') / folder).glob('*.yml'):
            if path.stem != 'env':
                assert load_config('configs/env.yml', str(path), schema, ['db_root=/d'])._notes == ()


def test_rules_lead_to_keys_that_exist_and_replace_none() -> None:
    for schema, rules in RULES.items():
        keys = schema_keys(schema)
        assert not rules.keys() & keys.keys()
        assert {rule.key for rule in rules.values()} - {None} <= keys.keys()


@pytest.mark.parametrize('empty', [False, None, 0, ''])
def test_pretraining_that_is_false_is_random(load, empty) -> None:
    assert load(Pretrain, pretrain('supervised_model', 64, 128, {'pretraining': empty}, False)).pretraining == 'none'


@pytest.mark.parametrize(('schema', 'changed', 'said'), [
    (Pretrain, {'backbone_kwargs': {'dilated': False, 'pretraining': False}},
     'exp.yml, line 8: backbone_kwargs.dilated, a key of the published code, can only be True here, got False; the '
     'networks here have an output stride of 8 alone; take the line out'),
    (Pretrain, {'head': 'dim_reduction'}, "head, a key of the published code, can only be 'deeplab' here"),
    (Pretrain, {'model_kwargs': {'head': 'mlp'}}, "model_kwargs.head, a key of the published code, can only be"),
    (Pretrain, {'train_db_kwargs': {'saliency': 'supervised_model', 'spilt': 'x'}},
     "unknown key 'train_db_kwargs.spilt'; the keys here are saliency"),
    (Pretrain, {'train_db_kwargs': 3}, 'train_db_kwargs holds the keys saliency; expected key: value lines below it'),
    (Pretrain, {'saliency': 'x'}, 'saliency is given twice, first in exp.yml, line 3'),
    (LinearFinetune, {'train_db_kwargs': {'split': 'train', 'batch_size': 'x'}}, 'train_batch_size must be a valid'),
    (Kmeans, {'kmeans_eval': False}, 'kmeans_eval, a key of the published code, can only be True here, got False'),
    (Kmeans, {'train_db_name': 'COCO'}, "got 'COCO'; give the data set as val_db_name"),
    (Kmeans, {'retrieval_kwargs': {'ignore_classes': []}}, "unknown key 'retrieval_kwargs'")])
def test_values_that_mean_nothing_here_are_refused(load, tmp_path, monkeypatch, schema, changed, said) -> None:
    monkeypatch.chdir(tmp_path)
    content = {Pretrain: pretrain('supervised_model', 64, 128, {'pretraining': False}, False),
               LinearFinetune: linear(), Kmeans: prototypes()}[schema] | changed
    with pytest.raises(UserError) as caught:
        load(schema, content)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_published_keys_can_be_overridden_by_either_name(load) -> None:
    p = load(LinearFinetune, linear(), 'train_batch_size=4', 'val_db_kwargs.batch_size=2')
    assert (p.train_batch_size, p.val_batch_size) == (4, 2)


def test_a_missing_db_root_says_where_it_goes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'env.yml').write_text(ENV)
    (tmp_path / 'exp.yml').write_text(yaml.safe_dump(prototypes()))
    with pytest.raises(UserError, match='^env.yml: db_root is missing; set it to .* --set db_root=FOLDER$'):
        load_config('env.yml', 'exp.yml', Kmeans)


# --- the scripts

def test_the_scripts_run_on_published_files(db_root: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / 'env.yml').write_text(ENV)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'VOCSegmentation').symlink_to(db_root / 'Shapes')
    small = [f'db_root={tmp_path / "data"}', f'root_dir={tmp_path / "results"}', 'backbone=resnet18', 'device=cpu',
             'num_workers=0', 'model_kwargs.dropout=0.0']
    for script, (_, content) in OF_SCRIPT.items():
        name = script.rpartition('.')[2]
        if name == 'retrieval':
            content = {**content, 'retrieval_kwargs': {'ignore_classes': ['star']}}
        (tmp_path / f'{name}.yml').write_text(yaml.safe_dump(content))
        more = [value for value in SMALL[script] if 'epochs' not in value] + ['epochs=1'] * (name in (
            'main', 'linear_finetune', 'eval'))
        more += ['train_split=train'] * ('epochs=1' in more) + ['memory_split=train'] * (name == 'retrieval')
        more += [] if name == 'main' else ['pretraining=main/checkpoint.pth.tar']
        flags = {'main': ['--world-size', '1', '--rank', '0', '--dist-backend', 'nccl',
                          '--multiprocessing-distributed'],
                 'eval': ['--state-dict', 'linear_finetune/best_model.pth.tar']}.get(name, [])
        importlib.import_module(script).main([
            *flags, '--config_env', str(tmp_path / 'env.yml'), '--config_exp', str(tmp_path / f'{name}.yml'),
            '--set', *small, *more])
        printed = capsys.readouterr().out
        assert f'{name}.yml has keys of the published code: ' in printed
        assert ('mIoU is ' in printed) == (name != 'main')
    log = (tmp_path / 'results' / 'main' / 'log.txt').read_text()
    assert all(f'{key} has no effect' in log for key in ('backbone_kwargs.dilated', '; head', 'model_kwargs.head'))
    assert ('Flags of the published code without effect on one machine: --dist-backend, '
            '--multiprocessing-distributed, --world-size, --rank') in log
    assert results(tmp_path / 'results' / 'kmeans')['kmeans']['mIoU'] > 0
    assert load_checkpoint(tmp_path / 'results' / 'main' / 'checkpoint.pth.tar')['config']['saliency'] == \
        'supervised_model'


@pytest.mark.parametrize(('given', 'said'), [
    ('--nvidia-apex', 'write --set precision=fp16'), ('--dist-url tcp://localhost:10001', '--nproc'),
    ('--world-size 2', 'torchrun --nnodes 2'), ('--rank 1', 'torchrun --node-rank 1'), ('--rank -1', 'torchrun')])
def test_flags_that_would_change_something_end_in_a_sentence(db_root, tmp_path, capsys, given: str, said: str) -> None:
    message = Runner(db_root, tmp_path).fails('pretrain.main', flags=tuple(given.split()), capsys=capsys)
    assert message.startswith(f'error: {given.split()[0]}')
    assert said in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())
