"""Every key a config file may hold: its type, its default and one line of what it is.

``utils.config.load`` checks YAML against these dataclasses. A field without a default must be given.
``key(default, help, choices=...)`` declares a field; nested dataclasses are nested YAML mappings.
"""
from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

from utils.run.devices import DEVICES

BACKBONES = ('resnet18', 'resnet50', 'timm/<name>')


def key(default: Any, help: str, choices: tuple = ()) -> Any:
    """Declare one config key.

    Args:
        default: value used when the key is absent; ``MISSING`` makes the key required; a list or a
            dataclass type becomes a default factory.
        help: one line that says what the key is.
        choices: the allowed values, if only some are; 'a/<name>' allows all that begin with a/.
    """
    metadata = {'help': help, 'choices': choices}
    if default is MISSING:
        return field(metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


SALIENCY_HELP = 'masks to use: the folder saliency_<name> of the data set'


@dataclass(kw_only=True)
class Env:
    root_dir: str = key(MISSING, 'folder for results; relative paths start at the repository root')
    db_root: str = key(MISSING, 'folder that holds the data sets, e.g. VOCSegmentation/')


@dataclass(kw_only=True)
class OptimizerKwargs:
    lr: float = key(0.004, 'initial learning rate')
    momentum: float = key(0.9, 'SGD momentum (not used by adam)')
    weight_decay: float = key(1e-4, 'L2 penalty')
    nesterov: bool = key(False, 'Nesterov momentum (not used by adam)')


@dataclass(kw_only=True)
class SchedulerKwargs:
    lr_decay_rate: float = key(0.1, 'step: factor at each decay epoch; cosine: eta_min = lr * rate^3')
    lr_decay_epochs: list[int] = key([], 'step: epochs after which the rate falls')


@dataclass(kw_only=True)
class ModelKwargs:
    ndim: int = key(32, 'dimension of the pixel embedding')
    upsample: bool = key(True, 'upsample the outputs to the input size (else masks are made as small as the features)')
    use_classification_head: bool = key(True, 'predict saliency with a second head and train it')
    dropout: float = key(0.5, 'dropout probability at the end of the decoder')
    decoder: str = key('deeplab', 'between backbone and heads: the ASPP of DeepLab, for an output stride of 8, or one '
                                  '1x1 convolution, for a vision transformer', ('deeplab', 'conv1x1'))


@dataclass(kw_only=True)
class MocoKwargs:
    K: int = key(128, 'number of prototypes in the memory bank; 0 is no bank')
    m: float = key(0.999, 'momentum of the key encoder')
    T: float = key(0.5, 'softmax temperature')


@dataclass(kw_only=True)
class AugmentationKwargs:
    size: int = key(224, 'side of the random crop, pixels')
    scale: list[float] = key([0.2, 1.0], 'range of the share of the image area that is cropped')
    ratio: list[float] = key([0.75, 4 / 3], 'range of the aspect ratio of the crop')
    jitter: list[float] = key([0.4, 0.4, 0.4, 0.1], 'colour jitter: brightness, contrast, saturation, hue')
    jitter_probability: float = key(0.8, 'probability of the colour jitter')
    grey_probability: float = key(0.2, 'probability of turning grey')
    flip_probability: float = key(0.5, 'probability of the horizontal flip')


@dataclass(kw_only=True)
class Run:
    """Keys of every experiment."""
    output_dir: str | None = key(None, 'where results go; default: root_dir/<name of the config file>')
    seed: int = key(1234, 'seed of weights, order and augmentation')
    device: str = key('auto', 'auto takes the first there is of cuda, xpu, mps and cpu', DEVICES)
    num_workers: int = key(4, 'loader processes, at most one a core; 0 loads in the main process')
    val_tf32: bool = key(False, 'CUDA: tf32 in validation and prediction, which compute in float32 otherwise')


@dataclass(kw_only=True)
class Common(Run):
    """Keys of every experiment with pixel embeddings."""
    backbone: str = key('resnet50', 'network; timm/<name> is any of the library timm with an output stride of 8 or '
                                    'patches, e.g. timm/vit_small_patch16_224.dino', BACKBONES)
    pretraining: str = key(MISSING, 'initial weights: imagenet_classification, imagenet_moco, none, or the '
                                    'path of a checkpoint (from the working directory, root_dir or the repository)')
    moco_state_dict: str | None = key(None, 'path of the MoCo checkpoint, for pretraining: imagenet_moco')
    model_kwargs: ModelKwargs = key(ModelKwargs, 'the network')


@dataclass(kw_only=True)
class Training:
    """Keys of everything that trains."""
    epochs: int = key(MISSING, 'passes over the training set; 0 writes the initial weights')
    train_batch_size: int = key(MISSING, 'images a step, over all processes together')
    optimizer: str = key('sgd', 'optimiser', ('sgd', 'adam'))
    optimizer_kwargs: OptimizerKwargs = key(OptimizerKwargs, 'the optimiser')
    scheduler: str = key('poly', 'learning rate over the epochs', ('poly', 'step', 'cosine', 'constant'))
    scheduler_kwargs: SchedulerKwargs = key(SchedulerKwargs, 'the schedule')
    cache: str = key('none', 'has no effect any more', ('none', 'ram'))
    log_every: int = key(25, 'steps between two lines of the log')
    precision: str = key('fp32', 'number format of training steps: bf16 and fp16 (CUDA alone) by autocast',
                         ('fp32', 'bf16', 'fp16'))
    tf32: bool = key(True, 'CUDA: training steps round factors of float32 products to 10 bits, several times faster')
    channels_last: bool = key(True, 'memory order of images and weights that convolutions run faster in')
    compile: bool = key(False, 'torch.compile of the networks: needs a C++ compiler, and minutes at the start')
    checkpoint_every: int = key(0, 'steps between two checkpoints within an epoch; 0: only after each epoch')


@dataclass(kw_only=True)
class Pretrain(Common, Training):
    """pretrain/main.py"""
    train_db_name: str = key('VOCSegmentation', 'folder of the data set under db_root')
    train_split: str = key('trainaug', 'list of image IDs: sets/<name>.txt; all, train or val of a plain folder')
    saliency: str = key('supervised_model', SALIENCY_HELP)
    loss_chunk: int = key(32768, 'pixels of the contrastive loss at a time; 0 holds all logits in memory')
    sync_batchnorm: bool = key(False, 'BatchNorm over all processes (a departure: the method has it per process)')
    gather_prototypes: bool = key(False, 'contrast with the prototypes of all processes (a departure: only its own)')
    freeze_layers: bool | int = key(False, 'freeze the stem and this many first stages of both encoders; true is 2, '
                                           'in a ResNet conv1, bn1, layer1 and layer2')
    moco_kwargs: MocoKwargs = key(MocoKwargs, 'the memory bank and the momentum encoder')
    augmentation_kwargs: AugmentationKwargs = key(AugmentationKwargs, 'the random views')
    panel_every: int = key(5, 'epochs between two pictures of views and embeddings for TensorBoard; 0 takes none')
    probe_every: int = key(0, 'epochs between two K-means mIoUs of a labelled subset; 0 computes none')
    probe_split: str = key('val', 'probe: list of image IDs with ground truth, of train_db_name')
    probe_images: int = key(200, 'probe: images of the subset, spread over the list')


@dataclass(kw_only=True)
class CrfKwargs:
    iterations: int = key(10, 'mean-field iterations')
    pos_xy_std: float = key(1.0, 'Gaussian kernel: standard deviation, pixels')
    pos_w: float = key(3.0, 'Gaussian kernel: weight')
    bi_xy_std: float = key(67.0, 'bilateral kernel: spatial standard deviation, pixels')
    bi_rgb_std: float = key(3.0, 'bilateral kernel: colour standard deviation, grey levels')
    bi_w: float = key(4.0, 'bilateral kernel: weight')
    min_probability: float = key(0.0, 'leave out classes less probable than this in every pixel, and blur in place of '
                                      'the Gaussian kernel: over three times the speed; 0 is exact')


@dataclass(kw_only=True)
class Evaluation:
    """Keys of everything that predicts on a split."""
    val_db_name: str = key('VOCSegmentation', 'folder of the data set under db_root')
    val_split: str = key('val', 'list of image IDs to score: sets/<name>.txt')
    val_size: int = key(512, 'side to which images are resized for the network, pixels')
    val_batch_size: int = key(8, 'images a forward pass')
    num_visualizations: int = key(16, 'images drawn to visualizations/')
    eval_classes: list[str] = key([], 'classes to score besides background: all others are void, in training too; '
                                      'default: every class of the data set')


@dataclass(kw_only=True)
class LinearFinetune(Common, Training, Evaluation):
    """segmentation/linear_finetune.py and segmentation/eval.py"""
    train_db_name: str = key('VOCSegmentation', 'folder of the data set under db_root')
    train_split: str = key('trainaug', 'list of image IDs to train on: sets/<name>.txt')
    train_size: int = key(512, 'side to which training images are resized, pixels')
    label_share: float = key(1.0, 'share of train_split that is trained on, above 0; drawn once for all by label_seed')
    label_seed: int = key(0, 'which images that share holds; with one seed a smaller share is part of a larger one')
    border_label: int = key(0, 'label of the border that the affine map leaves: 0 as published, 255 to ignore it')
    features: str = key('decoder', 'what the classifier reads; plain backbones have no trained decoder',
                        ('decoder', 'backbone'))
    network_lr_factor: float = key(0.0, 'learning rate of what is below the classifier, as a multiple of '
                                        'optimizer_kwargs.lr; 0 freezes it')
    freeze_batchnorm: str = key('all', 'what runs in eval mode while training', ('all', 'backbone', 'none'))
    crf_kwargs: CrfKwargs = key(CrfKwargs, 'the fully connected CRF of --crf-postprocess')
    crf_workers: int | None = key(None, 'processes of the CRF; 0 runs it in the main process; default: one a CPU core')


@dataclass(kw_only=True)
class Prototypes(Common, Evaluation):
    """Keys shared by the protocols on prototypes."""
    features: str = key('embedding', 'what is pooled over the mask', ('embedding', 'backbone'))
    saliency: str = key('network', 'masks: predicted by the network, or read from saliency_<name>/ of the data set')
    components: bool = key(False, 'each connected component of a mask is an object of its own (an extension)')
    min_component: float = key(0.01, 'components: share of the image below which a component is dropped')


@dataclass(kw_only=True)
class Kmeans(Prototypes):
    """segmentation/kmeans.py"""
    num_clusters: int = key(20, 'clusters of the foreground objects')
    overclustering: list[int] = key([], 'further numbers of clusters, one line of figures each; without ground truth '
                                         'the numbers of which that of highest silhouette is taken')
    matching: str = key('majority', 'more clusters than classes: each takes its best class, or the assignment gives '
                                    'every class an equal share of clusters', ('majority', 'hungarian'))
    fit_split: str | None = key(None, 'list of image IDs that PCA and K-means are fitted on; default: val_split')
    num_seeds: int = key(5, 'runs of K-means, with random_state seed, seed + 1, ...')


@dataclass(kw_only=True)
class Retrieval(Prototypes):
    """segmentation/retrieval.py"""
    memory_db_name: str = key('VOCSegmentation', 'folder of the data set that fills the memory')
    memory_split: str = key('trainaug', 'list of image IDs that fills the memory: sets/<name>.txt')
    memory: str | None = key(None, 'path of a memory.npz of an earlier run, used instead of memory_split')
    num_neighbours: int = key(1, 'nearest entries of the memory that vote on the class of an object')
    ignore_classes: list[str] = key([], 'classes that a second result, beside that of all, ignores; its mean leaves '
                                         'background out')


@dataclass(kw_only=True)
class TrainSaliency(Run, Training):
    """saliency/train.py"""
    images: str = key(MISSING, 'folder of the images, relative to db_root; subfolders count')
    masks: str = key(MISSING, 'folder of their masks under the same names, .png, 255 = object; relative to db_root')
    val_images: str | None = key(None, 'folder of images to score the network on after each epoch')
    val_masks: str | None = key(None, 'folder of their masks')
    val_batch_size: int = key(8, 'images a forward pass')
    pretraining: str = key(MISSING, 'initial weights: none, imagenet_classification (ResNet-34), or the path of a '
                                    'ResNet-34 or a BASNet (from the working directory, root_dir or the repository)')
    resize: int = key(256, 'side to which images are resized, pixels; also for prediction')
    crop: int = key(224, 'side of the random crop of the resized image, pixels')
    flip_probability: float = key(0.5, 'probability of the horizontal flip')
