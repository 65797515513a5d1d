"""The optimiser of the tokenizer's inner convolutions."""

import torch
from torch import nn

from nppkit.data.muon import Muon, hidden_matrices, orthogonal
from nppkit.tokenizer import VQModel
from nppkit.tokenizer_config import VQConfig

TINY = VQConfig(ch=4, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2)


def test_matrices_become_orthogonal():
    """Wide, tall and ill-conditioned matrices get singular values near 1, and keep their singular vectors."""
    g = torch.Generator().manual_seed(0)
    for rows, columns in ((8, 30), (30, 8), (16, 24)):
        matrix = torch.randn(rows, columns, generator=g)
        found = orthogonal(matrix)
        values = torch.linalg.svdvals(found)
        assert found.shape == matrix.shape and values.min() > 0.6 and values.max() < 1.3
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        aligned = u.T @ found @ v.T
        torch.testing.assert_close(aligned, torch.diag(aligned.diagonal()), atol=1e-4, rtol=0)


def test_first_step_is_of_the_learning_rate():
    """Whatever the gradient's size, a square matrix moves by a spectral norm of about the learning rate; a tall one by more."""
    for rows, columns, stretch in ((8, 8, 1.0), (32, 8, 2.0), (8, 32, 1.0)):
        for scale in (1e-3, 1e3):
            p = nn.Parameter(torch.zeros(rows, columns, 1, 1))
            p.grad = scale * torch.randn(rows, columns, 1, 1, generator=torch.Generator().manual_seed(1))
            Muon([p], lr=0.1).step()
            moved = torch.linalg.matrix_norm(p.detach().flatten(1), 2).item()
            assert 0.06 * stretch < moved < 0.13 * stretch


def test_three_steps_have_a_closed_form():
    """Momentum is the decaying mean of all gradients so far, and Nesterov's look ahead takes it and the newest gradient."""
    gradients, beta, expected = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2)), 0.9, torch.zeros(8, 8)
    p = nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([p], lr=0.1, momentum=beta)
    for step, p.grad in enumerate(gradients):
        optimizer.step()
        momentum = sum((1 - beta) * beta ** (step - i) * gradients[i] for i in range(step + 1))
        expected -= 0.1 * orthogonal((1 - beta) * gradients[step] + beta * momentum)
    torch.testing.assert_close(p.detach(), expected, atol=1e-5, rtol=1e-4)


def test_it_takes_inner_convolutions():
    """First, last and codebook's convolutions, biases, norms and the codebook stay AdamW's."""
    model = VQModel(TINY)
    taken = {id(p) for p in hidden_matrices(model)}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    assert all(p.ndim == 4 for p in hidden_matrices(model)) and "encoder.mid.0.conv1.weight" in names
    left = {name for name in dict(model.named_parameters()) if name not in names}
    assert {"encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.weight", "quantize.embedding.weight"} <= left
