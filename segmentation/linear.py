"""What stands beside the weights of a linear model, a plain state dict: what it was trained for, and its results."""
from collections.abc import Sequence
from pathlib import Path

import yaml

from utils.config.reader import damaged, read_config, read_yaml
from utils.report.results import read_results
from utils.run.errors import UserError, name_some
from utils.run.files import write_text

BEST = 'best_model.pth.tar'


def stem(weights: Path) -> str:
    """'best_model' of best_model.pth.tar."""
    return Path(weights.name.removesuffix('.tar')).stem


def _classes_file(weights: Path) -> Path:
    return weights.with_name(f'{stem(weights)}.classes.yml')


def write_trained(weights: Path, task: str, classes: Sequence[str]) -> None:
    """Write <stem>.classes.yml beside the weights."""
    write_text(_classes_file(weights), yaml.safe_dump({'task': task, 'classes': list(classes)}, sort_keys=False))


def read_trained(weights: Path, scored: Sequence[str] | None = None) -> tuple[str, tuple[str, ...] | None]:
    """The name of a model's results, 'linear' or 'finetuned', and its classes: what <stem>.classes.yml says.

    Without that file, of an earlier version, the task is that of config.yml beside it and the classes are None. Raises
    UserError if one of the two is damaged, or if the classes are not those that are to be ``scored``.
    """
    path = _classes_file(weights)
    if weights.name == 'checkpoint.pth.tar' and not path.exists():  # of the training whose best model stands beside it
        path = _classes_file(weights.with_name(BEST))
    content = read_yaml(path)
    if content is None:
        run = read_config(weights.parent) or {}
        return 'finetuned' if run.get('network_lr_factor') else 'linear', None
    task, classes = content.get('task'), content.get('classes')
    if task not in ('linear', 'finetuned') or not isinstance(classes, list) \
            or not all(isinstance(name, str) for name in classes):
        raise damaged(path, 'it must hold a task and a list of classes')
    if scored is not None and classes != list(scored):
        raise UserError(f'{weights} was trained for the classes {name_some(classes, 21)}, and the data set has '
                        f'{name_some(scored, 21)}; take the data set and eval_classes of its training.')
    return task, tuple(classes)


def check_free(output_dir: Path, task: str, weights: Path, digest: str) -> None:
    """Raise UserError if results of these weights would join another best model or replace results of others."""
    best, other = output_dir / BEST, 'choose another one with --set output_dir=...'
    if best.is_file():
        if not best.samefile(weights):
            raise UserError(f'output_dir {output_dir} is that of a training run, for results of its own {BEST} and not '
                            f'of {weights}; {other}, or leave it out.')
        return
    results = read_results(output_dir)
    for name in {task, f'{task}_crf'} & results.keys():
        made = results[name].get('made_with', {})
        if made.get('fingerprint') != digest:
            theirs = made.get('weights', 'of an earlier version, which does not name them')
            raise UserError(f'output_dir {output_dir} holds results of other weights ({theirs}), which those of '
                            f'{weights} would replace; {other}.')
