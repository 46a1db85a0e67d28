"""The frozen pretrained transformer: its cached prefix, its LoRA suffix, and the vectors it makes of texts."""
