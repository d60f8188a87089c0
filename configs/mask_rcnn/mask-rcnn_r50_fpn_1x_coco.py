# Table 6 of the paper, the dense network: ImageNet weights of torchvision, mmdet's 1x schedule with
# AdamW. 8 GPUs with 2 images each.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.1),
)
