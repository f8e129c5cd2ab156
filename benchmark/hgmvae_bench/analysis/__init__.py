"""From records to tables, comparisons, figures, reports and regression checks."""
