"""Train students on distilled sets and test them, as a job: `raydd evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py --run s3://bucket/run --val s3://bucket/imagenet --seeds 3
"""

from start import command

command("evaluate")
