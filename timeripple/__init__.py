"""TimeRipple: reuse of partial attention scores in video diffusion transformers."""
