"""The encoder and the objective written out in plain NumPy, float64: slow, and independent of the package.

Weights are given by the names of ``SelfDistillation.state_dict()`` without the branch prefix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import erf

Arrays = Mapping[str, np.ndarray]


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def long_kernel(kernels, norm):
    """16 taps from three kernels of 4: 4·k0, 2·k1, and k2 with every tap twice."""
    taps = [4 * kernels[0][i] for i in range(4)] + [2 * kernels[1][i] for i in range(4)]
    taps += [kernels[2][i // 2] for i in range(8)]
    return np.array(taps) / norm


def tokenize(bold, weights: Arrays, members, long_width, patch=20):
    """[B, ROI, T] → [B, N, P, D], one patch, network and sample after another."""
    n_scans, n_patches = bold.shape[0], bold.shape[2] // patch
    width = weights["encoder.tokenizer.norm_weight"].shape[1]
    tokens = np.zeros((n_scans, len(members), n_patches, width))
    w = {name.removeprefix("encoder.tokenizer."): value for name, value in weights.items() if "tokenizer." in name}
    for scan in range(n_scans):
        for network, rois in enumerate(members):
            heads = math.ceil(long_width / len(rois))
            for p in range(n_patches):
                x = bold[scan, rois, p * patch : (p + 1) * patch]
                dense = np.repeat(w["dense_bias"][network][:, None], patch, axis=1)
                for t in range(patch):
                    for tap in range(3):
                        if 0 <= t + tap - 1 < patch:
                            dense[:, t] += w["dense_weight"][network][:, : len(rois), tap] @ x[:, t + tap - 1]
                channels = np.zeros((len(rois) * heads, patch))
                for roi in range(len(rois)):
                    for head in range(heads):
                        c = roi * heads + head
                        kernel = long_kernel(w["long_kernels"][network, c], w["kernel_norm"][network, c])
                        for t in range(patch):
                            taps = [kernel[j] * x[roi, t + 8 - j] for j in range(16) if 0 <= t + 8 - j < patch]
                            channels[c, t] = sum(taps) + w["long_skip"][network, c] * x[roi, t]
                long = w["long_weight"][network][:, : len(channels)] @ channels + w["long_bias"][network][:, None]
                pooled = gelu(np.concatenate([dense, long])).mean(axis=1)
                tokens[scan, network, p] = layer_norm(pooled, w["norm_weight"][network], w["norm_bias"][network])
    return tokens


def encode(tokens, mask, weights: Arrays, depth, head_width):
    """Tokens of the tokenizer [B, N, P, D] → [B, 1 + N·P, D]."""
    n_scans, n_networks, n_patches, width = tokens.shape
    x = np.zeros((n_scans, 1 + n_networks * n_patches, width))
    omega = [10000 ** (-i / (width / 2)) for i in range(width // 2)]
    for scan in range(n_scans):
        x[scan, 0] = weights["encoder.cls_token"]
        for n in range(n_networks):
            for p in range(n_patches):
                hidden = mask is not None and mask[scan, n, p]
                token = weights["encoder.mask_embedding"] if hidden else tokens[scan, n, p]
                position = np.array([math.sin(p * o) for o in omega] + [math.cos(p * o) for o in omega])
                x[scan, 1 + n * n_patches + p] = token + weights["encoder.network_embedding"][n] + position
    for block in range(depth):
        w = {k.split(f"blocks.{block}.")[1]: v for k, v in weights.items() if f"blocks.{block}." in k}
        normed = layer_norm(x, w["attention_norm.weight"], w["attention_norm.bias"])
        q, k, v = np.split(normed @ w["attention.qkv.weight"].T, 3, axis=-1)
        attended = np.zeros_like(x)
        for head in range(width // head_width):
            part = slice(head * head_width, (head + 1) * head_width)
            for scan in range(n_scans):
                scores = q[scan, :, part] @ k[scan, :, part].T * head_width**-0.5
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                attended[scan, :, part] = scores / scores.sum(axis=1, keepdims=True) @ v[scan, :, part]
        attended = attended @ w["attention.projection.weight"].T + w["attention.projection.bias"]
        x = x + w["attention_scale"] * attended
        hidden = gelu(layer_norm(x, w["mlp_norm.weight"], w["mlp_norm.bias"]) @ w["mlp_in.weight"].T + w["mlp_in.bias"])
        x = x + w["mlp_scale"] * (hidden @ w["mlp_out.weight"].T + w["mlp_out.bias"])
    return layer_norm(x, weights["encoder.norm.weight"], weights["encoder.norm.bias"])


def project(x, weights: Arrays):
    y = gelu(x @ weights["head.hidden.weight"].T + weights["head.hidden.bias"])
    y = y @ weights["head.output.weight"].T + weights["head.output.bias"]
    return y / np.sqrt((y**2).sum(-1, keepdims=True))


def coding_rate_loss(student, teacher, epsilon=0.05):
    """Of projections [2, m, p]; the determinant by eigenvalues instead of Cholesky."""
    m, p = student.shape[1:]
    agreement = np.mean([(teacher[0, i] @ student[1, i] + teacher[1, i] @ student[0, i]) / 2 for i in range(m)])
    rates = []
    for view in range(2):
        z = (student[view] + teacher[view]) / 2
        eigenvalues = np.linalg.eigvalsh(np.eye(p) + p / (m * epsilon) * z.T @ z)
        rates.append(0.5 * np.log(eigenvalues).sum())
    return -agreement - (p + m) / (p * m) * np.mean(rates)


def token_loss(student, teacher, mask):
    """Of token projections [2, m, tokens, p] and masks [2, m, tokens]."""
    total, m = 0.0, student.shape[1]
    for view in range(2):
        for scan in range(m):
            masked = np.flatnonzero(mask[view, scan])
            for token in masked:
                total -= student[view, scan, token] @ teacher[view, scan, token] / len(masked)
    return total / (2 * m)
