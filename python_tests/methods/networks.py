"""Small networks and data for the tests of the methods."""

import torch
from torch import nn

from dynprune_rt import methods, models


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class Residual(nn.Module):
    """A stem, two residual blocks (the second with a projection) and a classifier, for 12x12 images."""

    def __init__(self, classes=4, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = Block(width, width)
        self.block2 = Block(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))


class Chain(nn.Module):
    """Convolution, depthwise convolution, flatten with 4 columns per channel, two linear layers; a user's own style."""

    def __init__(self, classes=4):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.norm_b = nn.BatchNorm2d(10)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False)
        self.norm_d = nn.BatchNorm2d(10)
        self.c = nn.Conv2d(10, 12, 1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(48, classes)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = torch.relu(self.norm_b(self.b(x)))
        x = torch.relu(self.norm_d(self.depthwise(x)))
        x = self.pool(torch.relu(self.c(x)))
        return self.fc(torch.flatten(x, 1))


def settle(model, seed=0, size=12):
    """Random weights and batch-norm statistics that differ between channels; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.momentum = 1.0
        model.train()
        model(torch.randn(16, 3, size, size, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
    return model.eval()


def coloured(count, classes=4, seed=0, size=12):
    """A learnable set: each class has a colour and a stripe direction, with noise. u8 images, labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 40 * torch.randn(count, 3, size, size, generator=generator) + 110
    stripes = (torch.arange(size) % 4 < 2).float() * 60
    for i, label in enumerate(labels.tolist()):
        images[i, label % 3] += 50
        images[i] += stripes[:, None] if label % 2 else stripes
    return methods.ImageSet(images.clamp(0, 255).to(torch.uint8), labels, classes)


def small_zoo(name, **options):
    return models.create(name, input_size=32, **options)
