"""Rotation: streams of channels given in another basis, the model staying the same."""
