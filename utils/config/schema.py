"""Every key of the scripts' config files: type, range, default, one line of help, and whether it changes results."""
from collections.abc import Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from utils.config.keys import REQUIRED, Section, Text, key, must

Device = Literal['auto', 'cpu', 'cuda', 'xpu', 'mps']
DEVICES = get_args(Device)
if TYPE_CHECKING:
    Folder = str  # load_config puts a folder in the place of null
else:
    Folder = str | None

Backbone = Annotated[str, must(lambda name: name in ('resnet18', 'resnet50') or name.startswith('timm/'),
                               'resnet18, resnet50 or timm/<name>')]
Border = Annotated[int, must(lambda label: label in (0, 255), '0 or 255')]
Ratios = Annotated[list[float], must(lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1],
                                     'two increasing numbers above 0')]
Shares = Annotated[Ratios, must(lambda pair: pair[1] <= 1, 'two increasing numbers above 0, up to 1')]
Jitter = Annotated[list[float], must(lambda four: len(four) == 4 and min(four) >= 0 and four[3] <= 0.5,
                                     'four numbers of 0 or more, the last (hue) at most 0.5')]


class OptimizerKwargs(Section):
    lr: float = key(0.004, 'initial learning rate', gt=0)
    momentum: float = key(0.9, 'SGD momentum (not used by adam)', ge=0, lt=1)
    weight_decay: float = key(1e-4, 'L2 penalty', ge=0)
    nesterov: bool = key(False, 'Nesterov momentum (not used by adam)')


class SchedulerKwargs(Section):
    lr_decay_rate: float = key(0.1, 'step: factor at each decay epoch; cosine: eta_min = lr * rate^3', gt=0)
    lr_decay_epochs: list[Annotated[int, Field(ge=0)]] = key([], 'step: epochs after which the rate falls')


class ModelKwargs(Section):
    ndim: int = key(32, 'dimension of the pixel embedding', ge=1)
    upsample: bool = key(True, 'upsample the outputs to the input size (else masks are made as small as the features)')
    use_classification_head: bool = key(True, 'predict saliency with a second head and train it')
    dropout: float = key(0.5, 'dropout probability at the end of the decoder', ge=0, lt=1)
    decoder: Literal['deeplab', 'conv1x1'] = key('deeplab', 'ASPP (output stride 8) or a 1x1 convolution (ViT)')


class MocoKwargs(Section):
    K: int = key(128, 'number of prototypes in the memory bank; 0 is no bank', ge=0)
    m: float = key(0.999, 'momentum of the key encoder', ge=0, le=1)
    T: float = key(0.5, 'softmax temperature', gt=0)


class AugmentationKwargs(Section):
    size: int = key(224, 'side of the random crop, pixels', ge=1)
    scale: Shares = key([0.2, 1.0], 'range of the share of the image area that is cropped')
    ratio: Ratios = key([0.75, 4 / 3], 'range of the aspect ratio of the crop')
    jitter: Jitter = key([0.4, 0.4, 0.4, 0.1], 'colour jitter: brightness, contrast, saturation, hue')
    jitter_probability: float = key(0.8, 'probability of the colour jitter', ge=0, le=1)
    grey_probability: float = key(0.2, 'probability of turning grey', ge=0, le=1)
    flip_probability: float = key(0.5, 'probability of the horizontal flip', ge=0, le=1)
    solarise_probability: float = key(0.0, 'probability of inverting bright values; not in the paper', ge=0, le=1)


class CrfKwargs(Section):
    iterations: int = key(10, 'mean-field iterations', ge=1)
    pos_xy_std: float = key(1.0, 'Gaussian kernel: standard deviation, pixels', gt=0)
    pos_w: float = key(3.0, 'Gaussian kernel: weight', ge=0)
    bi_xy_std: float = key(67.0, 'bilateral kernel: spatial standard deviation, pixels', gt=0)
    bi_rgb_std: float = key(3.0, 'bilateral kernel: colour standard deviation, grey levels', gt=0)
    bi_w: float = key(4.0, 'bilateral kernel: weight', ge=0)
    min_probability: float = key(0.0, 'classes below it in all pixels go, at 3x the speed; 0: exact', ge=0, lt=1)


class Env(Section):
    """--config_env"""
    root_dir: Text = key(REQUIRED, 'folder for results; relative paths start at the repository root', True)
    db_root: Text = key(REQUIRED, 'folder that holds the data sets, e.g. VOCSegmentation/', True)


class Run(Env):
    """Keys of every experiment."""
    output_dir: Folder = key(None, 'where results go; default: root_dir/<name of the config file>', True, min_length=1)
    seed: int = key(1234, 'seed of weights, order and augmentation', ge=0, lt=2 ** 31)
    device: Device = key('auto', 'auto takes the first there is of cuda, xpu, mps and cpu', True)
    num_workers: int | None = key(None, 'loader processes, 0: none; null or above the cores: all but one', True, ge=0)
    val_tf32: bool = key(False, 'CUDA: tf32 in validation and prediction, which compute in float32 otherwise')


class Common(Run):
    """Keys of every experiment with pixel embeddings."""
    backbone: Backbone = key('resnet50', 'resnet18, resnet50 or timm/<name>, e.g. timm/vit_small_patch16_224.dino')
    pretraining: Text = key(REQUIRED, 'initial weights: imagenet_classification, imagenet_moco, none or a path')
    moco_state_dict: Text | None = key(None, 'path of the MoCo checkpoint, for pretraining: imagenet_moco')
    model_kwargs: ModelKwargs = key(ModelKwargs, 'the network')


class Training(Run):
    """Keys of everything that trains."""
    epochs: int = key(REQUIRED, 'passes over the training set; 0 writes the initial weights', ge=0)
    train_batch_size: int = key(REQUIRED, 'images a step, over all processes together', ge=1)
    optimizer: Literal['sgd', 'adam'] = key('sgd', 'optimiser')
    optimizer_kwargs: OptimizerKwargs = key(OptimizerKwargs, 'the optimiser')
    scheduler: Literal['poly', 'step', 'cosine', 'constant'] = key('poly', 'learning rate over the epochs')
    scheduler_kwargs: SchedulerKwargs = key(SchedulerKwargs, 'the schedule')
    cache: Literal['none', 'ram'] = key('none', 'has no effect any more', True)
    log_every: int = key(25, 'steps between two lines of the log', True, ge=1)
    precision: Literal['fp32', 'bf16', 'fp16'] = key('fp32', 'number format of training, by autocast; fp16: CUDA alone')
    tf32: bool = key(True, 'CUDA: training steps round factors of float32 products to 10 bits, several times faster')
    channels_last: bool = key(True, 'memory order of images and weights that convolutions run faster in', True)
    compile: bool = key(False, 'torch.compile of the networks: needs a C++ compiler, and minutes at the start')
    checkpoint_every: int = key(0, 'steps between checkpoints within an epoch; 0: only after each epoch', True, ge=0)


class NetworkTraining(Common, Training):
    """Keys of everything that trains a backbone."""
    sync_batchnorm: bool = key(False, 'BatchNorm over all processes (a deviation from the paper: one per process)')
    freeze_layers: bool | int = key(False, 'freeze the stem and this many stages of the backbone; true is 2', ge=0)


class Pretrain(NetworkTraining):
    """pretrain/main.py"""
    train_db_name: Text = key('VOCSegmentation', 'folder of the data set under db_root')
    train_split: Text = key('trainaug', 'image IDs: sets/<name>.txt; unlabelled image folder: all, train or val')
    saliency: Text = key('supervised_model', 'masks to use: the folder saliency_<name> of the data set')
    loss_chunk: int = key(32768, 'pixels of the contrastive loss at a time, 6 x as many on CUDA; 0: all', True, ge=0)
    gather_prototypes: bool = key(False, 'contrast with the prototypes of all processes (a deviation from the paper)')
    moco_kwargs: MocoKwargs = key(MocoKwargs, 'the memory bank and the momentum encoder')
    augmentation_kwargs: AugmentationKwargs = key(AugmentationKwargs, 'the random views')
    panel_every: int = key(5, 'epochs between two pictures of views and embeddings; 0 takes none', True, ge=0)
    probe_every: int = key(0, 'epochs between two K-means mIoUs of a labelled subset; 0 computes none', True, ge=0)
    probe_split: Text = key('val', 'probe: list of image IDs with ground truth, of train_db_name', True)
    probe_images: int = key(200, 'probe: images of the subset, spread over the list', True, ge=1)


class Evaluation(Run):
    """Keys of everything that predicts on a split."""
    val_db_name: Text = key('VOCSegmentation', 'folder of the data set under db_root')
    val_split: Text = key('val', 'list of image IDs to score: sets/<name>.txt')
    val_size: int = key(512, 'side to which images are resized for the network, pixels', ge=1)
    val_batch_size: int = key(8, 'images a forward pass', True, ge=1)
    num_visualizations: int = key(16, 'images drawn to visualizations/', True, ge=0)
    eval_classes: list[Text] = key([], 'classes scored with background; others are ignored, in training too; []: all')


class LinearFinetune(NetworkTraining, Evaluation):
    """segmentation/linear_finetune.py and segmentation/eval.py"""
    train_db_name: Text = key('VOCSegmentation', 'folder of the data set under db_root')
    train_split: Text = key('trainaug', 'list of image IDs to train on: sets/<name>.txt')
    train_size: int = key(512, 'side to which training images are resized, pixels', ge=1)
    label_share: float = key(1.0, 'share of train_split to train on; label_seed draws it once for all', gt=0, le=1)
    label_seed: int = key(0, 'draws label_share; with one seed smaller shares are part of larger ones', ge=0)
    label_maps: Text | None = key(None, 'folder of label maps to train on, ID.png, in place of the ground truth')
    loss: Literal['ce', 'ohem'] = key('ce', 'cross-entropy of all pixels, or of the hardest ones (MaskDistill)')
    ohem_share: float = key(0.2, 'ohem: share of the pixels of a batch, the hardest, that count', gt=0, le=1)
    select: Literal['miou', 'last'] = key('miou', 'best_model.pth.tar: of best mIoU on val_split, or of the last epoch')
    border_label: Border = key(0, 'label of the border of the affine map: 0 as published, 255 to ignore it')
    features: Literal['decoder', 'backbone'] = key('decoder', 'what is classified; plain backbones have no decoder')
    network_lr_factor: float = key(0.0, 'learning rate below the classifier, as a multiple of lr; 0 freezes', ge=0)
    freeze_batchnorm: Literal['all', 'backbone', 'none'] = key('all', 'what runs in eval mode while training')
    crf_kwargs: CrfKwargs = key(CrfKwargs, 'the fully connected CRF of --crf-postprocess')
    crf_workers: int | None = key(None, 'CRF processes; 0: the main process; default: one a CPU core', True, ge=0)


class Prototypes(Common, Evaluation):
    """Keys shared by the protocols on prototypes."""
    features: Literal['embedding', 'backbone'] = key('embedding', 'what is pooled over the mask')
    saliency: Text = key('network', 'masks: predicted by the network, or read from saliency_<name>/ of the data set')
    components: bool = key(False, 'each connected component of a mask is an object of its own (an extension)')
    min_component: float = key(0.01, 'components: share of the image below which a component is dropped', gt=0, le=1)


class Kmeans(Prototypes):
    """segmentation/kmeans.py"""
    num_clusters: int = key(20, 'clusters of the foreground objects', ge=1)
    overclustering: list[Annotated[int, Field(ge=1)]] = key([], 'further numbers of clusters, a result each')
    matching: Literal['majority', 'hungarian'] = key('majority', 'each cluster its best class, or classes equal shares')
    fit_split: Text | None = key(None, 'list of image IDs that PCA and K-means are fitted on; default: val_split')
    num_seeds: int = key(5, 'runs of K-means, with random_state seed, seed + 1, ...', ge=1)
    whiten: bool = key(True, 'whiten prototypes after PCA, as published; false is an extension')


class Retrieval(Prototypes):
    """segmentation/retrieval.py"""
    memory_db_name: Text = key('VOCSegmentation', 'folder of the data set that fills the memory')
    memory_split: Text = key('trainaug', 'list of image IDs that fills the memory: sets/<name>.txt')
    memory: Text | None = key(None, 'path of a memory.npz of an earlier run, used instead of memory_split')
    num_neighbours: int = key(1, 'nearest entries of the memory that vote on the class of an object', ge=1)
    ignore_classes: list[Text] = key([], 'classes a second result ignores; its mean leaves out background too')


class PseudoLabels(Common, Evaluation):
    """segmentation/pseudo_labels.py"""
    val_split: Text = key('trainaug', 'list of image IDs that get label maps: sets/<name>.txt')
    saliency: Text = key('transformer_model', 'masks: the folder saliency_<name> of the data set')
    features: Literal['box_cls', 'embedding', 'backbone'] = key('box_cls', "class token of a mask's box, or pooled")
    results: Text | None = key(None, "a detector's results in COCO's format, categories from 0 on, not clusters")
    coco: Text | None = key(None, 'COCO file that names the images of results')
    num_clusters: int = key(20, 'clusters of the masks', ge=1, le=254)
    candidates: list[Annotated[int, Field(ge=1, le=254)]] = key([], 'numbers of clusters: the silhouette chooses')
    clusters: Text | None = key(None, 'clusters.pth.tar of kmeans.py, instead of clusters of its own; classes by name')
    with_labels: bool = key(True, 'give clusters the classes of the ground truth, where the data set has some')
    truth_boxes: Text | None = key(None, 'COCO file: a mask has the class of its best box, not of most of its pixels')
    confidence: float | None = key(None, 'share of masks to keep (0.8); of a detector: least score (0.9)', ge=0, le=1)
    overlap: Literal['first', 'best', 'published'] = key('first', 'meeting a better mask: skip, cut, as published')
    keep_best: bool = key(True, 'the best mask of an image stays, whatever its confidence; false: such images go')
    ignore_below: bool = key(False, 'masks below the confidence become the ignore label, and not background')


class TrainSaliency(Training):
    """saliency/train.py"""
    images: Text = key(REQUIRED, 'folder of the images, relative to db_root; subfolders count')
    masks: Text = key(REQUIRED, 'folder of their masks under the same names, .png, 255 = object; relative to db_root')
    val_images: Text | None = key(None, 'folder of images to score the network on after each epoch')
    val_masks: Text | None = key(None, 'folder of their masks')
    val_batch_size: int = key(8, 'images a forward pass', True, ge=1)
    pretraining: Text = key(REQUIRED, 'initial weights: none, imagenet_classification, or a ResNet-34 or BASNet file')
    resize: int = key(256, 'side to which images are resized, pixels; also for prediction', ge=1)
    crop: int = key(224, 'side of the random crop of the resized image, pixels', ge=1)
    flip_probability: float = key(0.5, 'probability of the horizontal flip', ge=0, le=1)


SCHEMAS = (Pretrain, LinearFinetune, Kmeans, Retrieval, PseudoLabels, TrainSaliency)


def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for values, by dotted key, that do not go together; keys that a schema lacks are absent."""
    get, start, bank = values.get, values.get('pretraining'), values.get('moco_kwargs.K', 0)
    no_head = get('model_kwargs.use_classification_head') is False
    if start == 'imagenet_moco' and get('moco_state_dict', 'absent') is None:
        yield 'pretraining', 'pretraining: imagenet_moco needs moco_state_dict, the path of the checkpoint'
    if get('scheduler') == 'step' and get('scheduler_kwargs.lr_decay_epochs') == []:
        yield 'scheduler', 'scheduler: step needs scheduler_kwargs.lr_decay_epochs, e.g. [25]'
    if get('train_batch_size', 0) > bank > 0:
        yield 'train_batch_size', (f'train_batch_size {get("train_batch_size")} does not fit into the memory bank of '
                                   f'moco_kwargs.K {bank}; raise K or take smaller batches')
    if get('probe_every') and no_head:
        yield 'probe_every', 'probe_every needs model_kwargs.use_classification_head: true; set it, or probe_every: 0'
    if get('optimizer_kwargs.nesterov') and get('optimizer') == 'sgd' and get('optimizer_kwargs.momentum') == 0:
        yield 'optimizer_kwargs.nesterov', 'optimizer_kwargs.nesterov needs a momentum above 0'
    if get('crop', 0) > get('resize', inf):
        yield 'crop', f'crop {get("crop")} is larger than resize {get("resize")}; lower it'
    if 'val_images' in values and (get('val_images') is None) != (get('val_masks', 'absent') is None):
        yield 'val_images', 'val_images and val_masks go together; give both or neither'
    if get('eval_classes') and (get('label_maps') or 'candidates' in values):
        yield 'eval_classes', 'eval_classes does not go with label maps, which hold all classes; leave it out'
    if get('clusters') and (get('features') == 'box_cls' or get('results') or get('truth_boxes') or get('candidates')):
        yield 'clusters', ('clusters are of features: embedding or backbone, and go with none of candidates, results '
                           'and truth_boxes; leave one out')
    if (get('results') is None) != (get('coco') is None):
        yield 'results', 'results and coco go together: the detections, and the file that names their images'
    if get('truth_boxes') and (get('results') or not get('with_labels')):
        yield 'truth_boxes', 'truth_boxes names clusters, and needs with_labels: true and no results; leave it out'
    # the protocols on prototypes: nothing runs on random weights
    if 'components' in values or ('candidates' in values and get('results') is None):
        if start in ('imagenet_classification', 'imagenet_moco', 'none') and (
                get('features') == 'embedding' or get('saliency') == 'network'):
            yield 'pretraining', (f'pretraining: {start} holds no trained heads; give the path of a checkpoint, or '
                                  'features: backbone and saliency: supervised_model')
        elif get('saliency') == 'network' and no_head:
            yield 'saliency', 'saliency: network needs model_kwargs.use_classification_head: true'
