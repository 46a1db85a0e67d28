"""The text encoder: a frozen pretrained transformer with a cached prefix and a LoRA suffix."""
