_base_ = './detr-stp-50pct_r50_8xb2-150e_coco.py'

model = dict(target=0.25)
