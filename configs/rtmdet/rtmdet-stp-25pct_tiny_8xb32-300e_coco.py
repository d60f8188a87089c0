_base_ = './rtmdet-stp-50pct_tiny_8xb32-300e_coco.py'

model = dict(target=0.25)
