# scikit-learn's digits, for `make compare-quick`: seconds a run.
_base_ = '../../../configs/_base_/datasets/digits_bs64.py'

input_shape = (3, 16, 16)
epochs = 12  # of the dense network, in T
