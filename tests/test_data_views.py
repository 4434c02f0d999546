"""The fast view against torchvision's transforms, from the same draws."""
import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data.transforms import seeded
from data.views import COLOUR, ContrastiveView

FACTORS = {'brightness': (0.0, 0.63, 1.37), 'contrast': (0.0, 0.63, 1.37), 'saturation': (0.0, 0.63, 1.37),
           'hue': (-0.5, -0.1, 0.03, 0.1, 0.5)}


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 with every colour, grey areas, black and white."""
    noise = np.random.default_rng(seed).normal(128, 90, (height // 8, width // 8, 3)).astype(np.float32)
    image = np.clip(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    image[:height // 6] = image[:height // 6, :, :1]
    return image


def channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize(('name', 'factor'), [(name, factor) for name in FACTORS for factor in FACTORS[name]])
def test_colour_changes_are_those_of_torchvision(name: str, factor: float) -> None:
    image = photograph(96, 120, 0)
    expected = getattr(functional, f'adjust_{name}')(channels_first(image), factor).permute(1, 2, 0).numpy()
    assert (expected != image).mean() > 0.3
    found = COLOUR[name](image, factor)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.04  # where a float32 lies at a whole number, either way is right


@pytest.mark.parametrize(('height', 'width'), [(120, 96), (40, 300), (301, 77)])
@pytest.mark.parametrize('jitter', [(0.4, 0.4, 0.4, 0.1), (0.0, 0.8, 0.0, 0.5)])
def test_the_same_draws_give_the_view_of_torchvision(height: int, width: int, jitter: tuple) -> None:
    size = 56
    image = photograph(height, width, 1)
    mask = (image[..., 0] > 128).astype(np.uint8)
    reference = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
        v2.RandomApply([v2.ColorJitter(*jitter)], p=0.8), v2.RandomGrayscale(p=0.2), v2.RandomHorizontalFlip(p=0.5),
        v2.ToDtype(torch.float32)])
    view = ContrastiveView(size, jitter=jitter)
    for seed in range(20):
        with seeded(seed):
            draw = view.draw(mask)
            drawn = torch.get_rng_state()
        found, moved = view.make_image(image, draw), view.make_mask(mask, draw)
        with seeded(seed):
            expected = reference(tv_tensors.Image(channels_first(image)))
            assert torch.equal(torch.get_rng_state(), drawn)
        levels = (found - expected).abs()
        assert levels.max() < 6  # a level off before the hue turns can be more after it
        assert levels.mean() < (1 if draw.grey else 0.1)  # torchvision cuts grey off, the view rounds it
        top, left, h, w = draw.crop
        rows, columns = ([int((i + 0.5) * side / size) for i in range(size)] for side in (h, w))  # at pixel centres
        resized = mask[top:top + h, left:left + w][rows][:, columns]
        np.testing.assert_array_equal(moved, resized[:, ::-1] if draw.flip else resized)
        assert found.shape == (3, size, size)
        assert found.dtype == torch.uint8
        assert found.is_contiguous()


def test_probabilities_at_their_ends() -> None:
    image = photograph(64, 80, 2)
    mask = (image[..., 1] > 128).astype(np.uint8)
    never = {'jitter_probability': 0, 'grey_probability': 0, 'flip_probability': 0}

    def made(**probabilities: float) -> tuple[torch.Tensor, np.ndarray]:
        view = ContrastiveView(32, **{**never, **probabilities})
        with seeded(3):
            draw = view.draw(mask)
        return view.make_image(image, draw), view.make_mask(mask, draw)

    plain, plain_mask = made()
    flipped, flipped_mask = made(flip_probability=1)
    assert torch.equal(flipped, plain.flip(2))
    assert np.array_equal(flipped_mask, plain_mask[:, ::-1])
    grey, _ = made(grey_probability=1)
    assert torch.equal(grey, grey[:1].expand(3, -1, -1))
    assert not torch.equal(grey, plain)
    solarised, _ = made(solarise_probability=1)
    assert torch.equal(solarised, functional.solarize(plain, threshold=128))
    assert not torch.equal(solarised, plain)


def test_the_image_is_left_as_it_is() -> None:
    image, mask = photograph(64, 80, 4), np.ones((64, 80), np.uint8)
    before = image.copy()
    view = ContrastiveView(32, scale=(1, 1), ratio=(1.25, 1.25), jitter_probability=1)
    for seed in range(4):
        with seeded(seed):
            view.make_image(image, view.draw(mask))
    assert np.array_equal(image, before)
