"""Matrices of a trained model stored in fewer bytes, without training it again.

    compressed = Compressed.fit(bert, ["fc_in", "fc_out"], "svd", ratio=10)
    compressed.bytes, compressed.decode()                # what is stored → the matrices
    python -m compression RUN                            # sizes against scores

A ratio of 10 gives the chosen matrices a tenth of their bytes; everything that must be stored to
have them back counts. Biases and the other matrices stay as they are.

Files in reading order: codecs and autoencoder (a matrix → its stored form → a matrix), stored (the
matrices of a model); for saved runs binding, importance, checkpoint.
"""

from compression.stored import CODECS, Compressed

__all__ = ["CODECS", "Compressed"]
