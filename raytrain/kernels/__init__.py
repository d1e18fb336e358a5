"""Code for the GPU, in Triton, and the loss that avoids materializing the logits. Imports torch alone."""
