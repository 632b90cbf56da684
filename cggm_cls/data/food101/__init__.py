"""Texts and images of UPMC Food-101 and their features."""
