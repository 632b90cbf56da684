"""Trained networks in the forms that other tools read: MONAI bundle, ONNX, torch.export."""
