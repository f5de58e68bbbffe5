"""Networks: what they are (spec), how they are built (resnet) and how they are stored."""
