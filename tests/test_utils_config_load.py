"""utils.config.load: every YAML that ships, every message, defaults, overrides, the copy beside the results."""
import copy
import pickle
from pathlib import Path

import pytest

from data.voc import VOC_CLASSES
from utils.config.cli import ConfigParser
from utils.config.keys import schema_keys
from utils.config.load import as_dict, load_config
from utils.config.paths import REPOSITORY
from utils.config.schema import SCHEMAS as ALL
from utils.config.schema import (
    CrfKwargs,
    Env,
    Kmeans,
    LinearFinetune,
    Pretrain,
    PseudoLabels,
    Retrieval,
    TrainSaliency,
    conflicts,
)
from utils.run.errors import UserError

CONFIGS = REPOSITORY / 'configs'
SCHEMAS = {'linear_finetune': LinearFinetune, 'finetune': LinearFinetune, 'kmeans': Kmeans, 'retrieval': Retrieval,
           'saliency': TrainSaliency, 'configs': Pretrain}
# of voc_animals and maskdistill
STEMS = {'pretrain': Pretrain, 'linear': LinearFinetune, 'kmeans': Kmeans, 'retrieval': Retrieval,
         'distill': LinearFinetune, 'pseudo': PseudoLabels}
SHIPPED = sorted(path for path in CONFIGS.rglob('*.yml') if path != CONFIGS / 'env.yml'
                 and (path.parent.name in (*SCHEMAS, 'maskdistill') or path.parent.parent.name == 'voc_animals'))
MINIMAL = 'pretraining: none\nepochs: 1\ntrain_batch_size: 2\n'


@pytest.fixture
def message(load, tmp_path, monkeypatch):
    """message(...): the text of the UserError that load(...) must raise."""
    monkeypatch.chdir(tmp_path)

    def message(*args, **kwargs) -> str:
        with pytest.raises(UserError) as caught:
            load(*args, **kwargs)
        return str(caught.value)
    return message


# --- the files that ship

@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_opens_with_its_command(path):
    schema = SCHEMAS.get(path.parent.name) or STEMS[path.stem.partition('_')[0]]
    config = load_config('configs/env.yml', str(path), schema,
                         ['root_dir=results', 'db_root=/data'])  # whatever env.yml was edited to
    assert config.config_name == path.stem
    start = path.parent.relative_to(REPOSITORY / 'configs')  # stems of the animals' starts are the same
    folder = start / path.stem if start.parts[:1] == ('voc_animals',) else path.stem
    assert config.output_dir == str(REPOSITORY / 'results' / folder)
    if config.get('pretraining', '').endswith('checkpoint.pth.tar') and start.parts[:1] == ('voc_animals',):
        assert config.pretraining == f'{start}/pretrain_supervised/checkpoint.pth.tar'
    first = path.read_text().splitlines()[0]
    assert first.startswith('# cd ')
    assert f'--config_env configs/env.yml --config_exp {path.relative_to(REPOSITORY)}' in first
    folder, script = first.split()[2], first.split()[5]
    assert (folder, script) == {
        Pretrain: ('pretrain', 'main.py'), LinearFinetune: ('segmentation', 'linear_finetune.py'),
        Kmeans: ('segmentation', 'kmeans.py'), Retrieval: ('segmentation', 'retrieval.py'),
        PseudoLabels: ('segmentation', 'pseudo_labels.py'), TrainSaliency: ('saliency', 'train.py')}[schema]


def test_presets_hold_the_published_values():
    def preset(name, schema=Pretrain):
        return load_config('configs/env.yml', f'configs/{name}.yml', schema, ['db_root=/data'])
    supervised = preset('VOCSegmentation_supervised_saliency_model')
    unsupervised = preset('VOCSegmentation_unsupervised_saliency_model')
    paper = preset('VOCSegmentation_paper_60_epochs')
    for config, expected in ((supervised, (40, 64, 128, True, 'imagenet_classification')),
                             (paper, (60, 64, 128, True, 'imagenet_classification')),
                             (unsupervised, (40, 128, 256, False, 'imagenet_moco'))):
        assert (config.epochs, config.train_batch_size, config.moco_kwargs.K, config.freeze_layers,
                config.pretraining) == expected
        assert config.optimizer_kwargs == {'lr': 0.004, 'momentum': 0.9, 'weight_decay': 1e-4, 'nesterov': False}
        assert (config.backbone, config.optimizer, config.scheduler) == ('resnet50', 'sgd', 'poly')
        assert (config.moco_kwargs.m, config.moco_kwargs.T, config.model_kwargs.ndim) == (0.999, 0.5, 32)
    linear = preset('linear_finetune/linear_finetune_VOCSegmentation_unsupervised_saliency', LinearFinetune)
    assert linear.scheduler_kwargs == {'lr_decay_rate': 0.1, 'lr_decay_epochs': (25,)}
    assert (linear.epochs, linear.train_batch_size, linear.optimizer_kwargs.lr) == (60, 16, 0.1)
    assert linear.crf_kwargs == CrfKwargs().model_dump()  # the file repeats the schema's figures
    for path in (REPOSITORY / 'configs' / 'retrieval').glob('retrieval_VOCSegmentation_*.yml'):
        ignored = preset(f'retrieval/{path.stem}', Retrieval).ignore_classes
        assert set(VOC_CLASSES) - set(ignored) == {'background', 'bus', 'aeroplane', 'car', 'person', 'cat', 'cow',
                                                   'bottle'}


@pytest.mark.parametrize('name', ['maskdistill/pseudo_labels_VOCSegmentation', 'own_images/pseudo_labels'])
def test_presets_leave_the_confidence_to_what_is_clustered(name):
    config = load_config(str(REPOSITORY / 'configs' / 'env.yml'), f'configs/{name}.yml', PseudoLabels,
                         ['results=a.json', 'coco=b.json', 'db_root=.', 'root_dir=.'])
    assert config.confidence is None  # 0.8 of the masks, or a detector's score of 0.9


def test_env_placeholder_names_file_key_and_mend(tmp_path, monkeypatch):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'env.yml').write_text('# folders\nroot_dir: results\ndb_root: /path/to/datasets\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'^configs/env.yml, line 3: db_root is still the placeholder '
                                        r'/path/to/datasets; set it to .* --set db_root=FOLDER$'):
        load_config('configs/env.yml', 'configs/VOCSegmentation_supervised_saliency_model.yml', Pretrain)


# --- what a loaded config is

def test_defaults_are_filled_in_nested_too(load):
    config = load(MINIMAL + 'optimizer_kwargs:\n  lr: 1\nmoco_kwargs:\n')
    assert config.optimizer_kwargs.lr == 1.0
    assert isinstance(config.optimizer_kwargs.lr, float)
    assert config.optimizer_kwargs.momentum == 0.9
    assert config.moco_kwargs.K == 128
    assert config.augmentation_kwargs.scale == (0.2, 1.0)
    assert config.moco_state_dict is None
    assert set(config) == set(Pretrain.model_fields) | {'config_name'}


def test_paths_are_absolute(load, tmp_path):
    config = load(MINIMAL)
    assert config.root_dir == str(REPOSITORY / 'out')
    assert config.db_root == str(REPOSITORY / 'sets')
    assert config.output_dir == str(REPOSITORY / 'out' / 'exp')
    config = load(MINIMAL + 'output_dir: here\n', env='root_dir: ~/r\ndb_root: /sets\n')
    assert config.output_dir == str(Path.home().resolve() / 'r' / 'here')
    assert load(MINIMAL, overrides=[f'output_dir={tmp_path}/x']).output_dir == str(tmp_path.resolve() / 'x')


def test_config_is_read_only(load):
    config = load(MINIMAL)
    for section in (config, config.optimizer_kwargs):
        for change in (lambda d: setattr(d, 'lr', 1), lambda d: d.__setitem__('lr', 1), lambda d: d.clear(),
                       lambda d: d.update(lr=1), lambda d: d.pop('lr'), lambda d: d.setdefault('a', 1),
                       lambda d: d.popitem(), lambda d: d.__delitem__('lr'), lambda d: delattr(d, 'lr'),
                       lambda d: d.__ior__({'lr': 1})):
            with pytest.raises(TypeError, match='read-only'):
                change(section)
    assert config.optimizer_kwargs.lr == config['optimizer_kwargs']['lr'] == 0.004
    with pytest.raises(AttributeError):
        _ = config.no_such_key


def test_config_can_be_copied_pickled_and_made_plain(load):
    config = load(MINIMAL)
    for other in (copy.deepcopy(config), copy.copy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        assert other.moco_kwargs.K == 128
        with pytest.raises(TypeError):
            other.moco_kwargs.K = 1
    plain = as_dict(config)
    assert type(plain) is dict
    assert type(plain['moco_kwargs']) is dict
    assert plain['augmentation_kwargs']['scale'] == [0.2, 1.0]


# --- overrides

def test_overrides(load):
    config = load(MINIMAL, overrides=['optimizer_kwargs.lr=0.1', 'scheduler_kwargs.lr_decay_epochs=[1, 2]',
                                      'epochs=2', 'epochs=3', 'moco_kwargs={K: 64, T: 0.1}', 'moco_kwargs.T=1',
                                      'moco_state_dict=', 'device=cpu', 'root_dir=/r', 'db_root=/d'])
    assert config.optimizer_kwargs.lr == 0.1
    assert config.scheduler_kwargs.lr_decay_epochs == (1, 2)
    assert config.epochs == 3  # the last one counts
    assert (config.moco_kwargs.K, config.moco_kwargs.T, config.moco_kwargs.m) == (64, 1.0, 0.999)
    assert (config.root_dir, config.db_root, config.device) == ('/r', '/d', 'cpu')


@pytest.mark.parametrize(('override', 'expected'), [
    ('lr=0.1', "--set lr=0.1: unknown key 'lr'; did you mean 'optimizer_kwargs.lr'?"),
    ('epochs', '--set epochs: expected KEY=VALUE'),
    ('epochs=two', "--set epochs=two: epochs must be a valid integer, got 'two'"),
    ('epochs.x=1', "--set epochs.x=1: unknown key 'epochs.x'; the keys here are root_dir"),
    ('epochs=[1', "--set epochs=[1: expected ',' or ']'"),
    ('moco_kwargs={K: 256, K: 128}', 'moco_kwargs.K is given twice'),
    ('epochs=-1', '--set epochs=-1: epochs must be greater than or equal to 0, got -1'),
    ('db_root=/path/to/x', '--set db_root=/path/to/x: db_root is still the placeholder'),
])
def test_override_errors_name_the_override(message, override, expected):
    assert expected in message(MINIMAL, overrides=[override])


def test_config_arguments():
    parser = ConfigParser('Title.', Pretrain)
    args = parser.parse_args(['--config_exp', 'x.yml', '--set', 'a=1', 'b=2', '--set', 'c=3'])
    assert (args.config_env, args.config_exp, args.overrides) == ('configs/env.yml', 'x.yml', ['a=1', 'b=2', 'c=3'])
    assert parser.parse_args(['--config_exp', 'x.yml']).overrides == []


# --- a file that states what differs from another

@pytest.fixture
def files(tmp_path, monkeypatch):
    """files(name=text, ...): files name.yml in the working directory, beside the two that ``load`` writes."""
    monkeypatch.chdir(tmp_path)

    def files(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f'{name}.yml').write_text(text)
    return files


def test_a_base_fills_in_what_is_absent(load, files, tmp_path):
    files(far='pretraining: none\nepochs: 3\nmoco_kwargs: {K: 64, T: 0.1}\n',
          near='train_batch_size: 2\nepochs: 2\nbase: far.yml\n')
    config = load('base: near.yml\nmoco_kwargs:\n  T: 1\n', overrides=['log_every=3'])
    assert (config.pretraining, config.epochs, config.train_batch_size, config.log_every) == ('none', 2, 2, 3)
    assert (config.moco_kwargs.K, config.moco_kwargs.T, config.config_name) == (64, 1.0, 'exp')
    assert 'base' not in config
    assert load('base: configs/demo/pretrain.yml\nmoco_kwargs:\n').moco_kwargs.K == 40  # as --config_exp is found


@pytest.mark.parametrize(('base', 'expected'), [
    ('epochs: -1\n', 'near.yml, line 1: epochs must be greater than or equal to 0, got -1'),
    ('epoch: 1\nepochs: 1\n', "near.yml, line 1: unknown key 'epoch'; did you mean 'epochs'?"),
    ('epochs: 1\nbase: exp.yml\n', 'near.yml, line 2: base leads back to exp.yml; take one base out'),
    ('base: near.yml\n', 'near.yml, line 1: base leads back to near.yml; take one base out'),
    ('base: no.yml\n', 'near.yml, line 1: base: no file no.yml: looked for '),
    ('epochs: 1\n', 'exp.yml: the key train_batch_size is missing')])
def test_mistakes_in_a_base_name_its_file(message, files, base, expected):
    files(near=base)
    text = message('base: near.yml\npretraining: none\n' + 'train_batch_size: 2\n' * ('train_' not in expected))
    assert text.startswith(expected)
    assert '\n' not in text


# --- mistakes in a file

@pytest.mark.parametrize(('lines', 'expected'), [
    ('train_spilt: x', "exp.yml, line 4: unknown key 'train_spilt'; did you mean 'train_split'?"),
    ('moco_kwargs:\n  k: 64', "exp.yml, line 5: unknown key 'moco_kwargs.k'; did you mean 'moco_kwargs.K'?"),
    ('moco_kwargs:\n  qqq: 64', "exp.yml, line 5: unknown key 'moco_kwargs.qqq'; the keys here are K, m, T"),
    ('m: 0.9', "exp.yml, line 4: unknown key 'm'; did you mean 'moco_kwargs.m'?"),
    ('moco_kwargs.m: 0.9', "exp.yml, line 4: unknown key 'moco_kwargs.m'; write m in a line of its own, indented "
                           'below moco_kwargs:'),
    ('? [a]\n: 1', "exp.yml, line 4: unknown key '?'"),
    ('db_root: x', "exp.yml, line 4: unknown key 'db_root'"),
    ('epochs: 2', 'exp.yml, line 4: epochs is given twice, first in exp.yml, line 2; keep one'),
    ('moco_kwargs: {K: 3}\nmoco_kwargs: {T: 1}', 'exp.yml, line 5: moco_kwargs is given twice, first in exp.yml'),
    ('optimizer_kwargs:\n  lr: "0.1"', "lr must be a valid number, got '0.1'; remove the quotes"),
    ('optimizer_kwargs:\n  lr: yes', 'optimizer_kwargs.lr must be a valid number, got True'),
    ('optimizer_kwargs:\n  lr: .nan', 'optimizer_kwargs.lr must be a finite number, got nan'),
    ('optimizer_kwargs:\n  lr: .inf', 'optimizer_kwargs.lr must be a finite number, got inf'),
    ('optimizer_kwargs:\n  lr: 1e999', 'optimizer_kwargs.lr must be a finite number, got inf'),
    ('optimizer_kwargs:\n  lr:', 'optimizer_kwargs.lr must be a valid number, got None'),
    ('optimizer_kwargs: 5', 'exp.yml, line 4: optimizer_kwargs holds the keys lr, momentum, weight_decay, nesterov; '
                            'expected key: value lines below it'),
    ('log_every: 2.0', 'log_every must be a valid integer, got 2.0'),
    ('log_every: 1e3', 'log_every must be a valid integer, got 1000.0'),
    ('log_every: true', 'log_every must be a valid integer, got True'),
    ('log_every: {a: 1}', 'log_every must be a valid integer, got {'),
    ('compile: 1', 'compile must be true or false, got 1'),
    ('compile: "no"', "compile must be true or false, got 'no'"),
    ('freeze_layers: 1.5', 'freeze_layers must be true or false or be a valid integer, got 1.5'),
    ('freeze_layers: -1', 'freeze_layers must be greater than or equal to 0, got -1'),
    ('train_split: on', 'train_split must be a valid string, got True, as YAML reads it; put it in quotes'),
    ('train_split: 2012', 'train_split must be a valid string, got 2012, as YAML reads it; put it in quotes'),
    ('train_split: ""', "train_split must have at least 1 character, got ''"),
    ('train_split: 2012-13-45', 'train_split: not a plain YAML value: month must be in 1..12'),
    ('train_split: !!python/name:os.system', 'train_split: not a plain YAML value: could not determine'),
    ('output_dir: [a]', "output_dir must be a valid string, got ['a']"),
    ('backbone: resnet51', "backbone must be resnet18, resnet50 or timm/<name>, got 'resnet51'"),
    ('optimizer: adamw', "optimizer must be 'sgd' or 'adam', got 'adamw'"),
    ('scheduler_kwargs:\n  lr_decay_epochs: 25', 'lr_decay_epochs must be a valid list, got 25; write [25]'),
    ('scheduler_kwargs:\n  lr_decay_epochs: [25, 1.5]', 'exp.yml, line 5: item 2 of scheduler_kwargs.lr_decay_epochs '
                                                        'must be a valid integer, got 1.5'),
    ('augmentation_kwargs:\n  jitter: [0, "1", 0, 0]', "item 2 of augmentation_kwargs.jitter must be a valid number, "
                                                       "got '1'; remove the quotes"),
    ('a: [', 'exp.yml, line 5: not valid YAML:'),
    ('\tx: 1', 'exp.yml, line 4: not valid YAML: found character'),
    ('---\nb: 1', 'exp.yml, line 4: not valid YAML: but found another document'),
])
def test_mistakes_in_a_file(message, lines, expected):
    text = message(MINIMAL + lines + '\n')
    assert expected in text
    assert '\n' not in text


def test_files_that_hold_no_keys(message, tmp_path):
    assert message('# nothing\n') == 'exp.yml: expected lines of the form key: value at the top level'
    assert message('- a\n') == 'exp.yml: expected lines of the form key: value at the top level'
    (tmp_path / 'latin.yml').write_bytes(b'pretraining: \xe4\n')
    with pytest.raises(UserError, match='^latin.yml: not valid YAML: .*invalid'):
        load_config('env.yml', 'latin.yml', Pretrain)


def test_missing_required_key_says_what_it_is(message):
    assert message('pretraining: none\ntrain_batch_size: 2\n') == (
        'exp.yml: the key epochs is missing (passes over the training set; 0 writes the initial weights)')


def test_list_of_text_and_of_integers_for_floats(load, message):
    base = 'pretraining: a.pth\nignore_classes: '
    assert load(base + '[cat, dog]\n', Retrieval).ignore_classes == ('cat', 'dog')
    assert load(base + '[no, on, 1, 1e3]\n', Retrieval).ignore_classes == ('no', 'on', '1', '1e3')
    assert "item 1 of ignore_classes must be a valid string, got ['cat']" in message(base + '[[cat]]\n', Retrieval)
    assert 'ignore_classes must be a valid list, got 5; write [5]' in message(base + '5\n', Retrieval)
    ratio = load(MINIMAL + 'augmentation_kwargs:\n  ratio: [1, 2]\n').augmentation_kwargs.ratio
    assert ratio == (1.0, 2.0)
    assert isinstance(ratio[0], float)


def test_all_errors_at_once(message):
    text = message('pretraining: none\nepochs: -1\nepochz: 1\nbackbone: x\n', overrides=['m=1'],
                   env='root_dir: 3\ndb_root: /path/to\n')
    first, *lines = text.splitlines()
    assert first == '7 errors in the config:'
    for line, start in zip(lines, ("--set m=1: unknown key 'm'", "exp.yml, line 3: unknown key 'epochz'; did you mean",
                                   'env.yml, line 2: db_root is still the placeholder /path/to;',
                                   'env.yml, line 1: root_dir must be a valid string, got 3',
                                   'exp.yml, line 2: epochs must be ', 'exp.yml: the key train_batch_size is missing',
                                   'exp.yml, line 4: backbone must be resnet18,'), strict=True):
        assert line.startswith(start)


# --- combinations

@pytest.mark.parametrize(('schema', 'lines', 'expected'), [
    (Pretrain, 'pretraining: imagenet_moco', 'exp.yml, line 3: pretraining: imagenet_moco needs moco_state_dict'),
    (Pretrain, 'scheduler: step', 'exp.yml, line 4: scheduler: step needs scheduler_kwargs.lr_decay_epochs'),
    (Pretrain, 'moco_kwargs: {K: 1}', 'train_batch_size 2 does not fit into the memory bank of moco_kwargs.K 1'),
    (Pretrain, 'moco_kwargs: {T: 0}', 'exp.yml, line 4: moco_kwargs.T must be greater than 0, got 0'),
    (Pretrain, 'moco_kwargs: {m: 1.1}', 'moco_kwargs.m must be less than or equal to 1, got 1.1'),
    (Pretrain, 'model_kwargs: {ndim: 0}', 'model_kwargs.ndim must be greater than or equal to 1, got 0'),
    (Pretrain, 'optimizer_kwargs: {lr: 0}', 'optimizer_kwargs.lr must be greater than 0, got 0'),
    (Pretrain, 'optimizer_kwargs: {nesterov: true, momentum: 0}', 'nesterov needs a momentum above 0'),
    (Pretrain, 'num_workers: -1', 'num_workers must be greater than or equal to 0, got -1'),
    (Pretrain, 'scheduler_kwargs: {lr_decay_epochs: [-1]}', 'epochs must be greater than or equal to 0, got -1'),
    (Pretrain, 'augmentation_kwargs: {scale: [0.5, 2]}', 'scale must be two increasing numbers above 0, up to 1'),
    (Pretrain, 'augmentation_kwargs: {scale: [0.5]}', 'scale must be two increasing numbers above 0, got [0.5]'),
    (Pretrain, 'augmentation_kwargs: {ratio: [2, 1]}', 'must be two increasing numbers above 0, got [2, 1]'),
    (Pretrain, 'augmentation_kwargs: {jitter: [1]}', 'jitter must be four numbers of 0 or more'),
    (Pretrain, 'augmentation_kwargs: {jitter: []}', 'jitter must be four numbers of 0 or more'),
    (Pretrain, 'augmentation_kwargs: {flip_probability: 2}', 'must be less than or equal to 1, got 2'),
    (Pretrain, 'seed: 2147483648', 'seed must be less than 2147483648, got'),
    (LinearFinetune, 'border_label: 1', 'border_label must be 0 or 255, got 1'),
    (LinearFinetune, 'border_label: false', 'border_label must be a valid integer, got False'),
    (LinearFinetune, 'label_share: 0', 'label_share must be greater than 0, got 0'),
    (LinearFinetune, 'crf_workers: -1', 'crf_workers must be greater than or equal to 0, got -1'),
    (LinearFinetune, 'val_size: 0', 'val_size must be greater than or equal to 1, got 0'),
    (Kmeans, 'num_clusters: 0', 'num_clusters must be greater than or equal to 1, got 0'),
    (Kmeans, 'overclustering: [0]', 'item 1 of overclustering must be greater than or equal to 1, got 0'),
    (Kmeans, 'features: backbone', 'pretraining: none holds no trained heads; give the path of a checkpoint'),
    (Retrieval, 'saliency: supervised_model', 'pretraining: none holds no trained heads'),
])
def test_impossible_combinations(message, schema, lines, expected):
    base = 'epochs: 1\ntrain_batch_size: 2\n' if schema in (Pretrain, LinearFinetune) else ''
    if 'pretraining' not in lines:
        base += 'pretraining: a.pth\n' if 'cluster' in lines else 'pretraining: none\n'
    text = message(base + lines + '\n', schema)
    assert expected in text
    assert '\n' not in text


def test_network_masks_need_the_head(message):
    text = message('pretraining: a.pth\nmodel_kwargs: {use_classification_head: false}\n', Kmeans)
    assert text == 'exp.yml: saliency: network needs model_kwargs.use_classification_head: true'


def test_combinations_skip_what_a_schema_lacks():
    assert not list(conflicts({'epochs': 0, 'pretraining': 'imagenet_moco', 'saliency': 'network'}))


@pytest.mark.parametrize('schema', [Env, *ALL])
def test_defaults_are_in_range_and_every_key_is_documented(schema):
    given = {name: 'a' if field.annotation is str else 1 for name, field in schema_keys(schema).items()
             if field.is_required()}
    schema.model_validate(schema.model_validate(given).model_dump())
    assert all(field.description for field in schema_keys(schema).values())


@pytest.mark.parametrize(('lines', 'expected'), [
    ('base:', 'line 4: base: a path is empty'),
    ('base: [a, b]', 'line 4: base must be the path of one file'),
    ('seed: &a [*a]', 'line 4: seed must be a valid integer, got [[...]]'),
    ('optimizer_kwargs: {lrate: 1}', "unknown key 'optimizer_kwargs.lrate'; the keys here are lr, momentum"),
    ('optimizer_kwargs: {momentum: 0.9.1}', "must be a valid number, got '0.9.1'"),
    ("optimizer_kwargs: {lr: '4e-3'}", "got '4e-3'; remove the quotes")])
def test_sentences_fit_the_mistake(message, lines: str, expected: str) -> None:
    said = message(f'{MINIMAL}{lines}\n')
    assert expected in said
    assert said.endswith('remove the quotes') == expected.endswith('remove the quotes')
