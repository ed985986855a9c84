"""The whole story on the packaged digits, as a job: `raydd demo`.

ray job submit --working-dir . -- python jobs/quickstart.py --out s3://bucket/demo
"""

from start import command

command("demo")
