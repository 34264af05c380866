"""Exercises: the workbook that checks them, and one file per notebook."""
