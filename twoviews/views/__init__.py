"""Augmentation: from images and random numbers to views."""

from twoviews.views.spec import Views, ViewSpec, draw
