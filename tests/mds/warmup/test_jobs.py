"""Warmup jobs of one MDT, as they end."""

import asyncio

from nacrefs.common.wire import AddWarmup, CancelWarmup
from nacrefs.mds.warmup.jobs import Job
from nacrefs.mds.warmup.rows import CANCELED, DONE, HISTORY
from tests.mds.served import ROOT, Served


async def test_jobs_that_end_at_once_forget_the_same_old_one(served: Served) -> None:
    client, jobs = await served.client(), served.mds.warmups.jobs
    await client.call(AddWarmup((ROOT,), more=True))
    await client.call(AddWarmup((ROOT,), more=True))
    one, two = list(jobs)
    for number in range(two + 1, two + 1 + HISTORY):
        jobs[number] = Job(jobs[one].row._replace(id=number, state=DONE))
    await asyncio.gather(client.call(CancelWarmup(one)), client.call(CancelWarmup(two)))
    assert [jobs[number].row.state for number in (one, two)] == [CANCELED, CANCELED]
    assert two + 1 not in jobs
