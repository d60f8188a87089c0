_base_ = './retinanet-stp-50pct_r50_fpn_1x_coco.py'

model = dict(target=0.25)
