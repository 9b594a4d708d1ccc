"""Checkpoints x tasks x seeds: the plan in a YAML file, and the jobs that follow from it."""

from gersp_mm.benchmark.data import Data
from gersp_mm.benchmark.jobs import Job, make_jobs
from gersp_mm.benchmark.runner import Runner, evaluate
from gersp_mm.benchmark.spec import Plan, read_plan

__all__ = ["Data", "Job", "Plan", "Runner", "evaluate", "make_jobs", "read_plan"]
