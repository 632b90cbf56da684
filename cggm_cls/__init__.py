"""Balanced multimodal classification and regression on sequences: CMU-MOSI, IEMOCAP, Food-101."""
