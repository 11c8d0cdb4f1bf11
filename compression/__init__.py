"""Matrices of a trained model stored in fewer bytes, without training it again.

    compressed = Compressed.fit(bert, ["fc_in", "fc_out"], "svd", ratio=10)
    compressed.bytes, compressed.decode()                # what is stored → the matrices

Reading order: codecs, autoencoder (a matrix → its stored form → a matrix), stored (in a model).
"""

from compression.stored import CODECS, Compressed
