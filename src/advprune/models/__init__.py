"""Networks: what they are, whose they are, how they are stored.

- spec: what a model is. resnet, cifar, outside: who builds it. sizes, insert: layers made smaller,
  and layers put in. backward, stochastic: derivatives that attacks choose, and randomness.
- binary, latent: networks of one-bit weights, deployed and in training. fold, quantized: without
  batch-norm, and on integers. target: what only answers. border: any nn.Module that comes in.
- tensor_file, names, benchmarks, checkpoint, foreign: files, and models from them. infer, audit:
  files of unknown networks. inert, card: facts of a model. preprocessing, onnx_file, onnx_export:
  networks of others.
"""
