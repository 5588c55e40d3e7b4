"""The file of ``--report``: what a run was told and what became of each input, as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import ExitStatus, Refusal
from .inputs import STREAM
from .jobs import Batch
from .media import files
from .plan import Plan
from .report import Report
from .version import __version__


def check(planned: Plan, record: str | None, compare: str | None) -> None:
    """Raises Refusal where it would replace anything but another such file."""
    if record is None:
        return
    if record == STREAM:
        raise Refusal("--report takes a file (--json prints on standard output)")
    path = Path(record)
    files.check_name(path)
    files.check_writable(path.parent)
    if compare is not None and files.same(Path(compare), path):
        raise Refusal(f"{record}: the report and --compare are the same file")
    if any(job.target is not None and files.same(job.target, path) for job in planned.jobs):
        raise Refusal(f"{record}: the report and an output are the same file")
    if os.path.lexists(path) and not files.head(path).split()[:2] == [b"{", b'"llenhance":']:
        raise Refusal(f"{record} exists, and is not a report")


@contextmanager
def written(
    path: str, planned: Plan, todo: Batch, digests: Mapping[str, str], report: Report
) -> Iterator[None]:
    """Write the file ``path`` after the block, however it ends; not when it was refused.

    ``digests``: of each model's weights, from before the block.
    """
    began = time.time()
    status: int | None = None
    try:
        yield
        status = int(report.exit_status)
    except Refusal:
        raise
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
        raise
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else ExitStatus.FAILED
        raise
    except BaseException:
        status = ExitStatus.FAILED
        raise
    finally:
        if status is not None:
            _write(path, planned, todo, digests, report, status, time.time() - began)


def _write(
    path: str,
    planned: Plan,
    todo: Batch,
    digests: Mapping[str, str],
    report: Report,
    status: int,
    seconds: float,
) -> None:
    rows = list(report.rows)
    told = {(row["source"], row.get("model")) for row in rows}
    rows += [
        {"status": "not done", "source": job.name, "target": job.target_name, "warnings": []}
        for job in todo.jobs
        if (job.name, job.model) not in told
    ]
    jobs = {(job.name, job.target_name): job for job in planned.jobs}
    jobs |= {(job.name, job.model): job for job in planned.jobs}
    for number, row in enumerate(rows):
        row = rows[number] = {"target": None, "error": None, "seconds": None} | row
        job = jobs.get((row["source"], str(row.get("model", row["target"]))))
        if job is not None:
            row |= {"model": job.model, "kind": job.kind}
    counts = dict.fromkeys(("done", "skipped", "failed", "not done"), 0)
    for row in rows:
        counts[row["status"]] += 1
    settings = dataclasses.asdict(todo.settings) | dataclasses.asdict(todo.loading)
    whole = {
        "llenhance": __version__,
        "exit_status": status,
        "seconds": round(seconds, 3),
        "counts": counts,
        "settings": settings | {"video": dataclasses.asdict(todo.choice), "digests": dict(digests)},
        "files": rows,
    }
    text = json.dumps(whole, indent=1, default=str) + "\n"
    files.make_folder(Path(path).parent)
    with files.publish(Path(path), overwrite=True) as temporary:
        temporary.write_text(text, encoding="ascii")
