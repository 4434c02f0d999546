"""Two processes against one that simulates them step by step, and scripts in several processes."""
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from data.loaders import SeededSampler
from models.segmentation import ContrastiveSegmentationModel
from pretrain.losses import compute_losses, contrastive_loss, saliency_loss
from pretrain.maskcontrast import MaskContrast
from segmentation.objects import MASKS, read_masks
from tests.test_pretrain_maskcontrast import batch_of
from tests.test_scripts import Runner
from utils.run import distributed
from utils.run.checkpoint import load_checkpoint
from utils.run.devices import Precision
from utils.run.errors import EXIT_STOPPED, EXIT_USER_ERROR
from utils.run.trainer import VOTE, Trainer

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = {'cpu': 'gloo', 'compiled': 'gloo', 'cuda': 'cpu:gloo,cuda:nccl'}
GPUS = torch.cuda.device_count()
TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason=f'NCCL needs two CUDA devices, PyTorch sees {GPUS}')]
WORLD, BATCH, SIZE, DIM, BANK, STEPS = 2, 2, 32, 8, 10, 3


def build(gather: bool) -> MaskContrast:
    torch.manual_seed(0)
    return MaskContrast(ContrastiveSegmentationModel('resnet18', DIM, dropout=0.0), DIM, BANK, m=0.9,
                        gather_prototypes=gather).double().train()


def batches() -> list[dict[str, Tensor]]:
    """Global batches, one a step."""
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(STEPS):
        batch = {view: torch.randn(WORLD * BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
                 for view in ('query', 'key')}
        for view in ('query', 'key'):
            masks = torch.zeros(WORLD * BATCH, SIZE, SIZE, dtype=torch.uint8)
            for mask in masks:
                y, x = torch.randint(0, 12, (2,), generator=generator).tolist()
                mask[y:y + 9 + x, x:x + 7 + y] = 1
            batch[view + '_mask'] = masks
        drawn.append(batch)
    return drawn


def snapshot(method: MaskContrast, losses: list[Tensor]) -> dict[str, Tensor]:
    return {**{f'grad/{name}': p.grad.clone().cpu() for name, p in method.model_q.named_parameters()},
            **{name: value.clone().cpu() for name, value in method.state_dict().items()
               if 'running' not in name and 'tracked' not in name}, 'loss': torch.stack(losses).detach().cpu()}


def worker(rank: int, store: str, folder: str, gather: bool, kind: str) -> None:
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == 'cuda' else torch.device('cpu')
    if kind == 'cuda':
        torch.cuda.set_device(device)
    dist.init_process_group(BACKENDS[kind], init_method=f'file://{store}', rank=rank, world_size=WORLD)
    method = build(gather).to(device)
    if rank:  # what the main process has counts
        torch.nn.init.normal_(method.model_q.head.weight)
        method.queue.zero_()
    if kind == 'compiled':
        method.compile(backend='aot_eager')
    model = distributed.parallel(method)
    optimizer = torch.optim.SGD(method.model_q.parameters(), 0.05, momentum=0.9)
    torch.manual_seed(5 + rank)
    steps = []
    for batch in batches():
        share = [batch[name][rank * BATCH:(rank + 1) * BATCH] for name in ('query', 'query_mask', 'key', 'key_mask')]
        losses = compute_losses(model, batch_of(share), Precision(device))
        optimizer.zero_grad()
        losses['loss'].backward()
        steps.append(snapshot(method, [losses['loss']]))
        optimizer.step()
    confusion = np.full((2, 2), rank + 1)
    assert (np.sum(distributed.gather_objects(confusion), axis=0) == 3).all()
    assert distributed.any_process(rank == 1)
    assert not distributed.any_process(False)
    assert distributed.largest(rank, -rank) == [1, 0]
    statistics = method.model_q.backbone.bn1.running_mean
    own = statistics.cpu().clone()
    with Trainer.at_once(SimpleNamespace(save=lambda: None, model=method, _signal=None)):  # type: ignore[arg-type]
        mains = distributed.gather_objects(own)[0]
        assert torch.equal(statistics.cpu(), mains)
    assert torch.equal(own, mains) == (rank == 0)
    torch.save(steps, Path(folder) / f'{rank}.pt')
    distributed.leave()


def oracle(gather: bool, kind: str) -> list[dict[str, Tensor]]:
    """One process on the CPU, image by image and pixel by pixel; ``kind`` of device draws the order."""
    method, steps = build(gather), []
    query, key = method.model_q, method.model_k
    optimizer = torch.optim.SGD(query.parameters(), 0.05, momentum=0.9)
    torch.manual_seed(5)  # the main process draws the order
    for batch in batches():
        with torch.no_grad():
            for k, q in zip(key.parameters(), query.parameters(), strict=True):
                k.copy_(0.9 * k + 0.1 * q)
            order = torch.randperm(WORLD * BATCH, device='cuda' if kind == 'cuda' else 'cpu').tolist()
            embeddings: dict[int, Tensor] = {}
            for process in range(WORLD):
                mine = order[process * BATCH:(process + 1) * BATCH]
                embeddings.update(zip(mine, key(batch['key'][mine])[0], strict=True))
            prototypes = []
            for i in range(WORLD * BATCH):
                pixels = embeddings[i][:, batch['key_mask'][i].bool()]
                total = (pixels / pixels.norm(dim=0)).sum(1)
                prototypes.append(total / total.norm())
        losses = []
        for process in range(WORLD):
            mine = list(range(process * BATCH, (process + 1) * BATCH))
            embedding, scores = query(batch['query'][mine])
            pixels = [embedding[j][:, batch['query_mask'][i].bool()].T for j, i in enumerate(mine)]
            among = list(range(WORLD * BATCH)) if gather else mine  # whose prototypes are contrasted
            labels = torch.cat([torch.full((len(rows),), among.index(i))
                                for i, rows in zip(mine, pixels, strict=True)])
            unit = torch.cat([rows / rows.norm(dim=1, keepdim=True) for rows in pixels])
            columns = torch.stack([prototypes[i] for i in among] + list(method.queue.T))
            losses.append(contrastive_loss(unit @ columns.T / 0.5, labels)
                          + saliency_loss(scores, batch['query_mask'][mine]))
        optimizer.zero_grad()
        (sum(losses) / WORLD).backward()
        for prototype in prototypes:
            at = int(method.queue_ptr)
            method.queue[:, at] = prototype
            method.queue_ptr[0] = (at + 1) % BANK
        steps.append(snapshot(method, losses))
        optimizer.step()
    return steps


@pytest.mark.parametrize(('kind', 'gather'), [
    ('cpu', False), ('cpu', True), ('compiled', True), pytest.param('cuda', True, marks=TWO_GPUS)])
def test_two_processes_equal_the_oracle(tmp_path: Path, kind: str, gather: bool) -> None:
    mp.spawn(worker, (str(tmp_path / 'store'), str(tmp_path), gather, kind), WORLD)
    bar = 1e-7 if kind == 'cuda' else 1e-9
    found = [torch.load(tmp_path / f'{rank}.pt') for rank in range(WORLD)]
    for count, expected in enumerate(oracle(gather, kind)):
        loss = torch.cat([found[rank][count].pop('loss') for rank in range(WORLD)])
        torch.testing.assert_close(loss, expected.pop('loss'), rtol=bar, atol=0)
        for name, value in expected.items():
            for rank in range(WORLD):
                other = found[rank][count][name]
                assert torch.linalg.norm((other - value).double()) <= bar * max(
                    1e-6, torch.linalg.norm(value.double())), (name, rank, count)
            assert torch.equal(found[0][count][name], found[1][count][name]), name


def test_shares_of_the_sampler_are_the_batches_of_one_process() -> None:
    one = SeededSampler(23, 7)
    shares = [SeededSampler(23, 7, 6, rank, 3) for rank in range(3)]
    for epoch, start in ((0, 0), (1, 6)):
        for sampler in (one, *shares):
            sampler.epoch, sampler.start = epoch, start
        whole, parts = list(one), [list(share) for share in shares]
        assert [len(part) for part in parts] == [len(share) for share in shares] == [(23 - start) // 6 * 2] * 3
        for step in range((23 - start) // 6):
            batch = [item for part in parts for item in part[2 * step:2 * step + 2]]
            assert batch == whole[6 * step:6 * step + 6]


def test_processes_vote_at_most_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of two processes, the other of which is slower, and gets a signal in its 300th."""
    steps, votes = [1], []
    run = Trainer.__new__(Trainer)
    run._signal, run._votes, run._wait, run._voted = None, 1, 1, 0.0
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    monkeypatch.setattr('time.perf_counter', lambda: 0.04 * steps[0])

    def largest(seconds: float, asked: float) -> list[float]:
        votes.append(steps[0])
        return [max(seconds, 0.05), float(steps[0] >= 300 or asked)]

    monkeypatch.setattr(distributed, 'largest', largest)
    while not run._asked():
        steps[0] += 1
    assert votes[:7] == [1, 3, 7, 15, 31, 63, 127]
    assert max(0.05 * (later - earlier) for earlier, later in itertools.pairwise(votes)) <= VOTE
    assert 300 <= steps[0] <= 300 + VOTE / 0.05
    assert len(votes) < 12


@pytest.fixture(scope='module')
def runner(db_root: Path, tmp_path_factory) -> Runner:
    return Runner(db_root, tmp_path_factory.mktemp('processes'))


def command(runner: Runner, script: str, *overrides: str) -> list[str]:
    keys = ['pretraining=none', 'epochs=2', 'model_kwargs.dropout=0.5', 'device=cpu', 'checkpoint_every=1']
    return [str(ROOT / script), *runner.arguments(script[:-3].replace('/', '.'), *keys, *overrides)]


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'})


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until(condition, process: subprocess.Popen) -> None:
    begun = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < 290
        time.sleep(0.02)


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)['model']


def test_two_agents_on_one_address_agree_with_two_processes_that_were_stopped(runner: Runner) -> None:
    both = start(*command(runner, 'pretrain/main.py', 'output_dir=both'), '--nproc', '2')
    checkpoint = runner.root_dir / 'both' / 'checkpoint.pth.tar'
    until(checkpoint.exists, both)
    both.send_signal(signal.SIGTERM)
    code, out, err = finish(both)
    assert code in (0, EXIT_STOPPED), err
    if code:
        assert err.count('stopped by') == 1, err
    assert 'Traceback' not in err
    assert len(load_checkpoint(checkpoint)['rng']) == 2
    code, out, err = finish(start(*command(runner, 'pretrain/main.py', 'output_dir=both'), '--nproc', '2'))
    assert code == 0, err
    assert '2 processes' in out
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    agents = [start('-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1', '--node-rank', str(node),
                    '--master-addr', '127.0.0.1', '--master-port', str(port),
                    *command(runner, 'pretrain/main.py', 'output_dir=agents')) for node in range(2)]
    for agent in agents:
        code, _, err = finish(agent)
        assert code == 0, err
    first, second = weights(checkpoint), weights(runner.root_dir / 'agents' / 'checkpoint.pth.tar')
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize('device', [pytest.param('cuda', marks=TWO_GPUS)])
def test_two_gpus_train_and_resume(runner: Runner, device: str) -> None:
    for sentence in ('Pretraining is complete', 'Resuming after epoch 2'):
        code, out, err = finish(start(*command(runner, 'pretrain/main.py', f'device={device}', 'precision=bf16',
                                               'output_dir=gpus'), '--nproc', '2'))
        assert code == 0, err
        assert sentence in out
    assert len(load_checkpoint(runner.root_dir / 'gpus' / 'checkpoint.pth.tar')['rng']) == 2


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='finds the processes in /proc')
def test_one_dead_process_ends_the_others(runner: Runner) -> None:
    job = start(*command(runner, 'pretrain/main.py', 'output_dir=dead', 'epochs=500'), '--nproc', '2')
    until((runner.root_dir / 'dead' / 'checkpoint.pth.tar').exists, job)
    pids = [pid for pid in children(job) if 'main.py' in Path(f'/proc/{pid}/cmdline').read_text()]
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    begun = time.monotonic()
    code, _, err = finish(job)
    assert code == 1, err
    assert time.monotonic() - begun < 60  # seconds, when the machine is free
    assert len(re.findall('was ended by SIGKILL', err)) == 1
    assert not any(Path(f'/proc/{pid}').exists() for pid in pids)


def test_evaluation_in_two_processes_is_that_of_one(runner: Runner) -> None:
    linear = command(runner, 'segmentation/linear_finetune.py', 'output_dir=linear', 'network_lr_factor=0.1')
    code, out, err = finish(start(*linear, '--nproc', '2'))
    assert code == 0, err
    assert len(re.findall('^mIoU is', out, re.MULTILINE)) == 1
    two = json.loads((runner.root_dir / 'linear' / 'results.json').read_text())
    best = runner.root_dir / 'linear' / 'best_model.pth.tar'
    runner('segmentation.eval', 'pretraining=none', 'output_dir=one', 'network_lr_factor=0.1',
           flags=('--state-dict', str(best)))
    assert json.loads((runner.root_dir / 'one' / 'results.json').read_text()) == two
    maps = sorted((runner.root_dir / 'one' / 'predictions').glob('*.png'))
    assert len(maps) == 6
    assert all(path.read_bytes() == (runner.root_dir / 'linear' / 'predictions' / path.name).read_bytes()
               for path in maps)

    options = ('pretraining=none', 'features=backbone', 'saliency=supervised_model', 'val_batch_size=4')  # 4 and 2
    prototypes, masks = [], []
    for processes in ('1', '2'):  # each with one thread, for the same rounding
        code, _, err = finish(start(str(ROOT / 'segmentation/kmeans.py'), *runner.arguments(
            'segmentation.kmeans', *options, f'output_dir=kmeans{processes}'), '--nproc', processes))
        assert code == 0, err
        with np.load(runner.root_dir / f'kmeans{processes}' / 'prototypes.npz') as file:
            prototypes.append(file['prototypes'])
        masks.append(read_masks(runner.root_dir / f'kmeans{processes}' / MASKS, prototypes[-1]))
    assert len(prototypes[0]) == 6 == len(masks[0])
    assert masks[0] == masks[1]
    assert (prototypes[0] == prototypes[1]).all()
    one, two = ((runner.root_dir / f'kmeans{count}' / 'results.json').read_text() for count in (1, 2))
    assert one == two


@pytest.mark.parametrize(('script', 'config'), [('pseudo_labels', 'pseudo_labels'),
                                                ('score_predictions', 'linear_finetune')])
def test_what_works_alone_is_not_started_twice(runner: Runner, script: str, config: str) -> None:
    code, _, err = finish(start(
        '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(ROOT / f'segmentation/{script}.py'),
        '--config_env', 'configs/demo/env.yml', '--config_exp', f'configs/demo/{config}.yml', '--set',
        f'db_root={runner.db_root}', f'root_dir={runner.root_dir}', 'pretraining=none', 'features=backbone'))
    assert code == 1, err  # the launcher's own
    assert err.count(f'error: {script}.py works in one process; start it without torchrun.') == 1


def test_a_mistake_is_told_once(runner: Runner) -> None:
    code, _, err = finish(start(*command(runner, 'pretrain/main.py', 'output_dir=odd', 'train_batch_size=3'),
                                '--nproc', '2'))
    assert code == EXIT_USER_ERROR, err
    assert err.count('cannot be split over 2 processes') == 1
    assert 'Traceback' not in err
