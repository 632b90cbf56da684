"""UPMC Food-101: dishes from recipes and photographs, by features of BERT and ViT."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
