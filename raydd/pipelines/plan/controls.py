"""What the controls do, counted: images drawn, features, and clustering."""

from raydd.pipelines.controls import SPARES, Control
from raydd.pipelines.job import Job
from raydd.pipelines.plan.cost import Amount, Counting, Op, Work, add, batches, feature_count, reading, teacher_op


def count_control(method: Control, job: Job, device: str) -> Counting:
    """Random images, or those that a clustering of the teacher's features chooses."""
    counts = job.source.counts()

    def shard(images: int) -> Work:
        forwards = batches(images, job.batch)
        return {teacher_op(job): Amount(forwards, forwards * job.batch)}

    def pack(labels: tuple[int, ...]) -> Work:
        works = []
        for label in labels:
            if method.name == "random":
                works.append({reading(job.size): Amount(1, min(counts[label], job.ipc + SPARES))})
                continue
            some = min(counts[label], method.config.mipc or counts[label])
            clustering = Op("choose", f"{method.name} of {feature_count(job)} features")
            works.append({reading(job.size): Amount(1, job.ipc), clustering: Amount(1, some * job.ipc)})
        return add(works)

    once = {} if method.name == "random" else {teacher_op(job): Amount(1, 1)}
    return Counting(shard, pack, once)
