"""The sums over all batches, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckpt_doctor.capture.samples import Samples
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.graphs.cut import CutSite
from ckpt_doctor.moments import Moments
from ckpt_doctor.observation import Observation
from ckpt_doctor.progress import Listener, Progress

# Batches, or groups of neighbours, whose own moments are kept: of a ResNet-50 they take 27 MB.
_MOST_BATCHES = 64


class Tally:
    """Adds up the moments of every layer, batch by batch.

    The moments of single batches, which tell how sure the sums are, are kept for some number of batches; of more, those
    of neighbours are put together, so that the memory does not grow with the data.

    Args:
        sites: What is measured.
        samples: The data.
        progress: Hears of every batch of every level.
        levels: How often each batch is run.
    """

    def __init__(self, sites: Sequence[CutSite], samples: Samples, progress: Listener, *, levels: int) -> None:
        self.sites = sites
        self.samples = len(samples)
        self.together = -(-samples.batch_count // _MOST_BATCHES)
        self.moments: dict[str, Moments] = {}
        self.means: dict[str, dict[int, Moments]] = {}
        self.progress = progress
        self.steps = levels * samples.batch_count
        self.done = 0

    def add(self, number: int, batch: int, values: Array) -> Moments:
        """Add what went into a site, by its number, in one batch, and return the moments of that alone.

        Raises:
            RepairRefused: A value is not finite.
        """
        site = self.sites[number]
        try:
            moments = Moments.of(values, site.axis)
        except FloatingPointError as error:
            raise RepairRefused(
                f"layer {site.layer}, batch {batch + 1}: {error} in the input of the layer ({site.x}); "
                "check the data and the weights before it (ckpt-doctor scan)"
            ) from error
        self.moments[site.layer] = self.moments[site.layer].merge(moments) if site.layer in self.moments else moments
        seen = self.means.setdefault(site.layer, {})
        group = batch // self.together
        seen[group] = seen[group].merge(moments) if group in seen else moments
        return moments

    def step(self) -> None:
        """Tell that a batch has run."""
        self.done += 1
        self.progress(Progress("measuring", self.done, self.steps))

    def result(self) -> dict[str, Observation]:
        """Return what was seen of every layer.

        Raises:
            RepairRefused: A layer saw nothing.
        """
        table = {}
        for layer, moments in self.moments.items():
            if not moments.count:
                raise RepairRefused(f"layer {layer}: its mask excludes every position of these data; pass other data")
            batches = [
                self.means[layer][batch] for batch in sorted(self.means[layer]) if self.means[layer][batch].count
            ]
            table[layer] = Observation(
                samples=self.samples,
                mean=moments.mean,
                variance=moments.variance,
                batch_means=np.stack([batch.mean for batch in batches]),
                batch_variances=np.stack([batch.variance for batch in batches]),
            )
        return table
