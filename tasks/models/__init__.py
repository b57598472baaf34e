"""The models that tasks train: plain `nn.Module` classes that run alone and under `torch.vmap`."""
