"""A reward in one line: images [B, 3, H, W] in [0, 1] -> one score an image, [B]."""


def warmth(images):
    return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))
