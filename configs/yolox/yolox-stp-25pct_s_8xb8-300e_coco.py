_base_ = './yolox-stp-50pct_s_8xb8-300e_coco.py'

model = dict(target=0.25)
