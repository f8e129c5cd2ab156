"""Tables, comparisons, figures, reports and regression checks of stored records."""
