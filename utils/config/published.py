"""Config files and flags of the published code: what each means here, what has no effect, and what is refused."""
import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.config.schema import Kmeans, LinearFinetune, Pretrain, Retrieval
from utils.run.errors import UserError


class Rule(NamedTuple):
    """What a key or a flag of the published code is here."""
    key: str | None = None  # which takes its value; None: it has no effect
    accepted: tuple = ()  # the only values that can be taken; none of them: any
    hint: str = ''  # what to do about another value
    false: str | None = None  # the value here of one that is false there (false, 0, nothing)


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
# of the published main.py -> what argparse makes of it, and which values change nothing on one machine
FLAGS: dict[str, tuple[dict[str, Any], Rule]] = {
    '--dist-backend': ({}, Rule()),
    '--multiprocessing-distributed': ({'action': 'store_true'}, Rule()),
    '--world-size': ({'type': int}, Rule(accepted=(1,), hint='a number of machines; start the script by torchrun '
                                         '--nnodes {0}, or write --nproc N for processes of one machine')),
    '--rank': ({'type': int}, Rule(accepted=(0,), hint='the number of a machine; start the script by torchrun '
                                   '--node-rank {0} there, with --nnodes')),
    '--dist-url': ({}, Rule(accepted=(None,), hint='where processes meet; those of one machine (--nproc) find each '
                            'other, for several give torchrun --master-addr HOST --master-port PORT')),
    '--nvidia-apex': ({'action': 'store_true'}, Rule(accepted=(None,), hint='16 bit training; write --set '
                                                     'precision=fp16 (or bf16)'))}


def describe(shown: str, translated: Mapping[str, str | None], given: Mapping[str, Any], schema: type) -> list[str]:
    """Lines for the log on the file ``shown`` that holds keys of the published code, translated as the Reader says."""
    parts = [f'{old} is {new} here' if new else f'{old} has no effect' for old, new in translated.items()]
    lines = [f'{shown} has keys of the published code: {"; ".join(parts)}'] * bool(parts)
    if parts and schema is Retrieval and 'memory_split' not in given:
        lines.append('The published code fills the memory from train; here it is trainaug, as its page says '
                     '(--set memory_split=train takes the other)')
    return lines


def add_published_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the published main.py, which --help does not list, to those of pretraining."""
    for flag, (options, _) in FLAGS.items():
        parser.add_argument(flag, default=None, help=argparse.SUPPRESS, **options)


def flags_without_effect(args: argparse.Namespace) -> list[str]:
    """A line for the log on flags of the published main.py. Raises UserError for one that would change something."""
    given = {flag: value for flag in FLAGS if (value := getattr(args, flag[2:].replace('-', '_'))) is not None}
    for flag, value in given.items():
        rule = FLAGS[flag][1]
        if rule.accepted and value not in rule.accepted:
            raise UserError(f'{flag} is, in the published code, {rule.hint.format(value)}.')
    return [f'Flags of the published code without effect on one machine: {", ".join(given)}'] * bool(given)
