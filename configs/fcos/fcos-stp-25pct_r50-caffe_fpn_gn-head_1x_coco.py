_base_ = './fcos-stp-50pct_r50-caffe_fpn_gn-head_1x_coco.py'

model = dict(target=0.25)
