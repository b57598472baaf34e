"""Record what a Hugging Face Trainer trains: a callback that forwards to a `Recorder`."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from orchestrator import Recorder, Results


class Record(TrainerCallback):
    """Spectra every so many optimiser steps, and the losses that the Trainer logs."""

    def __init__(self, recorder, every):
        """Take a recorder that is open, and the steps between two snapshots."""
        self.recorder, self.every = recorder, every

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """The initial weights."""
        self.recorder.snapshot(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """After an optimiser step."""
        if state.global_step % self.every == 0:
            self.recorder.snapshot(model, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """What is logged of training is `loss`, of evaluation `eval_loss`."""
        train = {"loss": logs["loss"]} if "loss" in logs else {}
        val = {"loss": logs["eval_loss"]} if "eval_loss" in logs else {}
        self.recorder.scalars(state.global_step, train=train, val=val)


def main():
    """One trial: a very small language model learns to count."""
    data = [{"input_ids": (row := torch.arange(i, i + 8) % 16), "labels": row} for i in range(32)]
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    arguments = TrainingArguments(
        output_dir="results/transformers-output",
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.1,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )
    with Recorder("results/transformers", params={"weight_decay": 0.1}, seed=0) as recorder:
        Trainer(
            model=GPT2LMHeadModel(config),
            args=arguments,
            train_dataset=data,
            eval_dataset=data[:8],
            callbacks=[Record(recorder, every=5)],
        ).train()
    print(Results.open("results/transformers"))


if __name__ == "__main__":
    main()
