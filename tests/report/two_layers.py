"""A model of two layers, whole and pruned, as runs write shapes."""

FULL = {"front.0.channels": 16, "front.1.channels": 16, "encoder.position.groups": [0, 1, 2, 3]}
for name in ("encoder.layers.0", "encoder.layers.1"):
    FULL |= {f"{name}.attention": 1, f"{name}.attention.heads": 4}
    FULL |= {f"{name}.feed_forward": 1, f"{name}.feed_forward.neurons": 4096}
SHAPE = {
    **FULL,
    "front.1.channels": 7,
    "encoder.position.groups": [0, 3],
    "encoder.layers.0.attention.heads": 3,
    "encoder.layers.0.feed_forward.neurons": 1001,
    "encoder.layers.1.attention": 0,
    "encoder.layers.1.attention.heads": 0,
    "encoder.layers.1.feed_forward.neurons": 0,
}
