"""Config files and flags of the published code: what each means here, what has no effect, and what is refused."""
import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.config.schema import Kmeans, LinearFinetune, Pretrain, Retrieval
from utils.run.errors import UserError


class Rule(NamedTuple):
    """What a key of the published files is here.

    key: the key that takes its value; None: it has no effect.
    accepted: the only values that can be taken; none of them: any.
    hint: what to do about another value.
    false: the value here of one that is false there (false, 0, nothing).
    """
    key: str | None = None
    accepted: tuple = ()
    hint: str = ''
    false: str | None = None


STRIDE = Rule(accepted=(True,), hint='the networks here have an output stride of 8 alone; take the line out')
DECODER = Rule(accepted=('deeplab',), hint='write model_kwargs.decoder (deeplab or conv1x1)')
HEAD = Rule(accepted=('linear',), hint='the embedding head is linear; take the line out')
DATA = Rule(accepted=('VOCSegmentation',), hint='give the data set as val_db_name')
EVAL = Rule(accepted=(True,), hint='this script reads embeddings; take the line out')
PROTOTYPES = {'train_db_name': DATA, 'val_db_kwargs.batch_size': Rule('val_batch_size'),
              'backbone_kwargs.dilated': STRIDE, 'backbone_kwargs.pretrained': Rule(), 'model_kwargs.head': HEAD,
              'head': DECODER, 'freeze_layer': Rule(), 'kmeans_eval': EVAL}
# schema -> dotted key of the published files that is none here -> what it is
RULES: Mapping[type, Mapping[str, Rule]] = {
    Pretrain: {'train_db_kwargs.saliency': Rule('saliency'), 'backbone_kwargs.dilated': STRIDE,
               'backbone_kwargs.pretraining': Rule('pretraining', false='none'),
               'backbone_kwargs.moco_state_dict': Rule('moco_state_dict'), 'model_kwargs.head': HEAD, 'head': DECODER},
    LinearFinetune: {'train_db_kwargs.split': Rule('train_split'),
                     'train_db_kwargs.batch_size': Rule('train_batch_size'),
                     'val_db_kwargs.batch_size': Rule('val_batch_size'), 'backbone_kwargs.dilated': STRIDE,
                     'head': DECODER},
    Kmeans: PROTOTYPES,
    Retrieval: {**PROTOTYPES, 'train_db_name': DATA._replace(hint='give the data set as memory_db_name'),
                'retrieval_kwargs.ignore_classes': Rule('ignore_classes')}}
# of the published main.py; all but the last two change nothing on one machine
FLAGS: dict[str, dict[str, Any]] = {
    '--dist-backend': {}, '--multiprocessing-distributed': {'action': 'store_true'}, '--world-size': {'type': int},
    '--rank': {'type': int}, '--dist-url': {}, '--nvidia-apex': {'action': 'store_true'}}


def describe(shown: str, translated: Mapping[str, str | None], given: Mapping[str, Any], schema: type) -> list[str]:
    """Lines for the log on a file that holds keys of the published code.

    Args:
        shown: the file's name.
        translated: published key -> key here, None for one without effect.
        given: the keys that were given.
        schema: of the experiment.
    """
    if not translated:
        return []
    named = [f'{old} is {new} here' for old, new in translated.items() if new is not None]
    dropped = [old for old, new in translated.items() if new is None]
    parts = named + [f'without effect: {", ".join(dropped)}'] * bool(dropped)
    lines = [f'{shown} has keys of the published code: {"; ".join(parts)}']
    if schema is Retrieval and 'memory_split' not in given:
        lines.append('The published code fills the memory from train; here it is trainaug, as its page says '
                     '(--set memory_split=train takes the other)')
    return lines


def add_published_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the published main.py, which --help does not list, to those of pretraining."""
    for flag, options in FLAGS.items():
        parser.add_argument(flag, default=None, help=argparse.SUPPRESS, **options)


def flags_without_effect(args: argparse.Namespace) -> list[str]:
    """A line for the log if flags of the published main.py were given that change nothing on one machine.

    Raises:
        UserError: one was given that would change something.
    """
    if args.nvidia_apex:
        raise UserError('--nvidia-apex is 16 bit training of the published code; write --set precision=fp16 (or bf16).')
    if args.dist_url is not None:
        raise UserError('--dist-url is of the published code: the processes of one machine (--nproc) find each other, '
                        'and those of several by torchrun --master-addr HOST --master-port PORT; leave it out.')
    if args.world_size not in (None, 1):
        raise UserError(f'--world-size {args.world_size} is a number of machines in the published code; start the '
                        f'script by torchrun --nnodes {args.world_size}, or for processes of one machine write '
                        '--nproc N.')
    if args.rank not in (None, 0):
        raise UserError(f'--rank {args.rank} is the number of a machine in the published code; start the script by '
                        f'torchrun --node-rank {args.rank} there, with --nnodes.')
    given = [flag for flag in FLAGS if getattr(args, flag[2:].replace('-', '_')) is not None]
    return [f'Flags of the published code without effect on one machine: {", ".join(given)}'] * bool(given)
