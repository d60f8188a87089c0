_base_ = './dino-stp-50pct_4scale_r50_8xb2-12e_coco.py'

model = dict(target=0.25)
