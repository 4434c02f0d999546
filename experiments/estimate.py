"""What the runs of a chain take on this machine: two steps of each kind, on noise, in a process of its own."""
import multiprocessing
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.loaders import collate_pairs
from data.voc import read_list
from experiments.runner import SCRIPTS, Step
from models.backbones import freeze_layers
from models.segmentation import ContrastiveSegmentationModel, LinearSegmentationModel
from pretrain.losses import compute_losses
from pretrain.maskcontrast import MaskContrast
from segmentation import engine
from utils.config.load import load_config
from utils.config.schema import LinearFinetune, Pretrain, PseudoLabels
from utils.report.results import markdown
from utils.run.devices import Precision, allow_tf32, pick_device
from utils.run.log import duration
from utils.run.trainer import build_optimizer

SCHEMAS: dict[str, Any] = dict(SCRIPTS.values()) | {'segmentation/eval.py': LinearFinetune}
SIZES = {'trainaug': 10582, 'val': 1449}  # of VOC, where its lists are not there yet
KINDS = ('freeze_layers', 'network_lr_factor', 'freeze_batchnorm', 'loss', 'moco_kwargs', 'train_batch_size')
# keys in which the presets differ, as far as it matters here
FEW = 2  # images of a step on a CPU; a GPU gets the batch


def draw_view(size: int) -> torch.Tensor:
    return torch.randint(256, (3, size, size), dtype=torch.uint8)


def draw_batch(count: int, size: int, step: int = 1) -> dict[str, torch.Tensor]:
    """Noise with a square object in the middle of each view; as ``collate_pairs`` gives it."""
    edge = size // 4
    mask = torch.zeros(size, size, dtype=torch.uint8)
    mask[edge:3 * edge, edge:3 * edge] = 1
    return collate_pairs([{'query': draw_view(size), 'key': draw_view(size), 'query_mask': mask, 'key_mask': mask}
                          for _ in range(count)], step)


def measure(p: Any, trains: bool, processes: int) -> tuple[float, float, float]:
    """Seconds an image, bytes at the peak of a process, bytes of checkpoints; of random weights."""
    device, pretrains, linear = pick_device(p.device), p._schema is Pretrain, p._schema is LinearFinetune
    precision = Precision(device, p.get('precision', 'fp32'), p.get('channels_last', True))
    model: Any = (LinearSegmentationModel(p.backbone) if linear else
                  ContrastiveSegmentationModel(p.backbone, **p.model_kwargs)).eval()
    forward = model if linear else model.maps
    if trains:
        freeze_layers(model.backbone, p.freeze_layers)
    if pretrains:
        model = MaskContrast(model, p.model_kwargs.ndim, **p.moco_kwargs).train()
    elif trains:
        if p.network_lr_factor == 0:
            model.freeze_all_but_classifier()
        model.set_train_mode(p.freeze_batchnorm)
    precision.to_device(model)
    allow_tf32(p.tf32 if trains else p.val_tf32)
    torch.backends.cudnn.benchmark = True  # as in runs of images of one size; the first step tries algorithms
    cuda, share = device.type == 'cuda', p.train_batch_size // processes if trains else p.val_batch_size
    count = share if cuda else min(share, FEW)
    side = p.augmentation_kwargs.size if pretrains else p.train_size if trains else p.val_size
    batch = draw_batch(count, side, model.model_q.output_stride if pretrains else 1)
    batch |= {'image': batch['query'] / 255, 'semseg': batch['query_mask'].long()}
    optimizer = build_optimizer(p.optimizer, model.parameters(), **p.optimizer_kwargs) if trains else None
    losses = compute_losses if pretrains else partial(engine.compute_losses, hardest=(
        p.ohem_share if p.get('loss') == 'ohem' else None))

    def peak() -> float:
        return torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak()
    for _ in range(2):  # the first readies kernels
        begun = time.perf_counter()
        if optimizer is None:
            with torch.inference_mode():
                forward(precision.to_device(batch['image']))
        else:
            precision.step(losses(model, batch, precision)['loss'], optimizer)
        if cuda:
            torch.cuda.synchronize()
    seconds = (time.perf_counter() - begun) / count / processes
    floats = [sum(x.numel() for x in tensors) for tensors in (
        model.state_dict().values(), [x for x in model.parameters() if x.requires_grad])]  # and their momentum
    return (seconds, before + (peak() - before) * share / count,
            4 * (floats[0] * (1 if pretrains else 2) + floats[1]) if trains else 0)


def count_images(p: Any, trains: bool) -> float:
    """How many images a run has the network see, where one that is scored takes the time of one that is trained on."""
    def of(kind: str) -> int:
        path = Path(p.db_root, p[f'{kind}_db_name'], 'sets', f'{p[f"{kind}_split"]}.txt')
        return len(read_list(path)) if path.is_file() else SIZES.get(p[f'{kind}_split'], SIZES['trainaug'])

    scored = sum(of(kind) for kind in ('val', 'memory') if f'{kind}_split' in p)
    return p.epochs * (of('train') * p.get('label_share', 1) + scored) + scored if trains else scored


def estimate(steps: Sequence[Step]) -> tuple[str, float]:
    """A table in Markdown, with a line for steps that differ in their seed alone, and the bytes of all checkpoints."""
    context, known, rows = multiprocessing.get_context('forkserver'), dict[str, Any](), dict[str, list[Any]]()
    context.set_forkserver_preload([__name__])
    for step in steps:
        row = rows.setdefault('/'.join(part for part in step.folder.split('/') if 'seed_' not in part), [0])
        row[0] += 1
        (script, *words), schema = step.command, SCHEMAS.get(step.command[0], PseudoLabels)
        if schema is PseudoLabels or len(row) > 1:  # of transformers nothing is measured
            continue
        p: Any = load_config(words[1], words[3], schema, words[words.index('--set') + 1:])
        trains = 'epochs' in p and 'eval' not in script
        processes = torch.cuda.device_count() if pick_device(p.device).type == 'cuda' else 1
        kind = str([trains, schema is LinearFinetune, *map(p.get, KINDS)])
        if kind not in known:
            with ProcessPoolExecutor(1, context) as pool:
                known[kind] = pool.submit(measure, p, trains, processes).result()
        seconds, *sizes = known[kind]
        row += [seconds * count_images(p, trains), *sizes]
    texts = [[name, str(number), *([duration(of[0]), *(f'{size / 1e9:.1f}' for size in of[1:])] if of else '---')]
             for name, (number, *of) in rows.items()]
    total, disk = (sum(row[0] * row[column] for row in rows.values() if row[1:]) for column in (1, 3))
    texts.append(['all that is measured', str(len(steps)), duration(total), '', f'{disk / 1e9:.1f}'])
    return markdown(('runs', 'number', 'time of each', 'memory, GB', 'checkpoints, GB'), texts, 4), disk
