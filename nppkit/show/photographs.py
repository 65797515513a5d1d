"""Photographs for the explorers, coded without a trained tokenizer: a code is the nearest of 64 blocks of pixels."""

from contextlib import suppress

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor

from nppkit.data.elpv import elpv_images
from nppkit.data.images import center_crop, folder_images, some_images
from nppkit.errors import NppkitError
from nppkit.files import located
from nppkit.grouping import group_embeddings, patch_grid

SIDE, BLOCK, BLOCKS = 128, 8, 64  # pixels of a photograph and of a block, so 16 x 16 codes as in the paper; blocks to choose from


def photographs(folder: str = "", n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels uint8 (n, 3, 128, 128), codes (n, 256) and blocks (64, 192): the k-means of these photographs' own blocks.

    Of a folder of class folders, else scikit-learn's two (a temple by danielbuechele, a flower by vultilion; CC BY 2.0), and
    solar cells (CC BY-NC-SA 4.0) where their wheel is installed. NppkitError: `folder_images`.
    """
    from sklearn.datasets import load_sample_images

    images = [] if folder else [Image.fromarray(pixels) for pixels in load_sample_images().images]
    with suppress(*[] if folder else [NppkitError]):
        more = some_images(folder_images(located(folder)) if folder else elpv_images(), n - len(images))
        images += map(more.load, range(len(more)))
    pixels = np.stack([np.asarray(center_crop(image, SIDE)) for image in images])
    parts = rearrange(pixels / 255, "n (r h) (c w) k -> (n r c) (h w k)", h=BLOCK, w=BLOCK)
    blocks, codes = kmeans2(parts, BLOCKS, minit="++", rng=0)
    pixels = torch.from_numpy(rearrange(pixels, "n h w k -> n k h w").copy())
    return pixels, torch.from_numpy(codes).long().view(len(images), -1), torch.from_numpy(blocks).float()


def patch_pictures(codes: Tensor, blocks: Tensor, patch_size: int) -> Tensor:
    """What Eq. 1 keeps, uint8 (n, 3, S, S): each patch of codes (n, N) drawn as the mean of its blocks (V, 192), enlarged."""
    means, side = group_embeddings(blocks[codes], patch_size), patch_grid(codes.shape[1], patch_size)
    tiles = rearrange(means, "n (r c) (h w k) -> n k (r h) (c w)", r=side, h=BLOCK, w=BLOCK)
    return (255 * tiles).round().to(torch.uint8).repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
