"""What one looks at: figures, coloured text, widgets."""
