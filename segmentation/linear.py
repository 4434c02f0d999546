"""What stands beside the weights of a linear model, a plain state dict: what it was trained for, and its results."""
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from utils.config.saved import damaged, read_config, read_yaml
from utils.report.results import read_results
from utils.run.errors import UserError, name_some
from utils.run.files import write_text

BEST = 'best_model.pth.tar'


class Trained(NamedTuple):
    """What a linear model was trained for.

    task: 'linear' or 'finetuned', the name of its results.
    classes: names of its channels; None if nothing beside it says them.
    """
    task: str
    classes: tuple[str, ...] | None


def stem(weights: Path) -> str:
    """'best_model' of best_model.pth.tar."""
    name = weights.name.removesuffix('.tar')
    return name.rpartition('.')[0] or name


def write_trained(weights: Path, trained: Trained) -> None:
    """Write <stem>.classes.yml beside the weights."""
    content = {'task': trained.task, 'classes': list(trained.classes or ())}
    write_text(_classes_file(weights), yaml.safe_dump(content, sort_keys=False))


def read_trained(weights: Path, scored: Sequence[str] | None = None) -> Trained:
    """What stands beside the weights: <stem>.classes.yml, of weights of an earlier version config.yml of their run.

    Args:
        scored: the classes of the data set that they are to be scored on.

    Raises:
        UserError: one of the two is damaged, or the weights were trained for other classes than these.
    """
    path = _classes_file(weights)
    if weights.name == 'checkpoint.pth.tar' and not path.exists():  # of the training whose best model stands beside it
        path = _classes_file(weights.with_name(BEST))
    content = read_yaml(path)
    if content is None:
        run = read_config(weights.parent) or {}
        return Trained('finetuned' if run.get('network_lr_factor') else 'linear', None)
    task, classes = content.get('task'), content.get('classes')
    if task not in ('linear', 'finetuned') or not isinstance(classes, list) \
            or not all(isinstance(name, str) for name in classes):
        raise damaged(path, 'it must hold a task and a list of classes')
    if scored is not None and tuple(classes) != tuple(scored):
        raise UserError(f'{weights} was trained for the classes {name_some(classes, 21)}, and the data set has '
                        f'{name_some(scored, 21)}; take the data set and eval_classes of its training, or other '
                        'weights.')
    return Trained(task, tuple(classes))


def check_free(output_dir: Path, tasks: Sequence[str], weights: Path, digest: str) -> None:
    """See that results of these weights replace none of others.

    Raises:
        UserError: the folder is that of a training run with another best model, or holds results of other weights.
    """
    best = output_dir / BEST
    if best.is_file() and best.samefile(weights):
        return
    other = 'choose another one with --set output_dir=...'
    if best.is_file():
        raise UserError(f'output_dir {output_dir} is that of a training run, for results of its own {BEST} and not of '
                        f'{weights}; {other}, or leave it out.')
    results = read_results(output_dir)
    for task in tasks:
        made = results.get(task, {}).get('made_with', {})
        if task in results and made.get('fingerprint') != digest:
            theirs = made.get('weights', 'of an earlier version, which does not name them')
            raise UserError(f'output_dir {output_dir} holds results of other weights ({theirs}), which those of '
                            f'{weights} would replace; {other}.')


def _classes_file(weights: Path) -> Path:
    return weights.with_name(f'{stem(weights)}.classes.yml')
