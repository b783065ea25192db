"""Detection and instance segmentation: Mask R-CNN on an encoder, judged by COCO's AP."""
