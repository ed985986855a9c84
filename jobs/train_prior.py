"""Train a diffusion prior, as a job: `raydd train-prior`.

ray job submit --working-dir . -- python jobs/train_prior.py --data s3://bucket/imagenet --out s3://bucket/prior \
    --preset dit-b --autoencoder stabilityai/sd-vae-ft-mse --ddp 8
"""

from start import command

command("train-prior")
