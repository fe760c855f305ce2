"""Plain PyTorch reference of what the `esvit` program computes.

It is written for reading, not for speed. One file holds one idea: `swin`, `network`
(projection heads and the multi-crop pass), `objective`, `training`, `evaluation`,
`augment`, and `hashing` for the published full-size fixtures.
"""
