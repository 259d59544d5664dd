"""Arithmetic over tensors: element-wise kernels, selections, the merge of one group of tensors."""
