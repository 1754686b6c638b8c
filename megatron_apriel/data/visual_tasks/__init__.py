"""The synthetic visual tasks of the second continued-pretraining stage, made from raw images.

A raw image has no question and no answer. These tasks make both, so that the answer is known by construction and can
only be found by looking::

    reconstruct   which patch fills the hole, which order restores the pieces, how was it turned
    match         where is this spot in the other view, which picture is the same one, which one differs
    detect        is it there, and where
    count         how many

The model has no image output, so every answer is text. The way of a sample::

    raw_images, coco  ->  task (a file each)  ->  Sample  ->  encode  ->  decode  ->  check  ->  record and image files

``difficulty`` turns one number into every setting of every task. ``generate`` runs it all in several processes; sample
i of a seed is the same whatever their number and however many samples are asked for. No torch in this room.
"""
