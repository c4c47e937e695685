"""CLIP's modified ResNet, the picture encoder."""
