"""The views of every step, made on the device from a corpus that lies there or on the host."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from semantoks.errors import UserError
from semantoks.objectives.masks import draw_masks
from semantoks.objectives.parallel import process_rank, world_size
from semantoks.objectives.views import Views, augment
from semantoks.training.corpus import Corpus
from semantoks.training.sampling import Sampler, StepDraw
from semantoks.training.settings import PretrainSettings

AHEAD = 2
"""Steps whose crops are cut before they are needed, each by a thread of its own."""


class Batches:
    """Views of any step, the same on one process or several: all draw for the global batch and keep their part.

    Parameters
    ----------
    corpus : on ``device``, or on the host or on disk; then crops are cut ahead, while the device works.
    """

    def __init__(self, corpus: Corpus, sampler: Sampler, settings: PretrainSettings, device: torch.device) -> None:
        if sampler.batch % world_size():
            raise UserError(
                f"optimiser.batch: expected a multiple of the {world_size()} processes, found {sampler.batch} "
                f"(of {sampler.n_participants} participants)"
            )
        self._corpus, self._sampler, self._settings, self._device = corpus, sampler, settings, device
        share = sampler.batch // world_size()
        self._local = slice(process_rank() * share, (process_rank() + 1) * share)
        self._complete = corpus.complete(settings.views.crop)
        canonical = canonical_networks(corpus, settings)
        self._canonical = None if canonical is None else canonical.to(device)

    def __call__(self, first_step: int, n_steps: int) -> Iterator[Views]:
        """Views of the steps ``first_step`` … ``n_steps`` − 1."""
        if not self._prefetch:
            for step in range(first_step, n_steps):
                yield self._views(step, *self._crops(step))
            return
        with ThreadPoolExecutor(AHEAD) as readers:
            steps = iter(range(first_step, n_steps))
            upcoming = deque(readers.submit(self._crops, step) for step in itertools.islice(steps, AHEAD))
            for step in range(first_step, n_steps):
                crops = upcoming.popleft().result()
                upcoming.extend(readers.submit(self._crops, later) for later in itertools.islice(steps, 1))
                yield self._views(step, *crops)

    @property
    def _prefetch(self) -> bool:
        return self._corpus.on_disk or self._corpus.frames.device != self._device

    def _crops(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """Crops [2·m, ROI, crop] of this process, where the corpus lies, and present tokens of the global batch."""
        draw: StepDraw = self._sampler.draw(step)
        device, settings = self._corpus.frames.device, self._settings
        scans = torch.from_numpy(draw.scans).to(device, non_blocking=True)
        local = scans[self._local].repeat(2)
        n_starts = (self._corpus.lengths[local] - settings.views.crop + 1).clamp(min=1)
        uniform = torch.from_numpy(draw.uniform[:, self._local]).to(device, non_blocking=True)
        starts = (uniform.flatten() * n_starts).long()
        crops = self._corpus.crops(local, starts, settings.views.crop)
        present = self._corpus.present_tokens(scans, settings.views.crop, settings.model.patch)
        if self._prefetch and self._device.type == "cuda":
            crops, present = crops.contiguous().pin_memory(), present.pin_memory()
        return crops, present, draw.masked

    def _views(self, step: int, crops: Tensor, present: Tensor, masked: bool) -> Views:
        """Augment the crops and draw the masks, on the device."""
        settings = self._settings
        crops, present = (values.to(self._device, non_blocking=True) for values in (crops, present))
        generator = self._sampler.generator(step, self._device)
        mask = None
        if masked:
            doubled = present.repeat(2, 1, 1)
            mask = self._part(draw_masks(doubled, settings.masks, generator, self._canonical))
        augmented = augment(crops, settings.views, generator, 2 * self._sampler.batch, self._part)
        return Views(augmented, None if self._complete else present[self._local], mask)

    def _part(self, values: Tensor) -> Tensor:
        """This process's part of a draw for both views of the global batch, [2·m, …]."""
        if world_size() == 1:
            return values
        part: Tensor = values.unflatten(0, (2, -1))[:, self._local].flatten(0, 1)
        return part


def canonical_networks(corpus: Corpus, settings: PretrainSettings) -> Tensor | None:
    """For each token row the number of its canonical network, int64 [N]; None when every row is its own."""
    if not settings.masks.canonical:
        return None
    networks = corpus.networks
    if settings.model.tokenizer == "linear":
        return torch.tensor(networks.of_roi)
    names = [name.split("_")[0] for name in networks.names]
    if len(set(names)) == len(names):
        raise UserError(
            f"masks.canonical: expected networks whose names share what precedes the first underscore (Default_1, "
            f"Default_2), found {', '.join(networks.names[:4])}, …, each its own; rename them in the network table "
            "(networks.method: table) or set it to false"
        )
    return torch.tensor([names.index(name) for name in names])
