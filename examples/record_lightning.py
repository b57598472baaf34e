"""Record what Lightning trains: a callback that forwards to a `Recorder`."""

import lightning
import torch
from torch import nn

from orchestrator import Recorder, Results


class Record(lightning.Callback):
    """Spectra every so many optimiser steps, and what the module logs."""

    def __init__(self, recorder, every):
        """Take a recorder that is open, and the steps between two snapshots."""
        self.recorder, self.every = recorder, every
        self.done = -1  # the last step that was measured

    def on_train_start(self, trainer, module):
        """The initial weights."""
        self.snapshot(trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        """Gradient accumulation ends several batches with one step."""
        if trainer.global_step % self.every == 0 and self.snapshot(trainer, module):
            self.recorder.scalars(trainer.global_step, train={"loss": outputs["loss"]})

    def on_validation_end(self, trainer, module):
        """The metrics that the module has logged, but for the trial run before training."""
        if not trainer.sanity_checking:
            metrics = {k.removeprefix("val_"): v for k, v in trainer.logged_metrics.items()}
            self.recorder.scalars(trainer.global_step, val=metrics)

    def snapshot(self, trainer, module):
        """Once per step, in every process; only that of rank 0 records."""
        new = trainer.global_step > self.done
        if new:
            self.done = trainer.global_step
            self.recorder.snapshot(module, self.done)
        return new


class Waves(lightning.LightningModule):
    """A small network learns a sum of two waves."""

    def __init__(self, weight_decay):
        """One hidden layer."""
        super().__init__()
        self.weight_decay = weight_decay
        self.model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(self, batch):
        """Mean squared error."""
        x, y = batch
        return ((self.model(x) - y) ** 2).mean()

    def training_step(self, batch, batch_idx):
        """What Lightning minimises."""
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        """Under the name that the callback records."""
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        """One optimiser."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=self.weight_decay)


def main():
    """One trial."""
    lightning.seed_everything(0, verbose=False)
    x = torch.rand(64, 1) * 2 - 1
    data = torch.utils.data.TensorDataset(x, torch.sin(3 * x) + torch.cos(7 * x))
    loaders = [torch.utils.data.DataLoader(data, batch_size=16) for _ in range(2)]
    with Recorder("results/lightning", params={"weight_decay": 0.1}, seed=0) as recorder:
        trainer = lightning.Trainer(
            max_epochs=5,
            accelerator="cpu",
            callbacks=[Record(recorder, every=4)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Waves(weight_decay=0.1), *loaders)
    print(Results.open("results/lightning"))


if __name__ == "__main__":
    main()
