"""Running a grid: plan, task queue, local and Ray workers, tracking."""
