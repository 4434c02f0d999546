"""What made a result: the weights by their fingerprint, and what else decides prototypes."""
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)
DECIDES = ('fingerprint', 'backbone', 'features', 'masks', 'min_component', 'size')  # prototypes


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """'features embedding then, backbone now' for each thing that decides prototypes and is not the same."""
    def short(value: Any) -> str:
        return f'{value[:12]}...' if isinstance(value, str) and len(value) == 64 else str(value)

    return [f'{name} {short(before.get(name))} then, {short(now[name])} now' for name in DECIDES
            if before.get(name) != now[name]]


def warn_of_shared(val_ids: Sequence[str], others: Sequence[str] | np.ndarray, val: str, where: str) -> None:
    """Warn of images that are scored and were learnt from."""
    count = len(set(val_ids) & set(map(str, others)))
    if count:
        log.warning('%d of the %d images of %s are also in %s', count, len(val_ids), val, where)


def made_with(weights: str | Path, digest: str, dataset: Any, size: int) -> dict[str, Any]:
    """The entry 'made_with' of a result: weights and their fingerprint, data, side of the network's input."""
    return {'weights': str(weights), 'fingerprint': digest, 'data': f'{dataset.root.name} {dataset.split}',
            'images': len(dataset), 'size': size}


def made_with_network(network: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
    """The same of a result on prototypes, with what ``prototype_network`` says of them."""
    return made_with(network['pretraining'], network['fingerprint'], dataset, network['size']) | {
        name: network[name] for name in ('features', 'masks', 'min_component')}
