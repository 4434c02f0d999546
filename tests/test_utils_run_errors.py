"""How a script ends on what goes wrong, in one process and in several."""
import re
import signal

import pytest
import torch

from utils.run import script
from utils.run.script import run_script


@pytest.mark.parametrize(('kind', 'text', 'shown'), [
    (torch.OutOfMemoryError, 'CUDA out of memory. Tried to allocate 2.00 GiB.', 'CUDA out of memory'),
    (torch.AcceleratorError, 'CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`', 'CUDA error: out of'),
    (RuntimeError, 'MPS backend out of memory (MPS allocated: 9.05 GB)', 'MPS backend out of memory (MPS allocated: 9'),
    (RuntimeError, 'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`', 'CUBLAS_STATUS_ALLOC'),
    (RuntimeError, 'cuDNN error: CUDNN_STATUS_NOT_INITIALIZED', 'cuDNN error: CUDNN_STATUS_NOT_INITIALIZED'),
    (RuntimeError, 'GET was unable to find an engine to execute this computation', 'unable to find an engine'),
    (RuntimeError, 'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED', 'DEVICE_ALLOCATION_FAILED'),
    (torch.distributed.DistBackendError, 'NCCL error in: ../ProcessGroupNCCL.cpp:1970, unhandled error\nLast error:'
     "\nCuda failure 2 'out of memory'", 'NCCL error in: ../ProcessGroupNCCL.cpp'),
])
def test_too_little_memory_of_a_gpu_is_one_sentence(kind: type[Exception], text: str, shown: str, capsys) -> None:
    def main() -> None:
        raise kind(text)

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert shown in told
    assert re.fullmatch(r'error: the GPU has too little memory \(.*\); lower train_batch_size .*precision: bf16.*'
                        'upsample: false.*\n', told)


@pytest.mark.parametrize('text', ['CUDA error: an illegal memory access was encountered', 'NCCL error: remote closed',
                                  'cuDNN error: CUDNN_STATUS_EXECUTION_FAILED'])
def test_other_errors_of_a_gpu_keep_their_traceback(text: str) -> None:
    def main() -> None:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        run_script(main)


def test_a_lost_loader_worker_that_is_told_twice_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    ending = script._ending

    def tell(*_: object) -> None:
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Bus error.')

    def main() -> None:
        signal.signal(signal.SIGCHLD, tell)  # as PyTorch's handler, which may come at any moment
        tell()

    def interrupted(failure: BaseException) -> tuple[int, str]:
        signal.raise_signal(signal.SIGCHLD)
        return ending(failure)

    monkeypatch.setattr(script, '_ending', interrupted)
    with pytest.raises(SystemExit) as ended:
        script.run_script(main)
    assert ended.value.code == 2
    assert re.fullmatch('error: a loader worker was killed, .*\n', capsys.readouterr().err)
