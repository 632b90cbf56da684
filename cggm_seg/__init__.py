"""BraTS tumor segmentation with balanced multimodal training."""
