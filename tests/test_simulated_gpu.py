"""Whatever trains or evaluates, one step of it on a fictitious GPU; ``tests/fake_gpu.py`` says what that can show."""
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.fake_gpu import ROOT, missing

PRETRAINING = ['fp32', 'bf16', 'fp16', 'small outputs', 'four processes', 'four processes with all options']
STEPS = [*PRETRAINING, 'linear classifier', 'fine-tuning', 'BASNet']
LOG = {'tolist, utils/run/trainer.py:_check', 'tolist, utils/run/trainer.py:read'}
BANK = {'copy to the CPU, pretrain/maskcontrast.py:bank_statistics'}
# what a step may wait for: PyTorch's SyncBatchNorm drops processes without images
WAITS_OF_STEP = {'four processes with all options': {'boolean index, models/segmentation.py:maps',
                                                     'boolean index, models/segmentation.py:embed',
                                                     'boolean index, models/segmentation.py:forward'}}
# waits of a batch, and its copies from memory that is not pinned
EVALUATIONS = {
    'validation': ({'copy to the CPU, segmentation/engine.py:run_network': 1}, {}),
    'prediction': ({'copy to the CPU, segmentation/engine.py:run_network': 2}, {}),
    'prototypes': ({'copy to the CPU, segmentation/objects.py:find_objects': 2},
                   {'(64, 64), segmentation/objects.py:find_objects': 3}),
    'prototypes of components': ({'copy to the CPU, segmentation/objects.py:find_objects': 1},
                                 {'(64, 64), segmentation/objects.py:find_objects': 3}),
    'prediction of BASNet': ({'copy to the CPU, saliency/basnet.py:__call__': 1}, {})}
# what each planted defect is found by
FOUND = {'tensor on the CPU': ('error', 'cuda:0'), 'item': ('waits', 'item, tests/fake_gpu_steps.py:with_item'),
         'boolean index': ('waits', 'boolean index, tests/fake_gpu_steps.py:with_boolean_index'),
         'unpinned copy': ('unpinned', 'tests/fake_gpu_steps.py:unpinned'),
         'blocking copy': ('waits', 'blocking copy to the device, tests/fake_gpu_steps.py:blocking'),
         'unfused optimiser': ('waits', 'item, utils/run/devices.py:step'),
         'index on the CPU': ('waits', 'index on the CPU, utils/run/distributed.py:shuffle'),
         'strided collective': ('refused', 'tests/fake_gpu_steps.py:strided')}


def recorded(*arguments: str) -> dict[str, Any]:
    """What ``tests.fake_gpu_steps`` prints, in a process of its own: the runtime comes before PyTorch."""
    reason = missing()
    if reason is not None:
        assert not os.environ.get('CI'), reason  # continuous integration never leaves this out
        pytest.skip(reason)
    found = subprocess.run([sys.executable, '-m', 'tests.fake_gpu_steps', *arguments], cwd=ROOT, capture_output=True,
                           text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout)


@pytest.fixture(scope='module')
def records() -> dict[str, dict[str, Any]]:
    """All scenes and planted defects."""
    return recorded()


def test_a_step_of_the_published_preset_takes_no_more_than_it_did() -> None:
    """950 launches and 5.2 GiB, and 1 % for what versions of PyTorch differ in."""
    record = recorded('backbone=resnet50', 'batch=64', 'size=224', 'precision=bf16')
    assert defects(record) == {}
    assert record['launches'] < 1.01 * 950
    assert record['peak'] < 1.01 * 5.2 * 2 ** 30


def defects(record: dict[str, Any]) -> dict[str, Any]:
    return {kind: record[kind] for kind in ('error', 'waits', 'unpinned', 'refused') if record.get(kind)}


@pytest.mark.parametrize('scene', STEPS)
def test_a_step_neither_waits_nor_mixes_devices(records: dict, scene: str) -> None:
    record, allowed = records['scenes'][scene], WAITS_OF_STEP.get(scene, set())
    for step in (record['first'], record):
        found = defects(step)
        assert found.pop('waits', {}).keys() == allowed
        assert found == {}
    assert record['log']['waits'].keys() == LOG | (BANK if scene in PRETRAINING else set())
    print(f'{scene}: {record["launches"]} launches, peak {record["peak"] / 2 ** 20:.0f} MiB')


def test_processes_exchange_no_more_than_keys_and_their_order(records: dict) -> None:
    """All-gather of key images, of their embeddings, and of the prototypes; gradients are DDP's."""
    assert records['scenes']['fp32']['collectives'] == {}
    assert records['scenes']['four processes']['collectives'] == {
        'broadcast_, utils/run/distributed.py:random_order': 1,
        '_allgather_base_, utils/run/distributed.py:all_gather': 3}


@pytest.mark.parametrize('scene', EVALUATIONS)
def test_an_evaluation_waits_for_nothing_but_its_results(records: dict, scene: str) -> None:
    waits, unpinned = EVALUATIONS[scene]
    record = records['scenes'][scene]
    assert defects(record).keys() <= {'waits', 'unpinned'}
    assert (record['waits'], record['unpinned']) == (waits, unpinned)


@pytest.mark.parametrize(('scene', 'most'), [('mask of a transformer', 1), ('MaskCut', 12)])
def test_the_affinity_of_patches_stays_on_the_device(records: dict, scene: str, most: int) -> None:
    record = records['scenes'][scene]
    assert 'error' not in record
    assert 0 < record['copied'] <= most * 40 * 54  # bytes; an affinity of all with all has 4 * (40 * 54) ** 2


@pytest.mark.parametrize('plant', FOUND)
def test_a_planted_defect_is_found(records: dict, plant: str) -> None:
    kind, text = FOUND[plant]
    assert text in str(defects(records['plants'][plant])[kind])


def test_launches_and_memory_are_counted(records: dict) -> None:
    record = records['scenes']['known']
    assert (record['launches'], record['peak']) == (2, 8 << 20)
    scenes = records['scenes']
    assert scenes['bf16']['launches'] > scenes['fp32']['launches']  # weights are cast
    assert scenes['small outputs']['peak'] < scenes['fp32']['peak']


def test_continuous_integration_does_not_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CI', 'true')
    monkeypatch.setattr('tests.test_simulated_gpu.missing', lambda: 'no compiler')
    with pytest.raises(AssertionError, match='no compiler'):
        records.__wrapped__()
