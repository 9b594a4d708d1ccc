"""Checkpoints x tasks x seeds: the plan in a YAML file, and the jobs that follow from it."""

from gersp_mm.evaluation.benchmark.data import Data
from gersp_mm.evaluation.benchmark.jobs import Job, identity, make_jobs
from gersp_mm.evaluation.benchmark.plan import Plan, read_plan
from gersp_mm.evaluation.benchmark.runner import Runner, evaluate

__all__ = ["Data", "Job", "Plan", "Runner", "evaluate", "identity", "make_jobs", "read_plan"]
