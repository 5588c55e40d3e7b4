"""The five networks: pure ``torch.nn`` modules, one method a file.

Every network maps ``(N, 3, H, W)`` RGB in [0, 1] to RGB in [0, 1]. Normalisation, attention,
residual additions and the final clamp are inside ``forward``, so that torch and the exported graph
compute the same picture. What only training needs stands in the same file under a name of its own.
"""
