"""Networks: what they are, whose they are, how they are stored.

- spec: what a model is. resnet, foreign, benchmarks: who builds it. insert: layers that families
  put in. backward, stochastic: derivatives that attacks choose, and randomness. border: checks of
  any nn.Module that comes in. copies: copies of it, with plain weights.
- binary: one-bit weights. quantized: integers. fold: without batch-norm. target: what only answers.
- checkpoint: a model and its file. tensor_file, weights, audit: files of others, from their tensors
  to a network that they fit. preprocessing: what images it takes. onnx_file: ONNX, read and
  written. card: facts of a model.
"""
